package scsi_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"blockgate/scsi"
)

func TestTableIsConsistent(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range scsi.Commands() {
		id := fmt.Sprintf("%02x/%x", c.Op, c.SA)
		switch {
		case seen[id] || seen[c.Name]:
			t.Errorf("%s %s is there twice", id, c.Name)
		case len(c.Usage) == 0 || c.Usage[0] != c.Op:
			t.Errorf("%s: usage map % x does not begin with the opcode", c.Name, c.Usage)
		case len(c.Usage) != map[byte]int{0: 6, 1: 10, 2: 10, 4: 16, 5: 12}[c.Op>>5]:
			t.Errorf("%s: CDB length %d does not fit the opcode's group", c.Name, len(c.Usage))
		case c.Usage[len(c.Usage)-1] != 0:
			t.Errorf("%s: a bit of the CONTROL byte is used", c.Name)
		case (c.Dir == scsi.DirOut) != (c.OutLen != nil):
			t.Errorf("%s: direction and OutLen disagree", c.Name)
		case c.Run == nil:
			t.Errorf("%s: no handler", c.Name)
		case c.Exclusive && c.Range == nil:
			t.Errorf("%s: exclusive over no range", c.Name)
		case c.Types == 0:
			t.Errorf("%s: no device type has it", c.Name)
		case c.Access == scsi.AccessWrite && c.Reserve != scsi.ResWrite:
			t.Errorf("%s: writes under a reservation of another", c.Name)
		}
		seen[id], seen[c.Name] = true, true
	}
}

// Each bit that a usage map does not have is refused, with sense data that
// points at it.
func TestReservedBitsAreRefused(t *testing.T) {
	r := newRig(t, func(c *scsi.UnitConfig) { c.Removable = true })
	h := r.login("a")
	for _, c := range scsi.Commands() {
		if c.Types&scsi.TypeDisk == 0 || c.Supported != nil && !c.Supported(r.unit) || c.Lenient {
			continue
		}
		for i := 1; i < len(c.Usage); i++ {
			for bit := range 8 {
				if c.Usage[i]&(1<<bit) != 0 || i == 1 && c.SA != scsi.NoSA && bit < 5 {
					continue
				}
				cdb := make([]byte, len(c.Usage))
				cdb[0] = c.Op
				if c.SA != scsi.NoSA {
					cdb[1] = byte(c.SA)
				}
				cdb[i] |= 1 << bit
				p := h.expect(c.Name, h.do(cdb), "5/24/00")
				if got, want := p.field(), fmt.Sprintf("cdb %d.%d", i, bit); got != want {
					t.Errorf("%s: CDB % x: sense points at %q, want %q", c.Name, cdb, got, want)
				}
			}
		}
	}
}

func TestUnknownCommands(t *testing.T) {
	h := newRig(t, nil).login("a")
	h.expect("vendor opcode", h.do([]byte{0xc0, 0, 0, 0, 0, 0}), "5/20/00")
	h.expect("no CDB", h.do(nil), "5/20/00")
	p := h.expect("unknown service action", h.do([]byte{0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}), "5/24/00")
	if p.field() != "cdb 1.4" {
		t.Errorf("sense points at %q", p.field())
	}
	h.expect("cut CDB", h.do([]byte{0x28, 0, 0}), "5/24/00")
	h.expect("UNMAP on a store that cannot", h.do(make10(0x42)), "5/20/00")
}

func rsoc(option, op byte, sa uint16) []byte {
	return []byte{0xa3, 0x0c, option, op, byte(sa >> 8), byte(sa), 0, 1, 0, 0, 0, 0}
}

