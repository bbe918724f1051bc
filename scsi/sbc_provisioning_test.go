package scsi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"testing"

	"blockgate/backing"
	"blockgate/scsi"
	"blockgate/scsi/sense"
)

func TestSBCWriteSame(t *testing.T) {
	edge := pattern(99, diskBlocks*512)
	eachVariant(t, func(t *testing.T, r *sbcRig) {
		for c, op := range opWriteSame {
			for _, block := range [][]byte{pattern(byte(c), 512), make([]byte, 512)} {
				for _, n := range []int{1, 2, 256, 2500} {
					copy(r.disk.data, edge)
					what := fmt.Sprintf("WRITE SAME(%d) of %d blocks", c, n)
					if res := r.good(what, r.do(cdbOf(op, 0, 7, uint32(n)), block)); res.outLen != 512 {
						t.Fatalf("%s asks for %d bytes", what, res.outLen)
					}
					r.wantMedium(what, 0, edge[:7*512])
					r.wantMedium(what, 7*512, bytes.Repeat(block, n))
					r.wantMedium(what, (7+n)*512, edge[(7+n)*512:])
				}
				copy(r.disk.data, edge)
				r.good("to the end", r.do(cdbOf(op, 0, diskBlocks-9, 0), block))
				r.wantMedium("to the end", (diskBlocks-9)*512, bytes.Repeat(block, 9))
				r.wantMedium("to the end", (diskBlocks-10)*512, edge[(diskBlocks-10)*512:][:512])
			}
			for _, sent := range []int{0, 256, 1024} {
				r.bad("data-out of the wrong size", r.do(cdbOf(op, 0, 0, 1), make([]byte, sent)),
					sense.InvalidFieldInCDB(map[int]int{10: 7, 16: 10}[c], -1))
			}
			for _, obsolete := range []byte{0x02, 0x04, 0x10, 0x18} {
				r.bad("obsolete and ANCHOR bits", r.do(cdbOf(op, obsolete, 0, 1), make([]byte, 512)),
					sense.InvalidFieldInCDB(1, -1))
			}
		}
		if res := r.good("NDOB", r.do(cdbOf(0x93, 0x01, 3, 20), nil)); res.outLen != 0 {
			t.Errorf("NDOB asks for %d bytes", res.outLen)
		}
		r.wantMedium("NDOB", 3*512, make([]byte, 20*512))
		r.bad("NDOB in 10", r.do(cdbOf(0x41, 0x01, 3, 20), nil), sense.InvalidFieldInCDB(1, -1))
	})
}

func TestSBCWriteSameUnmaps(t *testing.T) {
	for name, tc := range map[string]struct {
		caps backing.Caps
		how  scsi.Provisioning
		ok   bool
	}{
		"store discards":         {backing.CapDiscard, scsi.ProvisioningAuto, true},
		"store cannot":           {backing.CapsAll &^ backing.CapDiscard, scsi.ProvisioningAuto, false},
		"turned off":             {backing.CapsAll, scsi.ProvisioningFull, false},
		"discards and much else": {backing.CapsAll, scsi.ProvisioningAuto, true},
	} {
		t.Run(name, func(t *testing.T) {
			d := newMemDisk(diskBlocks*512, tc.caps)
			r := newSBCRig(t, d, func(c *scsi.UnitConfig) { c.Provisioning = tc.how })
			for _, op := range opWriteSame {
				for _, block := range [][]byte{make([]byte, 512), pattern(1, 512)} {
					r.good("fill", r.do(cdbOf(0x2a, 0, 0, 64), pattern(5, 64*512)))
					res := r.do(cdbOf(op, 0x08, 8, 16), block)
					if !tc.ok {
						r.bad("UNMAP", res, sense.InvalidFieldInCDB(1, 3))
						r.wantMedium("UNMAP refused", 0, pattern(5, 64*512))
						continue
					}
					r.good("UNMAP", res)
					r.wantMedium("UNMAP", 8*512, make([]byte, 16*512))
					if slices.Contains(d.alloc[8:24], true) || slices.Contains(d.alloc[:8], false) {
						t.Error("not what was meant is deallocated")
					}
				}
			}
			r.good("fill", r.do(cdbOf(0x2a, 0, 0, 64), pattern(5, 64*512)))
			r.good("zeroes without UNMAP", r.do(cdbOf(0x93, 0, 8, 16), make([]byte, 512)))
			if slices.Contains(d.alloc[:64], false) {
				t.Error("a write of zeroes deallocated blocks")
			}
		})
	}
}

