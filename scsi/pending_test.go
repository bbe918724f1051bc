package scsi_test

import (
	"testing"

	"blockgate/scsi"
)

// A unit whose store is still to come is there, and hosts try again.
func TestPendingUnit(t *testing.T) {
	r := newRig(t, func(c *scsi.UnitConfig) { c.Pending = true })
	a := r.attach("a")
	a.expect("", a.do(tur), "6/29/00")
	if id := a.good([]byte{0x12, 0, 0, 0, 96, 0}); id[0] != 0 {
		t.Errorf("INQUIRY says peripheral %#x", id[0])
	}
	for what, cdb := range map[string][]byte{
		"READ": read10(0, 1), "TEST UNIT READY": tur, "READ CAPACITY": {0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"START UNIT": {0x1b, 0, 0, 0, 1, 0}, "PERSISTENT RESERVE IN": {0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0},
		"SYNCHRONIZE CACHE": {0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0},
	} {
		a.expect(what, a.do(cdb), "2/04/01")
	}
	a.expect("PERSISTENT RESERVE OUT", a.prOut(0, 0, 0, 1, 0), "2/04/01")
	if got := senseText(a.good([]byte{0x03, 0, 0, 0, 252, 0})); got != "2/04/01" {
		t.Errorf("REQUEST SENSE says %s", got)
	}
	if err := r.unit.Update(func(c *scsi.UnitConfig) { c.Pending = false }); err != nil {
		t.Fatal(err)
	}
	a.expect("a pending unit stays so", a.do(tur), "2/04/01")
	// The store has come: another unit takes the place.
	u := r.newUnit(func(c *scsi.UnitConfig) { c.Store = newGatedStore(4096) })
	if err := r.dev.SetUnit(0, u); err != nil {
		t.Fatal(err)
	}
	a.expect("", a.do(tur), "6/29/00")
	a.expect("", a.do(tur), "6/3f/0e")
	a.good(read10(0, 1))
}