func TestReportSupportedOpcodes(t *testing.T) {
	r := newRig(t, nil)
	h := r.login("a")
	for _, rctd := range []byte{0, 0x80} {
		list := h.good(rsoc(rctd, 0, 0))
		if n := binary.BigEndian.Uint32(list); int(n) != len(list)-4 {
			t.Fatalf("length field %d of %d bytes", n, len(list))
		}
		var got, want []string
		for list = list[4:]; len(list) > 0; list = list[8:] {
			name := fmt.Sprintf("%02x", list[0])
			if list[5]&1 != 0 {
				name += fmt.Sprintf("/%02x", binary.BigEndian.Uint16(list[2:]))
			}
			got = append(got, fmt.Sprintf("%s len %d", name, binary.BigEndian.Uint16(list[6:])))
			if rctd != 0 {
				if list[5]&2 == 0 || binary.BigEndian.Uint16(list[8:]) != 10 {
					t.Fatalf("%s: no timeouts descriptor", name)
				}
				list = list[12:]
			}
		}
		for _, c := range scsi.Commands() {
			if c.Types&scsi.TypeDisk == 0 || c.Supported != nil && !c.Supported(r.unit) {
				continue
			}
			name := fmt.Sprintf("%02x", c.Op)
			if c.SA != scsi.NoSA {
				name += fmt.Sprintf("/%02x", c.SA)
			}
			want = append(want, fmt.Sprintf("%s len %d", name, len(c.Usage)))
		}
		if !slices.Equal(got, want) {
			t.Errorf("RCTD %02x:\n got %v\nwant %v", rctd, got, want)
		}
	}
	for _, c := range scsi.Commands() {
		if c.Types&scsi.TypeDisk == 0 || c.Supported != nil && !c.Supported(r.unit) {
			continue
		}
		ok, bad, sa := byte(1), byte(2), uint16(0)
		if c.SA != scsi.NoSA {
			ok, bad, sa = 2, 1, uint16(c.SA)
		}
		h.expect(c.Name+" by the wrong option", h.do(rsoc(bad, c.Op, sa)), "5/24/00")
		for _, option := range []byte{ok, 3, ok | 0x80} {
			b := h.good(rsoc(option, c.Op, sa))
			if b[1]&7 != 3 || int(binary.BigEndian.Uint16(b[2:])) != len(c.Usage) || b[4] != c.Op {
				t.Errorf("%s: option %x gives % x", c.Name, option, b)
			}
			if c.SA != scsi.NoSA && int(b[5]&0x1f) != c.SA {
				t.Errorf("%s: usage map % x lacks the service action", c.Name, b[4:])
			}
			if timeouts := len(b) == 4+len(c.Usage)+12; timeouts != (option&0x80 != 0) || timeouts != (b[1]&0x80 != 0) {
				t.Errorf("%s: option %x gives % x", c.Name, option, b)
			}
		}
	}
	for _, c := range [][]byte{rsoc(1, 0xc1, 0), rsoc(3, 0x28, 1), rsoc(2, 0x9e, 0x1f), rsoc(1, 0x42, 0)} {
		if b := h.good(c); b[1]&7 != 1 || len(b) != 4 {
			t.Errorf("% x: % x says that it is there", c, b)
		}
	}
	h.expect("reserved option", h.do(rsoc(4, 0, 0)), "5/24/00")
}

func TestControllerHasNoMedium(t *testing.T) {
	r := newRig(t, nil)
	c := r.newUnit(func(c *scsi.UnitConfig) { c.Type, c.Product = scsi.TypeStorageController, "Controller" })
	if err := r.dev.SetUnit(3, c); err != nil {
		t.Fatal(err)
	}
	h := r.attach("a")
	h.lun = scsi.FormatLUN(3)
	h.expect("power on", h.do(tur), "6/29/00")
	h.good(tur)
	if b := h.good([]byte{0x12, 0, 0, 0, 96, 0}); b[0] != 0x0c || string(b[16:26]) != "Controller" {
		t.Errorf("INQUIRY % x", b)
	}
	h.expect("READ", h.do(read10(0, 1)), "5/20/00")
	h.expect("MODE SENSE", h.do([]byte{0x1a, 0, 0x3f, 0, 255, 0}), "5/20/00")
	if b := h.good(rsoc(1, 0x28, 0)); b[1]&7 != 1 {
		t.Error("REPORT SUPPORTED OPERATION CODES offers READ")
	}
}
