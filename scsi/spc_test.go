package scsi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"io"
	"slices"
	"strings"
	"testing"

	"blockgate/backing"
	"blockgate/scsi"
)

func vpd(page byte) []byte { return []byte{0x12, 1, page, 1, 0, 0} }

func TestStandardInquiry(t *testing.T) {
	r := newRig(t, func(c *scsi.UnitConfig) { c.Vendor = "A vendor too long"; c.Product = "Prod\nuct" })
	n := r.attach("a")
	b := n.good([]byte{0x12, 0, 0, 1, 0, 0})
	want := "000006125b100002" + hex.EncodeToString([]byte("A vendorProd uct        1.0 ")) +
		strings.Repeat("00", 22) + "00a00460096004c0" + strings.Repeat("00", 30)
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if b := n.good([]byte{0x12, 0, 0, 0, 5, 0}); len(b) != 5 || b[4] != 91 {
		t.Errorf("cut to 5 bytes: % x", b)
	}
	p := n.expect("page code without EVPD", n.do([]byte{0x12, 0, 0x83, 0, 255, 0}), "5/24/00")
	if p.field() != "cdb 2" {
		t.Errorf("sense points at %q", p.field())
	}
	n.expect("INQUIRY leaves the attention", n.do(tur), "6/29/00")
}

func TestVPD(t *testing.T) {
	r := newRig(t, func(c *scsi.UnitConfig) { c.PhysicalBlock = 4096; c.MaxTransfer = 1 << 20; c.RotationRate = 7200 })
	n := r.attachPort("a", 7, nil)
	list := n.good(vpd(0))
	if want := []byte{0, 0, 0, 7, 0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2}; !bytes.Equal(list, want) {
		t.Errorf("page 00h % x, want % x", list, want)
	}
	for page := range 256 {
		p := n.do(vpd(byte(page)))
		if !slices.Contains(list[4:], byte(page)) {
			n.expect("unlisted page", p, "5/24/00")
			continue
		}
		if p.In[1] != byte(page) || int(binary.BigEndian.Uint16(p.In[2:])) != len(p.In)-4 {
			t.Errorf("page %02x: header % x of %d bytes", page, p.In[:4], len(p.In))
		}
	}
	if b := n.good(vpd(0x80)); string(b[4:]) != "serial-1" {
		t.Errorf("serial number %q", b[4:])
	}
	var kinds []byte
	for b := n.good(vpd(0x83))[4:]; len(b) > 0; b = b[4+b[3]:] {
		kinds = append(kinds, b[1]&0x3f)
		if d := b[4 : 4+b[3]]; b[1]&0x3f == 0x18 && string(d) != "iqn.2026-01.test:disk,t,0x0007\x00\x00" ||
			b[1]&0x3f == 0x08 && string(d) != "naa.600102030405060708090a0b0c0d0e0f\x00\x00\x00\x00" ||
			b[1]&0x3f == 0x14 && !bytes.Equal(d, []byte{0, 0, 0, 7}) {
			t.Errorf("designator %02x: %q", b[1], d)
		}
	}
	if want := []byte{0x01, 0x03, 0x08, 0x14, 0x15, 0x18, 0x28}; !bytes.Equal(kinds, want) {
		t.Errorf("designators % x, want % x", kinds, want)
	}
	b0 := n.good(vpd(0xb0))
	if len(b0) != 64 || b0[5] != 255 || b0[7] != 8 || binary.BigEndian.Uint32(b0[8:]) != 2048 {
		t.Errorf("block limits % x", b0)
	}
	if !bytes.Equal(b0[20:36], make([]byte, 16)) {
		t.Errorf("UNMAP limits % x of a store that cannot discard", b0[20:36])
	}
	if b := n.good(vpd(0xb1)); len(b) != 64 || binary.BigEndian.Uint16(b[4:]) != 7200 {
		t.Errorf("characteristics % x", b)
	}
	if b := n.good(vpd(0xb2)); len(b) != 8 || b[5] != 0 || b[6] != 0 {
		t.Errorf("provisioning % x", b)
	}
}