// vastDisk says that it is larger than 2 TiB, and forgets what it is given.
type vastDisk struct {
	*memDisk
	written *int64
	cuts    *[]int64 // where discarded pieces ended
}

func newVastDisk() vastDisk { return vastDisk{newMemDisk(512, 0), new(int64), new([]int64)} }

func (vastDisk) Size() int64 { return 3 << 40 }

func (v vastDisk) WriteAt(_ context.Context, p []byte, _ int64) error {
	*v.written += int64(len(p))
	return nil
}

func (v vastDisk) Discard(_ context.Context, off, n int64) error {
	*v.written += n
	*v.cuts = append(*v.cuts, off+n)
	return nil
}

// blockLimits gives the Block Limits VPD page, which says what the limits are.
func blockLimits(r *sbcRig) []byte {
	r.t.Helper()
	return r.good("INQUIRY", r.do([]byte{0x12, 1, 0xb0, 0, 64, 0}, nil)).in
}

func TestSBCUnmapLimit(t *testing.T) {
	const bs, first = 4096, 1<<29 - 5
	v := newVastDisk()
	v.caps = backing.CapDiscard
	r := newSBCRig(t, newMemDisk(bs, 0), func(c *scsi.UnitConfig) { c.Store, c.BlockSize = v, bs })
	limit := uint64(binary.BigEndian.Uint32(blockLimits(r)[20:]))
	p := unmapParams([2]uint64{7, 1}, [2]uint64{first, limit})
	r.bad("one more", r.do(unmapCDB(len(p)), p), sense.InvalidFieldInParameterList(8+16+8, -1))
	if *v.written != 0 {
		t.Error("a refused UNMAP unmapped something")
	}
	p = unmapParams([2]uint64{7, 1}, [2]uint64{first, limit - 1})
	r.good("as many", r.do(unmapCDB(len(p)), p))
	if *v.written != int64(limit)*bs {
		t.Errorf("%d bytes were unmapped", *v.written)
	}
	// No deallocation unit is split where the range is cut.
	for _, at := range *v.cuts {
		if at%(1<<30) != 0 && at != 8*bs && at != int64(first+limit-1)*bs {
			t.Errorf("the range was cut at %d", at)
		}
	}
}

func TestSBCWriteSameLimit(t *testing.T) {
	const blocks = 3 << 31
	v := newVastDisk()
	r := newSBCRig(t, newMemDisk(512, 0), func(c *scsi.UnitConfig) { c.Store = v })
	limit := uint32(binary.BigEndian.Uint64(blockLimits(r)[36:]))
	block := make([]byte, 512)
	r.bad("one more", r.do(cdbOf(0x93, 0, 0, limit+1), block), sense.InvalidFieldInCDB(10, -1))
	r.bad("to the end", r.do(cdbOf(0x93, 0, 0, 0), block), sense.InvalidFieldInCDB(10, -1))
	r.bad("NDOB to the end", r.do(cdbOf(0x93, 1, blocks-uint64(limit)-1, 0), nil), sense.InvalidFieldInCDB(10, -1))
	if *v.written != 0 {
		t.Error("a refused WRITE SAME wrote something")
	}
	r.good("as many", r.do(cdbOf(0x93, 0, blocks-uint64(limit), 0), block))
	if *v.written != int64(limit)*512 {
		t.Errorf("%d bytes were written", *v.written)
	}
}

// unmapParams makes an UNMAP parameter list.
func unmapParams(descs ...[2]uint64) []byte {
	p := make([]byte, 8)
	for _, d := range descs {
		p = binary.BigEndian.AppendUint64(p, d[0])
		p = binary.BigEndian.AppendUint32(p, uint32(d[1]))
		p = append(p, 0, 0, 0, 0)
	}
	binary.BigEndian.PutUint16(p, uint16(len(p)-2))
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)-8))
	return p
}

func unmapCDB(n int) []byte { return []byte{0x42, 0, 0, 0, 0, 0, 0, byte(n >> 8), byte(n), 0} }

