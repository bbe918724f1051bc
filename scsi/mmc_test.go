package scsi_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"blockgate/scsi"
)

// newDrive is a rig whose unit is a CD drive with a disc of n blocks.
func newDrive(t *testing.T, n int) *rig {
	return newRig(t, func(c *scsi.UnitConfig) {
		c.Type, c.BlockSize = scsi.TypeMultimedia, 0
		c.Store.(*gatedStore).resize(n * 2048)
	})
}

func cdb12(b ...byte) []byte { return append(b, make([]byte, 12-len(b))...) }

// What a host does before it mounts a disc, and while it boots from one.
func TestDriveServesAnImage(t *testing.T) {
	r := newDrive(t, 700)
	copy(r.store.data[16*2048:], "\x01CD001")
	h := r.login("a")
	if b := h.good([]byte{0x12, 0, 0, 0, 96, 0}); b[0] != 5 || b[1]&0x80 == 0 {
		t.Errorf("INQUIRY: type %02x, RMB byte %02x", b[0], b[1])
	}
	if b := h.good(make10(0x25)); binary.BigEndian.Uint32(b) != 699 || binary.BigEndian.Uint32(b[4:]) != 2048 {
		t.Errorf("READ CAPACITY: % x", b)
	}
	for name, cdb := range map[string][]byte{
		"READ(10)": read10(16, 1),
		"READ(12)": cdb12(0xa8, 0, 0, 0, 0, 16, 0, 0, 0, 1),
	} {
		if b := h.good(cdb); len(b) != 2048 || string(b[1:6]) != "CD001" {
			t.Errorf("%s: %d bytes", name, len(b))
		}
	}
	h.expect("beyond the end", h.do(read10(700, 1)), "5/21/00")
	h.expect("burning", h.do(write10(0, 1), make([]byte, 2048)...), "5/20/00")
	b := h.good([]byte{0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 128, 0})
	if len(b) != 8+22 || b[8] != 0x2a || b[9] != 20 || b[3] != 0 || binary.BigEndian.Uint16(b[6:]) != 0 {
		t.Errorf("MODE SENSE of the capabilities page: % x", b)
	}
	if page := b[8:]; page[2]&0x08 == 0 || page[6]&0x09 != 0x09 || page[3] != 0 {
		t.Errorf("capabilities: % x; want reads DVD-ROM, ejects, locks, writes nothing", page)
	}
	for _, c := range [][]byte{make10(0x35), cdb12(0xa1), make10(0x2f)} {
		if got := h.do(c).outcome(); got != "good" && got != "5/20/00" {
			t.Errorf("CDB % x: %s", c, got)
		}
	}
}

func toc(msf, format, track byte) []byte {
	return []byte{0x43, msf << 1, format, 0, 0, 0, track, 1, 0, 0}
}

func TestDriveTableOfContents(t *testing.T) {
	h := newDrive(t, 5000).login("a") // 5000 + 150 blocks are 1 min 8 s 50 f
	for _, c := range []struct {
		name string
		cdb  []byte
		want []byte
	}{
		{"by LBA", toc(0, 0, 0), []byte{0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xaa, 0, 0, 0, 0x13, 0x88}},
		{"by time", toc(1, 0, 1), []byte{0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 2, 0, 0, 0x14, 0xaa, 0, 0, 1, 8, 50}},
		{"the lead-out", toc(0, 0, 0xaa), []byte{0, 10, 1, 1, 0, 0x14, 0xaa, 0, 0, 0, 0x13, 0x88}},
		{"sessions", toc(0, 1, 0), []byte{0, 10, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0}},
		{"sessions, format in the control byte", []byte{0x43, 0, 0, 0, 0, 0, 0, 1, 0, 0x40}, []byte{0, 10, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0}},
		{"in full", toc(1, 2, 1), slices.Concat([]byte{0, 46, 1, 1},
			[]byte{1, 0x14, 0, 0xa0, 0, 0, 0, 0, 1, 0, 0}, []byte{1, 0x14, 0, 0xa1, 0, 0, 0, 0, 1, 0, 0},
			[]byte{1, 0x14, 0, 0xa2, 0, 0, 0, 0, 1, 8, 50}, []byte{1, 0x14, 0, 1, 0, 0, 0, 0, 0, 2, 0})},
	} {
		if b := h.good(c.cdb); !bytes.Equal(b, c.want) {
			t.Errorf("%s:\n got % x\nwant % x", c.name, b, c.want)
		}
	}
	h.expect("no such track", h.do(toc(0, 0, 2)), "5/24/00")
	h.expect("no such session", h.do(toc(0, 2, 2)), "5/24/00")
	h.expect("no CD-Text", h.do(toc(0, 5, 0)), "5/24/00")
	if b := h.good([]byte{0x43, 0, 0, 0, 0, 0, 0, 0, 4, 0}); !bytes.Equal(b, []byte{0, 18, 1, 1}) {
		t.Errorf("cut: % x", b)
	}
	disc := h.good([]byte{0x51, 0, 0, 0, 0, 0, 0, 0, 64, 0})
	if len(disc) != 34 || disc[1] != 32 || disc[2]&0x1f != 0x0e || disc[4] != 1 {
		t.Errorf("READ DISC INFORMATION: % x", disc)
	}
	track := h.good([]byte{0x52, 1, 0, 0, 0, 1, 0, 0, 64, 0})
	if len(track) != 36 || binary.BigEndian.Uint32(track[24:]) != 5000 {
		t.Errorf("READ TRACK INFORMATION: % x", track)
	}
	h.expect("no such track", h.do([]byte{0x52, 1, 0, 0, 0, 2, 0, 0, 64, 0}), "5/24/00")
}