func TestUpdateShowsInInquiry(t *testing.T) {
	r := newRig(t, nil)
	n := r.login("a")
	if err := r.unit.Update(func(c *scsi.UnitConfig) { c.Vendor, c.BlockSize = "ACME", 4096 }); err != nil {
		t.Fatal(err)
	}
	n.expect("", n.do(tur), "6/3f/03")
	if b := n.good([]byte{0x12, 0, 0, 0, 96, 0}); string(b[8:16]) != "ACME    " {
		t.Errorf("vendor %q", b[8:16])
	}
	if r.unit.BlockSize() != 512 || r.unit.Config().BlockSize != 512 {
		t.Error("the block size changed while running")
	}
	if err := r.unit.Update(func(c *scsi.UnitConfig) { c.RotationRate = -1 }); err == nil {
		t.Error("a bad rotation rate is accepted")
	}
	n.expect("nothing changed", n.do(tur), "good")
}

func TestUnitAttentionsArePerNexus(t *testing.T) {
	r := newRig(t, nil)
	a, b := r.attach("a"), r.attach("b")
	a.expect("", a.do(tur), "6/29/00")
	a.expect("reported once", a.do(tur), "good")
	a.expect("not by another nexus's report", b.do(read10(0, 1)), "6/29/00")
	r.store.resize(2 << 20)
	r.unit.Resized()
	r.unit.Resized()
	sense := a.good([]byte{0x03, 0, 0, 0, 252, 0})
	if got := senseText(sense); got != "6/2a/09" {
		t.Errorf("REQUEST SENSE gives %s", got)
	}
	a.expect("taken by REQUEST SENSE", a.do(tur), "good")
	b.good([]byte{0x12, 0, 0, 0, 96, 0})
	if got := senseText(b.good([]byte{0x03, 1, 0, 0, 252, 0})); got != "6/2a/09" {
		t.Errorf("REQUEST SENSE in descriptor format gives %s", got)
	}
	if got := senseText(b.good([]byte{0x03, 0, 0, 0, 252, 0})); got != "0/00/00" {
		t.Errorf("then %s", got)
	}
	if r.unit.Blocks() != 4096 {
		t.Errorf("%d blocks", r.unit.Blocks())
	}
}

// A reset takes with it what it makes pointless, and is not told twice.
func TestResetSupersedesAttentions(t *testing.T) {
	r := newRig(t, nil)
	a, b := r.login("a"), r.attach("b")
	r.store.resize(2 << 20)
	r.unit.Resized()
	if err := r.dev.SetUnit(1, r.unit); err != nil {
		t.Fatal(err)
	}
	<-a.manage(scsi.TargetWarmReset, 0)
	<-a.manage(scsi.LUNReset, 0)
	a.expect("", a.do(tur), "6/29/03")
	a.expect("", a.do(tur), "6/3f/0e")
	a.expect("", a.do(tur), "good")
	b.expect("power on stands", b.do(tur), "6/29/00")
	b.expect("", b.do(tur), "6/3f/0e")
	b.expect("", b.do(tur), "good")
}

func reportLUNs(sel byte) []byte { return []byte{0xa0, 0, sel, 0, 0, 0, 0, 1, 0, 0, 0, 0} }

func TestHotAddAndRemove(t *testing.T) {
	r := newRig(t, nil)
	a := r.login("a")
	masked := r.attachPort("b", 1, func(lun uint64) bool { return lun == 0 })
	masked.do(tur)
	for _, lun := range []uint64{300, 20000, 5} {
		u := r.newUnit(func(c *scsi.UnitConfig) { c.Store, c.Serial = newGatedStore(4096), "x" })
		if err := r.dev.SetUnit(lun, u); err != nil {
			t.Fatal(err)
		}
	}
	masked.expect("a LUN it does not see", masked.do(tur), "good")
	masked.lun = scsi.FormatLUN(5)
	masked.expect("a LUN it does not see", masked.do(tur), "5/25/00")
	a.expect("", a.do(tur), "6/3f/0e")
	a.lun = scsi.FormatLUN(20000)
	a.expect("", a.do(tur), "6/29/00")
	a.expect("reported by another unit already", a.do(tur), "good")
	a.lun = scsi.FormatLUN(300)
	a.do(tur)
	a.good(read10(0, 1))

	list := a.good(reportLUNs(0))
	want := []byte{0, 0, 0, 32, 0, 0, 0, 0,
		0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0x41, 0x2c, 0, 0, 0, 0, 0, 0, 0xd2, 0, 0x4e, 0x20, 0, 0, 0, 0}
	if !bytes.Equal(list, want) {
		t.Errorf("REPORT LUNS\n got % x\nwant % x", list, want)
	}
	if b := a.good(reportLUNs(1)); !bytes.Equal(b[8:], []byte{0xc1, 1, 0, 0, 0, 0, 0, 0}) {
		t.Errorf("well known units % x", b)
	}
	if b := a.good(reportLUNs(2)); len(b) != 48 {
		t.Errorf("all units: %d bytes", len(b))
	}
	a.expect("reserved SELECT REPORT", a.do(reportLUNs(3)), "5/24/00")

	if err := r.dev.RemoveUnit(300); err != nil {
		t.Fatal(err)
	}
	a.good(reportLUNs(0))
	a.expect("removed", a.do(read10(0, 1)), "5/25/00")
	a.lun = 0
	a.expect("REPORT LUNS clears the attention", a.do(tur), "good")
	if err := r.dev.RemoveUnit(300); err == nil {
		t.Error("removing nothing is no error")
	}
	if err := r.dev.SetUnit(scsi.MaxLUN+1, r.unit); err == nil {
		t.Error("a LUN that cannot be addressed is accepted")
	}
	if got := len(r.dev.Units()); got != 3 {
		t.Errorf("%d units", got)
	}
}