func TestSBCUnmap(t *testing.T) {
	d := newMemDisk(diskBlocks*512, backing.CapDiscard)
	r := newSBCRig(t, d, nil)
	fill := func() { copy(d.data, pattern(1, len(d.data))) }
	full := pattern(1, len(d.data))
	unmap := func(p []byte) sbcResult { return r.do(unmapCDB(len(p)), p) }

	fill()
	r.good("two ranges", unmap(unmapParams([2]uint64{1, 2}, [2]uint64{diskBlocks - 1, 1})))
	want := bytes.Clone(full)
	clear(want[512 : 3*512])
	clear(want[(diskBlocks-1)*512:])
	r.wantMedium("two ranges", 0, want)

	fill()
	for name, p := range map[string][]byte{
		"no list":                nil,
		"header only":            unmapParams(),
		"no blocks":              unmapParams([2]uint64{0, 0}, [2]uint64{5, 0}),
		"no blocks at the end":   unmapParams([2]uint64{diskBlocks, 0}),
		"descriptor cut off":     unmapParams([2]uint64{0, 1})[:23],
		"descriptor length zero": append(make([]byte, 8), unmapParams([2]uint64{0, 1})[8:]...),
	} {
		r.good(name, unmap(p))
		r.wantMedium(name, 0, full)
	}
	oor := sense.LBAOutOfRange(0)
	oor.InfoValid = false
	most := binary.BigEndian.Uint32(blockLimits(r)[24:])
	var many [][2]uint64
	for i := range uint64(most) + 1 {
		many = append(many, [2]uint64{i, 1})
	}
	for name, tc := range map[string]struct {
		p    []byte
		want sense.Sense
	}{
		"beyond the end":     {unmapParams([2]uint64{0, 1}, [2]uint64{diskBlocks, 1}), oor},
		"over the end":       {unmapParams([2]uint64{0, 1}, [2]uint64{diskBlocks - 1, 2}), oor},
		"overflow":           {unmapParams([2]uint64{0, 1}, [2]uint64{math.MaxUint64, 2}), oor},
		"no blocks, far out": {unmapParams([2]uint64{0, 1}, [2]uint64{diskBlocks + 1, 0}), oor},
		"short header":       {make([]byte, 7), sense.ParameterListLength()},
		"more descriptors":   {unmapParams(many...), sense.InvalidFieldInParameterList(2, -1)},
	} {
		r.bad(name, unmap(tc.p), tc.want)
		r.wantMedium(name+": nothing may be unmapped", 0, full)
	}
	r.good("as many descriptors", unmap(unmapParams(many[:most]...)))

	fill()
	p := unmapParams([2]uint64{0, 1})
	r.bad("less data than announced", r.do(unmapCDB(len(p)+16), p), sense.ParameterListLength())
	r.bad("ANCHOR", r.do([]byte{0x42, 1, 0, 0, 0, 0, 0, 0, 24, 0}, p), sense.InvalidFieldInCDB(1, -1))
	r.wantMedium("refused", 0, full)

	plain := newSBCRig(t, newMemDisk(diskBlocks*512, backing.CapsAll&^backing.CapDiscard), nil)
	plain.bad("a store that cannot", plain.do(unmapCDB(24), p), sense.InvalidOpcode())
}

// TestSBCDiscardRefused: a store that cannot deallocate a range after all still
func TestSBCDiscardRefused(t *testing.T) {
	for _, caps := range []backing.Caps{backing.CapDiscard, backing.CapDiscard | backing.CapWriteZeroes} {
		d := newMemDisk(diskBlocks*512, caps)
		d.fail = func(op string, _, _ int64) error {
			if op == "Discard" || op == "WriteZeroes" {
				return fmt.Errorf("here: %w", backing.ErrNotSupported)
			}
			return nil
		}
		r := newSBCRig(t, d, nil)
		copy(d.data, pattern(1, len(d.data)))
		p := unmapParams([2]uint64{2, 3000})
		r.good("UNMAP", r.do(unmapCDB(len(p)), p))
		r.wantMedium("UNMAP", 2*512, make([]byte, 3000*512))
		r.wantMedium("UNMAP", 0, pattern(1, 1024))
	}
}