// features gives the feature codes of GET CONFIGURATION, and which are current.
func features(t *testing.T, b []byte) (current map[uint16]bool) {
	t.Helper()
	if len(b) < 8 || int(binary.BigEndian.Uint32(b)) != len(b)-4 {
		t.Fatalf("GET CONFIGURATION: % x", b)
	}
	current = map[uint16]bool{}
	for b = b[8:]; len(b) >= 4; b = b[4+int(b[3]):] {
		current[binary.BigEndian.Uint16(b)] = b[2]&1 != 0
	}
	return current
}

func TestDriveConfiguration(t *testing.T) {
	conf := func(rt byte, from uint16) []byte {
		return []byte{0x46, rt, byte(from >> 8), byte(from), 0, 0, 0, 1, 0, 0}
	}
	r := newDrive(t, 700)
	h := r.login("a")
	b := h.good(conf(0, 0))
	all := features(t, b)
	if profile := binary.BigEndian.Uint16(b[6:]); profile != 8 || !all[0x10] || !all[0x1e] || all[0x1f] {
		t.Errorf("with a CD: profile %04x, features %v", profile, all)
	}
	for code := range all {
		if one := features(t, h.good(conf(2, code))); len(one) != 1 {
			t.Errorf("feature %04x alone: %v", code, one)
		}
	}
	for code, is := range features(t, h.good(conf(1, 0))) {
		if !is {
			t.Errorf("feature %04x is not current and listed as such", code)
		}
	}
	if tail := features(t, h.good(conf(0, 0x1e))); len(tail) == 0 || len(tail) >= len(all) {
		t.Errorf("from 001Eh: %v", tail)
	}
	h.expect("reserved RT", h.do(conf(3, 0)), "5/24/00")
	h.good([]byte{0x1b, 0, 0, 0, 2, 0})
	if b := h.good(conf(0, 0)); binary.BigEndian.Uint16(b[6:]) != 0 || features(t, b)[0x10] {
		t.Errorf("without a disc: % x", b)
	}
	dvd := newDrive(t, 400000).login("a") // more than a CD holds
	if b := dvd.good(conf(0, 0)); binary.BigEndian.Uint16(b[6:]) != 0x10 || !features(t, b)[0x1f] {
		t.Errorf("a DVD has profile % x", b[6:8])
	}
}

func TestDriveTellsOfEjection(t *testing.T) {
	r := newDrive(t, 700)
	a, b := r.login("a"), r.login("b")
	events := []byte{0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0}
	event := func(h *host, what string, event, status byte) {
		t.Helper()
		want := []byte{0, 6, 4, 0x10, event, status, 0, 0}
		if got := h.good(events); !bytes.Equal(got, want) {
			t.Errorf("%s: got % x, want % x", what, got, want)
		}
	}
	event(a, "at rest", 0, 2)
	a.good([]byte{0x1e, 0, 0, 0, 1, 0})
	b.expect("locked", b.do([]byte{0x1b, 0, 0, 0, 2, 0}), "5/53/02")
	if page := b.good([]byte{0x5a, 8, 0x2a, 0, 0, 0, 0, 0, 128, 0})[8:]; page[6]&0x02 == 0 {
		t.Error("the lock does not show")
	}
	a.good([]byte{0x1e, 0, 0, 0, 0, 0})
	b.good([]byte{0x1b, 0, 0, 0, 2, 0})
	event(a, "ejected", 3, 1)
	event(a, "told once", 0, 1)
	a.expect("", a.do(tur), "2/3a/00")
	a.expect("", a.do(toc(0, 0, 0)), "2/3a/00")
	if m := a.good(cdb12(0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8)); m[1]&0x10 == 0 {
		t.Errorf("MECHANISM STATUS: % x", m)
	}
	a.good([]byte{0x1e, 0, 0, 0, 1, 0}) // locks a disc in, and none out
	b.good([]byte{0x1b, 0, 0, 0, 3, 0})
	event(a, "loaded", 2, 2)
	event(b, "each nexus has its own", 2, 2)
	a.expect("", a.do(tur), "6/28/00")
	a.good(tur)
	a.good([]byte{0x1e, 0, 0, 0, 0, 0})

	r.unit.SetOffline(true)
	event(a, "taken away", 3, 0)
	a.expect("", a.do(tur), "2/3a/00")
	r.unit.SetOffline(false)
	event(a, "put back", 2, 2)
	a.expect("", a.do(tur), "6/28/00")

	if got := a.good([]byte{0x4a, 1, 0, 0, 0x02, 0, 0, 0, 8, 0}); !bytes.Equal(got, []byte{0, 2, 0x80, 0x10}) {
		t.Errorf("a class that is not there: % x", got)
	}
	a.expect("asynchronous", a.do([]byte{0x4a, 0, 0, 0, 0x10, 0, 0, 0, 8, 0}), "5/24/00")
}

// No opcode, whatever its CDB, changes what is on the disc.
func TestDriveCannotBeWritten(t *testing.T) {
	r := newDrive(t, 700)
	h := r.login("a")
	for op := range 256 {
		cdb := make([]byte, 16)
		switch op >> 5 {
		case 0:
			cdb = cdb[:6]
		case 1, 2:
			cdb = cdb[:10]
		case 5:
			cdb = cdb[:12]
		}
		for _, sa := range []byte{0, 1, 2} {
			cdb[0], cdb[1], cdb[len(cdb)-2] = byte(op), sa, 1
			h.do(cdb, bytes.Repeat([]byte{0xff}, 4096)...)
		}
	}
	if slices.ContainsFunc(r.store.data, func(b byte) bool { return b != 0 }) {
		t.Error("a command has changed the disc")
	}
}