func TestAbsentAndWellKnownLUNs(t *testing.T) {
	r := newRig(t, nil)
	n := r.attach("a")
	for _, lun := range []uint64{scsi.FormatLUN(1), 0xc102 << 48, 0x0100 << 48, 1, 0x8000 << 48} {
		n.lun = lun
		if b := n.good([]byte{0x12, 0, 0, 0, 96, 0}); b[0] != 0x7f {
			t.Errorf("LUN %016x: INQUIRY % x", lun, b)
		}
		n.expect("VPD", n.do(vpd(0)), "5/24/00")
		if got := senseText(n.good([]byte{0x03, 0, 0, 0, 18, 0})); got != "5/25/00" {
			t.Errorf("LUN %016x: REQUEST SENSE gives %s", lun, got)
		}
		if b := n.good(reportLUNs(0)); len(b) != 16 {
			t.Errorf("LUN %016x: REPORT LUNS % x", lun, b)
		}
		n.expect("", n.do(tur), "5/25/00")
		n.expect("", n.do(read10(0, 1)), "5/25/00")
		n.expect("", n.do([]byte{0xff, 0, 0, 0, 0, 0}), "5/25/00")
	}
	n.lun = 0xc101 << 48
	if b := n.good([]byte{0x12, 0, 0, 0, 96, 0}); b[0] != 0x1e {
		t.Errorf("well known unit: INQUIRY % x", b)
	}
	n.good(tur)
	n.good(vpd(0x83))
	n.expect("", n.do(read10(0, 1)), "5/20/00")
}

func TestLUNFormats(t *testing.T) {
	for _, n := range []uint64{0, 1, 255, 256, 16383, 16384, scsi.MaxLUN} {
		if got, ok := scsi.ParseLUN(scsi.FormatLUN(n)); !ok || got != n {
			t.Errorf("LUN %d comes back as %d, %v", n, got, ok)
		}
	}
	if n, ok := scsi.ParseLUN(0x4005 << 48); !ok || n != 5 {
		t.Errorf("flat space addressing of LUN 5: %d, %v", n, ok)
	}
	for _, f := range []uint64{0xc101 << 48, 0x0105 << 48, 0x8005 << 48, 0x0005000100000000, 0xd200000500000001, 0xe2 << 56} {
		if n, ok := scsi.ParseLUN(f); ok {
			t.Errorf("LUN field %016x is taken for %d", f, n)
		}
	}
}