func TestSBCGetLBAStatus(t *testing.T) {
	type desc struct {
		lba uint64
		n   uint32
		st  byte
	}
	status := func(r *sbcRig, lba uint64, alloc uint32) []desc {
		t.Helper()
		c := make([]byte, 16)
		c[0], c[1] = 0x9e, 0x12
		binary.BigEndian.PutUint64(c[2:], lba)
		binary.BigEndian.PutUint32(c[10:], alloc)
		res := r.good("GET LBA STATUS", r.do(c, nil))
		if int(binary.BigEndian.Uint32(res.in))+4 != len(res.in) {
			t.Fatalf("PARAMETER DATA LENGTH %d in %d bytes", binary.BigEndian.Uint32(res.in), len(res.in))
		}
		var out []desc
		for p := res.in[8:]; len(p) > 0; p = p[16:] {
			out = append(out, desc{binary.BigEndian.Uint64(p), binary.BigEndian.Uint32(p[8:]), p[12]})
		}
		return out
	}
	check := func(got, want []desc) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("GET LBA STATUS: %v, want %v", got, want)
		}
	}
	r := newSBCRig(t, newMemDisk(diskBlocks*512, backing.CapsAll), nil)
	check(status(r, 0, 1000), []desc{{0, diskBlocks, 1}})
	r.good("write", r.do(cdbOf(0x2a, 0, 10, 5), make([]byte, 5*512)))
	check(status(r, 0, 1000), []desc{{0, 10, 1}, {10, 5, 0}, {15, diskBlocks - 15, 1}})
	check(status(r, 12, 1000), []desc{{12, 3, 0}, {15, diskBlocks - 15, 1}})
	check(status(r, 0, 24), []desc{{0, 10, 1}})
	check(status(r, diskBlocks-1, 24), []desc{{diskBlocks - 1, 1, 1}})
	p := unmapParams([2]uint64{11, 2})
	r.good("unmap", r.do(unmapCDB(len(p)), p))
	check(status(r, 10, 1000), []desc{{10, 1, 0}, {11, 2, 1}, {13, 2, 0}, {15, diskBlocks - 15, 1}})

	// Blocks larger than the store's unit: one byte allocated maps the block.
	big := newMemDisk(64*4096, backing.CapsAll)
	big.alloc[8*3+7], big.alloc[8*5], big.alloc[8*5+2] = true, true, true
	rb := newSBCRig(t, big, func(c *scsi.UnitConfig) { c.BlockSize = 4096 })
	check(status(rb, 0, 1000), []desc{{0, 3, 1}, {3, 1, 0}, {4, 1, 1}, {5, 1, 0}, {6, 58, 1}})

	mapped := newSBCRig(t, newMemDisk(diskBlocks*512, 0), nil)
	check(status(mapped, 7, 1000), []desc{{7, diskBlocks - 7, 0}})

	// Thin, and the store does not tell what is allocated: there is no true answer.
	untold := newSBCRig(t, newMemDisk(diskBlocks*512, backing.CapsAll&^backing.CapExtents), nil)
	ask := make([]byte, 16)
	ask[0], ask[1], ask[13] = 0x9e, 0x12, 24
	untold.bad("GET LBA STATUS", untold.do(ask, nil), sense.InvalidFieldInCDB(1, 4))

	vast := newSBCRig(t, newMemDisk(512, 0), func(c *scsi.UnitConfig) { c.Store = newVastDisk() })
	check(status(vast, 0, 1000), []desc{{0, math.MaxUint32, 0}, {math.MaxUint32, 3<<31 - math.MaxUint32, 0}})

	oor := sense.LBAOutOfRange(0)
	oor.InfoValid = false
	for _, lba := range []uint64{diskBlocks, diskBlocks + 1, 1 << 63, math.MaxUint64} {
		c := make([]byte, 16)
		c[0], c[1], c[13] = 0x9e, 0x12, 24
		binary.BigEndian.PutUint64(c[2:], lba)
		r.bad("GET LBA STATUS", r.do(c, nil), oor)
	}
}

// A store that was opened read-only looks as thin as it would otherwise, and
// UNMAP is refused for the write protection and not as unknown.
func TestSBCThinAndReadOnly(t *testing.T) {
	r := newSBCRig(t, newMemDisk(diskBlocks*512, 0), func(c *scsi.UnitConfig) {
		c.Store = readOnlyDisk{newMemDisk(diskBlocks*512, backing.CapsAll&^backing.CapsModify)}
	})
	if b := r.good("READ CAPACITY(16)", r.do([]byte{0: 0x9e, 1: 0x10, 13: 32, 15: 0}, nil)).in; b[14]&0x80 == 0 {
		t.Errorf("LBPME is not set: % x", b)
	}
	p := unmapParams([2]uint64{0, 1})
	r.bad("UNMAP", r.do(unmapCDB(len(p)), p), sense.WriteProtected())
	r.bad("WRITE SAME", r.do(cdbOf(0x93, 0x08, 0, 1), make([]byte, 512)), sense.WriteProtected())
	r.bad("BLOCK ERASE", r.do(sanitizeCDB(saBlockErase, 0), nil), sense.WriteProtected())
}

// readOnlyDisk is a memDisk that was opened read-only.
type readOnlyDisk struct{ *memDisk }

func (readOnlyDisk) Info() backing.Info { return backing.Info{ReadOnly: true} }
