package scsi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"testing"

	"blockgate/backing"
	"blockgate/backing/ram"
	"blockgate/scsi"
)

// atomicDisk is a memDisk whose store can write atomically.
type atomicDisk struct {
	*memDisk
	limits backing.AtomicLimits
}

func (a *atomicDisk) AtomicLimits() backing.AtomicLimits { return a.limits }

func (a *atomicDisk) WriteAtomic(_ context.Context, p []byte, off int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.enter("WriteAtomic", off, int64(len(p))); err != nil {
		return err
	}
	copy(a.data[off:], p)
	return nil
}

func newAtomic(t testing.TB, l backing.AtomicLimits, change func(*scsi.UnitConfig)) (*atomicDisk, *sbcRig) {
	d := &atomicDisk{newMemDisk(1<<20, backing.CapWriteAtomic), l}
	return d, newSBCRig(t, d.memDisk, func(c *scsi.UnitConfig) {
		c.Store = d
		if change != nil {
			change(c)
		}
	})
}

func atomicCDB(flags byte, lba uint64, boundary, nblocks uint16) []byte {
	c := make([]byte, 16)
	c[0], c[1] = 0x9c, flags
	binary.BigEndian.PutUint64(c[2:], lba)
	binary.BigEndian.PutUint16(c[10:], boundary)
	binary.BigEndian.PutUint16(c[12:], nblocks)
	return c
}

// atomicFields gives the five atomic fields of the Block Limits VPD page.
func atomicFields(r *sbcRig) (f [5]uint32) {
	b := r.good("VPD B0h", r.do([]byte{0x12, 1, 0xb0, 0, 64, 0}, nil)).in
	if len(b) != 64 || b[3] != 60 {
		r.t.Fatalf("Block Limits page % x", b)
	}
	for i := range f {
		f[i] = binary.BigEndian.Uint32(b[44+4*i:])
	}
	return f
}

func TestWriteAtomic(t *testing.T) {
	d, r := newAtomic(t, backing.AtomicLimits{Max: 64 << 10, Granularity: 4096, Alignment: 8192}, nil)
	if f, want := atomicFields(r), [5]uint32{128, 16, 8, 0, 0}; f != want {
		t.Errorf("atomic limits %v, want %v", f, want)
	}
	data := pattern(5, 16*512)
	r.good("", r.do(atomicCDB(0, 32, 0, 16), data))
	r.wantMedium("", 32*512, data)
	if d.count("WriteAtomic") != 1 || d.count("WriteAt") != 0 {
		t.Errorf("calls of the store: %v", d.calls)
	}
	r.good("FUA", r.do(atomicCDB(0x08, 32, 0, 8), data[:4096]))
	if !bytes.Equal(d.stable[32*512:32*512+4096], data[:4096]) {
		t.Error("FUA: GOOD before it was durable")
	}
	for name, c := range map[string]struct {
		cdb []byte
		out int
		asc byte
		at  int
	}{
		"more than the limit":  {atomicCDB(0, 0, 0, 136), 136 * 512, 0x24, 12},
		"granularity":          {atomicCDB(0, 0, 0, 7), 7 * 512, 0x24, 12},
		"alignment":            {atomicCDB(0, 8, 0, 8), 8 * 512, 0x24, 2},
		"a boundary":           {atomicCDB(0, 0, 8, 8), 8 * 512, 0x24, 10},
		"less data than said":  {atomicCDB(0, 0, 0, 16), 8 * 512, 0x24, 12},
		"protection":           {atomicCDB(0x20, 0, 0, 8), 8 * 512, 0x24, 1},
		"beyond the end":       {atomicCDB(0, 2048, 0, 8), 8 * 512, 0x21, -1},
		"over the end":         {atomicCDB(0, 2032, 0, 24), 24 * 512, 0x21, -1},
		"nothing, far outside": {atomicCDB(0, 1<<60, 0, 0), 0, 0x21, -1},
	} {
		before := d.count("WriteAtomic")
		got := r.do(c.cdb, make([]byte, c.out))
		r.want(name, got, 5, c.asc, 0)
		if c.at >= 0 && got.field != c.at && got.field != c.at+1 {
			t.Errorf("%s: sense points at byte %d, want %d", name, got.field, c.at)
		}
		if d.count("WriteAtomic") != before {
			t.Errorf("%s: refused and written", name)
		}
	}
	r.good("nothing", r.do(atomicCDB(0, 0, 0, 0), nil))
	r.unit.SetReadOnly(true)
	r.want("write protected", r.do(atomicCDB(0, 0, 0, 16), make([]byte, 16*512)), 7, 0x27, 0)
}

// Without the write cache GOOD means durable.
func TestWriteAtomicWithoutCache(t *testing.T) {
	d, r := newAtomic(t, backing.AtomicLimits{Max: 64 << 10, Granularity: 1, Alignment: 1}, func(c *scsi.UnitConfig) { c.WriteCache = false })
	data := pattern(6, 3*512)
	r.good("", r.do(atomicCDB(0, 5, 0, 3), data))
	if !bytes.Equal(d.stable[5*512:8*512], data) {
		t.Error("GOOD before it was durable")
	}
}

// A store that does not say so has neither the command nor the limits.
func TestWriteAtomicIsTheStores(t *testing.T) {
	r := newSBCRig(t, newMemDisk(1<<20, 0), nil)
	r.want("", r.do(atomicCDB(0, 0, 0, 1), make([]byte, 512)), 5, 0x20, 0)
	if f := atomicFields(r); f != [5]uint32{} {
		t.Errorf("atomic limits %v", f)
	}
	if b := r.good("", r.do([]byte{0xa3, 0x0c, 1, 0x9c, 0, 0, 0, 0, 0, 64, 0, 0}, nil)).in; b[1]&7 != 1 {
		t.Errorf("REPORT SUPPORTED OPERATION CODES: % x", b)
	}
}

// Readers of a real store find all of a write or nothing of it.
func TestWriteAtomicAgainstReaders(t *testing.T) {
	store, err := ram.New(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	rg := newRig(t, func(c *scsi.UnitConfig) { c.Store = store })
	w, rd := rg.login("w"), rg.login("r")
	const n = 256
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 60 {
			w.do(atomicCDB(0, 64, 0, n), bytes.Repeat([]byte{byte(i + 1)}, n*512)...)
		}
	}()
	for reading := true; reading; {
		select {
		case <-done:
			reading = false
		default:
		}
		b := rd.good(read10(64, n))
		if c := bytes.Count(b, b[:1]); c != len(b) {
			t.Fatalf("%d of %d bytes are %02x: a write was torn", c, len(b), b[0])
		}
	}
	w.expect("", w.do(atomicCDB(0, 64, 0, 0)), "good")
}