func TestRemovableMedium(t *testing.T) {
	r := newRig(t, func(c *scsi.UnitConfig) { c.Removable = true })
	a, b := r.login("a"), r.login("b")
	eject, load := []byte{0x1b, 0, 0, 0, 2, 0}, []byte{0x1b, 0, 0, 0, 3, 0}
	prevent, allow := []byte{0x1e, 0, 0, 0, 1, 0}, []byte{0x1e, 0, 0, 0, 0, 0}
	a.good(prevent)
	a.expect("", a.do(eject), "5/53/02")
	b.expect("prevented by another", b.do(eject), "5/53/02")
	b.good(allow)
	b.expect("each nexus its own", b.do(eject), "5/53/02")
	a.good(allow)
	a.good(eject)
	for _, c := range [][]byte{tur, read10(0, 1), write10(0, 1), make10(0x25), make10(0x35)} {
		b.expect("ejected", b.do(c, block(1)...), "2/3a/00")
	}
	if got := senseText(a.good([]byte{0x03, 0, 0, 0, 18, 0})); got != "2/3a/00" {
		t.Errorf("REQUEST SENSE gives %s", got)
	}
	a.good(prevent)
	a.expect("load", a.do(load), "5/53/02")
	a.good(allow)
	a.good(load)
	a.good(tur)
	b.expect("", b.do(read10(0, 1)), "6/28/00")
	b.good(read10(0, 1))
	for power := byte(1); power < 16; power++ {
		a.good([]byte{0x1b, 1, 0, 0, power<<4 | 2, 0})
		a.good(tur)
	}
	flushes := r.store.flushes
	a.good([]byte{0x1b, 0, 0, 0, 0, 0})
	if r.store.flushes == flushes {
		t.Error("STOP does not write the cache back")
	}
	a.good(tur)

	fixed := newRig(t, nil).login("a")
	fixed.expect("eject of a fixed disk", fixed.do(eject), "5/24/00")
}

func TestOfflineAndReadOnly(t *testing.T) {
	r := newRig(t, nil)
	n := r.login("a")
	r.unit.SetOffline(true)
	n.expect("", n.do(tur), "2/04/00")
	n.expect("", n.do(read10(0, 1)), "2/04/00")
	n.good([]byte{0x12, 0, 0, 0, 96, 0})
	n.good([]byte{0x1a, 0, 0x3f, 0, 255, 0})
	r.unit.SetOffline(false)
	r.unit.SetReadOnly(true)
	n.good(read10(0, 1))
	n.expect("", n.do(write10(0, 1), block(1)...), "7/27/00")
	if b := n.good([]byte{0x1a, 0, 0x3f, 0, 255, 0}); b[2] != 0x90 {
		t.Errorf("device-specific parameter %02x", b[2])
	}
	r.unit.SetReadOnly(false)
	n.good(write10(0, 1), block(1)...)
}

func TestReserveRelease(t *testing.T) {
	r := newRig(t, nil)
	a, b := r.login("a"), r.login("b")
	for _, c := range []struct{ reserve, release []byte }{
		{[]byte{0x16, 0, 0, 0, 0, 0}, []byte{0x17, 0, 0, 0, 0, 0}}, {make10(0x56), make10(0x57)},
	} {
		a.good(c.reserve)
		a.good(c.reserve)
		for _, cdb := range [][]byte{tur, c.reserve, read10(0, 1), {0x1a, 0, 0x3f, 0, 255, 0}, {0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0}} {
			b.expect("reserved by another", b.do(cdb), "conflict")
		}
		b.good([]byte{0x12, 0, 0, 0, 96, 0})
		b.good(reportLUNs(0))
		a.good(write10(0, 1), block(1)...)
		a.good(c.release)
		b.good(c.reserve)
		b.good(c.release)
	}
}

// prOut is PERSISTENT RESERVE OUT with the basic parameter list.
func (h *host) prOut(sa, scopeType byte, key, saKey uint64, flags byte) *pending {
	list := make([]byte, 24)
	binary.BigEndian.PutUint64(list, key)
	binary.BigEndian.PutUint64(list[8:], saKey)
	list[20] = flags
	return h.do([]byte{0x5f, sa, scopeType, 0, 0, 0, 0, 0, 24, 0}, list...)
}

