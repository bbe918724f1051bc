package scsi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"blockgate/backing"
	"blockgate/scsi"
)

// meteredDisk is a memDisk that tells what it uses.
type meteredDisk struct {
	*memDisk
	usage backing.Usage
	err   error
}

func (m *meteredDisk) Usage(context.Context) (backing.Usage, error) { return m.usage, m.err }

func newMetered(t *testing.T, usage backing.Usage, size int) (*meteredDisk, *sbcRig) {
	disk := &meteredDisk{memDisk: newMemDisk(size, backing.CapDiscard|backing.CapUsage), usage: usage}
	return disk, newSBCRig(t, disk.memDisk, func(c *scsi.UnitConfig) { c.Store = disk })
}

func logPage(page, sub byte, from uint16) []byte {
	return []byte{0x4d, 0, 0x40 | page, sub, 0, byte(from >> 8), byte(from), 1, 0, 0}
}

func TestProvisioningLog(t *testing.T) {
	disk, r := newMetered(t, backing.Usage{Used: 3<<20 + 1, Available: 9<<20 - 1}, 1<<20)
	vpd := r.good("VPD B2h", r.do([]byte{0x12, 1, 0xb2, 0, 64, 0}, nil)).in
	if vpd[4] != 11 { // 2^11 blocks of 512 bytes
		t.Errorf("THRESHOLD EXPONENT %d, want 11", vpd[4])
	}
	want := []byte{
		0x0c, 0, 0, 24,
		0, 1, 3, 8, 0, 0, 0, 8, 2, 0, 0, 0, // available: whole sets only
		0, 2, 3, 8, 0, 0, 0, 4, 1, 0, 0, 0, // used: a part counts in full
	}
	if b := r.good("", r.do(logPage(0x0c, 0, 0), nil)).in; !bytes.Equal(b, want) {
		t.Errorf("got  % x\nwant % x", b, want)
	}
	if b := r.good("", r.do(logPage(0x0c, 0, 2), nil)).in; !bytes.Equal(b[4:], want[16:]) || b[3] != 12 {
		t.Errorf("from parameter 2: % x", b)
	}
	if b := r.good("", r.do(logPage(0, 0, 0), nil)).in; !bytes.Equal(b[4:], []byte{0, 0x0c, 0x2f}) {
		t.Errorf("supported pages % x", b)
	}
	if b := r.good("", r.do(logPage(0, 0xff, 0), nil)).in; b[0] != 0x40 || !bytes.Equal(b[4:], []byte{0, 0, 0, 0xff, 0x0c, 0, 0x2f, 0}) {
		t.Errorf("supported subpages % x", b)
	}
	if got := r.do(logPage(0x0c, 0, 3), nil); got.asc != 0x24 || got.field != 5 {
		t.Errorf("beyond the last parameter: %+v", got)
	}
	disk.usage.Available = 1 << 60 // more than the field can hold
	if b := r.good("", r.do(logPage(0x0c, 0, 0), nil)).in; binary.BigEndian.Uint32(b[8:]) != 0xffffffff {
		t.Errorf("a count that is too large: % x", b)
	}
	disk.err = errors.New("the file system is gone")
	if got := r.do(logPage(0x0c, 0, 0), nil); got.status != scsi.CheckCondition {
		t.Errorf("a store that cannot tell: %+v", got)
	}
}

// What the store does not tell is nowhere claimed.
func TestNoProvisioningLogWithoutUsage(t *testing.T) {
	r := newSBCRig(t, newMemDisk(1<<20, backing.CapDiscard), nil)
	if got := r.do(logPage(0x0c, 0, 0), nil); got.asc != 0x24 {
		t.Errorf("got %+v", got)
	}
	if vpd := r.good("VPD B2h", r.do([]byte{0x12, 1, 0xb2, 0, 64, 0}, nil)).in; vpd[4] != 0 {
		t.Errorf("THRESHOLD EXPONENT %d, want 0", vpd[4])
	}
	if b := r.good("", r.do(logPage(0, 0, 0), nil)).in; !bytes.Equal(b[4:], []byte{0, 0x2f}) {
		t.Errorf("supported pages % x", b)
	}
}