func TestPersistentReservations(t *testing.T) {
	r := newRig(t, nil)
	a, b, c := r.login("a"), r.login("b"), r.login("c")
	for i, h := range []*host{a, b} {
		h.expect("REGISTER", h.prOut(0, 0, 0, uint64(0xa+i), 0), "good")
	}
	a.expect("RESERVE", a.prOut(1, 0x06, 0xa, 0, 0), "good") // exclusive access, registrants only
	c.expect("", c.do(read10(0, 1)), "conflict")
	c.expect("", c.do(write10(0, 1)), "conflict")
	c.good(tur)
	c.good(make10(0x25))
	b.good(read10(0, 1))
	a.nx.Detach(nil)
	a2 := r.login("a")
	a2.good(write10(0, 1), block(1)...)
	c.expect("after the holder's logout", c.do(read10(0, 1)), "conflict")
	if s := r.unit.Reservations(); len(s.Registrations) != 2 {
		t.Errorf("registrations %+v", s)
	}
	b.expect("PREEMPT", b.prOut(4, 0x06, 0xb, 0xa, 0), "good")
	a2.expect("preempted", a2.do(tur), "6/2a/05")
	a2.expect("", a2.do(read10(0, 1)), "conflict")
	b.expect("APTPL without a store", b.prOut(6, 0, 0, 0xb, 1), "5/26/00")
	b.expect("RELEASE", b.prOut(2, 0x06, 0xb, 0, 0), "good")
	c.good(read10(0, 1))
}

func TestPreemptAndAbort(t *testing.T) {
	r := newRig(t, nil)
	a, b := r.login("a"), r.login("b")
	a.prOut(0, 0, 0, 0xa, 0)
	b.prOut(0, 0, 0, 0xb, 0)
	b.prOut(1, 0x03, 0xb, 0, 0)
	r.store.entered = make(chan struct{}, 1)
	release := r.store.hold(0)
	w := b.start(scsi.Simple, write10(0, 1), block(1))
	<-r.store.entered
	a.expect("PREEMPT AND ABORT", a.prOut(5, 0x03, 0xa, 0xb, 0), "good")
	newer := a.start(scsi.Simple, write10(0, 1), block(2))
	release()
	<-w.done
	<-newer.done
	b.expect("", w, "aborted")
	a.expect("", newer, "good")
	if data := a.good(read10(0, 1)); data[0] != 2 {
		t.Error("the aborted write came last")
	}
}

// TestPreemptAndAbortFencesAll: what the preempted initiator sends at that moment
// is aborted or refused; none of it reaches the medium later.
func TestPreemptAndAbortFencesAll(t *testing.T) {
	r := newRig(t, nil)
	a, b := r.login("a"), r.login("b")
	a.expect("REGISTER", a.prOut(0, 0, 0, 0xa, 0), "good")
	for round := range 300 {
		b.prOut(6, 0, 0, 0xb, 0) // REGISTER AND IGNORE EXISTING KEY
		b.expect("RESERVE", b.prOut(1, 0x05, 0xb, 0, 0), "good")
		b.good(write10(0, 1), block(0)...)
		started, fenced := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(fenced)
			for i := 1; ; i++ {
				w := b.start(scsi.Simple, write10(0, 1), block(byte(i)))
				if i == 1 {
					close(started)
				}
				<-w.done
				if w.outcome() != "good" && w.outcome() != "aborted" {
					return
				}
			}
		}()
		<-started
		a.expect("PREEMPT AND ABORT", a.prOut(5, 0x05, 0xa, 0xb, 0), "good")
		before := a.good(read10(0, 1))
		<-fenced
		if after := a.good(read10(0, 1)); !bytes.Equal(before, after) {
			t.Fatalf("round %d: a write of the preempted came after", round)
		}
		a.expect("RELEASE", a.prOut(2, 0x05, 0xa, 0, 0), "good")
		for b.do(tur).outcome() != "good" { // takes the unit attentions
		}
	}
}

// memReservations is a pr.Store.
type memReservations struct{ data []byte }

func (m *memReservations) Load(context.Context) ([]byte, error) { return m.data, nil }
func (m *memReservations) Save(_ context.Context, p []byte) error {
	m.data = bytes.Clone(p)
	return nil
}

func TestPersistThroughPowerLoss(t *testing.T) {
	kept := &memReservations{}
	r := newRig(t, func(c *scsi.UnitConfig) { c.Reservations = kept })
	a := r.login("a")
	a.expect("REGISTER", a.prOut(0, 0, 0, 0xa, 1), "good")
	a.expect("RESERVE", a.prOut(1, 0x01, 0xa, 0, 0), "good")

	r2 := newRig(t, func(c *scsi.UnitConfig) { c.Reservations = kept })
	a2, b2 := r2.login("a"), r2.login("b")
	b2.expect("", b2.do(write10(0, 1)), "conflict")
	a2.good(write10(0, 1), block(1)...)
}

func TestTargetPortGroups(t *testing.T) {
	r := newRig(t, nil)
	n := r.attachPort("a", 3, nil)
	r.attachPort("b", 2, nil)
	n.do(tur)
	want := []byte{0, 0, 0, 16, 0x00, 0x01, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3}
	cdb := []byte{0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}
	if b := n.good(cdb); !bytes.Equal(b, want) {
		t.Errorf("got % x, want % x", b, want)
	}
	cdb[9], cdb[8] = 12, 0
	if b := n.good(cdb); !bytes.Equal(b, want[:12]) {
		t.Errorf("cut: got % x, want % x", b, want[:12])
	}
	cdb[1], cdb[9] = 0x2a, 255
	if b := n.good(cdb); b[3] != 20 || b[4] != 0x10 {
		t.Errorf("extended header: % x", b)
	}
}

func TestLogSense(t *testing.T) {
	n := newRig(t, nil).login("a")
	log := func(page, sub byte) []byte { return []byte{0x4d, 0, 0x40 | page, sub, 0, 0, 0, 1, 0, 0} }
	for _, p := range n.good(log(0, 0))[4:] {
		if b := n.good(log(p, 0)); b[0] != p || int(binary.BigEndian.Uint16(b[2:])) != len(b)-4 {
			t.Errorf("page %02x: % x", p, b)
		}
	}
	n.good(log(0, 0xff))
	n.expect("unlisted page", n.do(log(0x0d, 0)), "5/24/00")
	n.expect("unlisted subpage", n.do(log(0x2f, 1)), "5/24/00")
}

// spinning is a store on a spinning medium.
type spinning struct{ *gatedStore }

func (spinning) Info() backing.Info { return backing.Info{Rotational: true} }

// Hosts take a disk for solid unless the store knows better or somebody says so.
func TestRotationRate(t *testing.T) {
	for _, c := range []struct {
		store      backing.Store
		configured int
		want       uint16
	}{
		{newGatedStore(1 << 20), 0, 1},
		{newGatedStore(1 << 20), 15000, 15000},
		{spinning{newGatedStore(1 << 20)}, 0, 0},
		{spinning{newGatedStore(1 << 20)}, 1, 1},
	} {
		r := newRig(t, func(u *scsi.UnitConfig) { u.Store, u.RotationRate = c.store, c.configured })
		if got := binary.BigEndian.Uint16(r.login("a").good(vpd(0xb1))[4:]); got != c.want {
			t.Errorf("%T with %d configured: %d, want %d", c.store, c.configured, got, c.want)
		}
	}
}

func TestSelfTest(t *testing.T) {
	r := newRig(t, nil)
	n := r.login("a")
	n.good([]byte{0x1d, 0x04, 0, 0, 0, 0})
	r.store.err = io.ErrUnexpectedEOF
	n.expect("", n.do([]byte{0x1d, 0x04, 0, 0, 0, 0}), "3/11/00")
	n.expect("parameter list", n.do([]byte{0x1d, 0x10, 0, 0, 8, 0}), "5/24/00")
}

func TestNewUnitRefuses(t *testing.T) {
	good := scsi.UnitConfig{Type: scsi.TypeDirectAccess, Store: newGatedStore(4096)}
	for name, change := range map[string]func(*scsi.UnitConfig){
		"no store":     func(c *scsi.UnitConfig) { c.Store = nil },
		"block size":   func(c *scsi.UnitConfig) { c.BlockSize = 1000 },
		"empty store":  func(c *scsi.UnitConfig) { c.Store = newGatedStore(100) },
		"exponent":     func(c *scsi.UnitConfig) { c.PhysicalBlock = 512 << 16 },
		"physical":     func(c *scsi.UnitConfig) { c.PhysicalBlock = 256 },
		"provisioning": func(c *scsi.UnitConfig) { c.Provisioning = 2 },
		"NAA":          func(c *scsi.UnitConfig) { c.NAA[0] = 0x50 },
		"serial":       func(c *scsi.UnitConfig) { c.Serial = strings.Repeat("x", 253) },
		"tape":         func(c *scsi.UnitConfig) { c.Type = 1 },
		"broken state": func(c *scsi.UnitConfig) { c.Reservations = &memReservations{data: []byte("{")} },
	} {
		c := good
		change(&c)
		if _, err := scsi.NewUnit(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := scsi.NewUnit(good); err != nil {
		t.Error(err)
	}
}
