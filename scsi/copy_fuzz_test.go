package scsi_test

import (
	"bytes"
	"testing"

	"blockgate/backing"
	"blockgate/scsi"
)

// fuzzCopy sends one third-party copy command with an arbitrary parameter list and
// asks for its results: it ends once, in a bounded way, and leaves nothing.
func fuzzCopy(t *testing.T, cdb, list []byte, id uint32) {
	a, b := filledDisk(1, 64<<10, backing.CapsAll), filledDisk(2, 64<<10, 0)
	r := newCopyRig(t, a)
	r.add(b, func(c *scsi.UnitConfig) { c.BlockSize, c.DescriptorSense = 4096, true })
	before := [][]byte{a.contents(), b.contents()}
	outside := func(op string, off, n int64) error {
		if off < 0 || n < 0 || off+n > 64<<10 {
			t.Errorf("%s at %d of %d bytes", op, off, n)
		}
		return nil
	}
	a.fail, b.fail = outside, outside
	for lun := range 2 {
		h := r.login("a").on(lun)
		p := h.do(cdb, list...)
		if (len(p.Sense) > 0) != (p.Status == scsi.CheckCondition) || len(p.In) > 0 {
			t.Errorf("status %02x, sense % x, %d bytes", p.Status, p.Sense, len(p.In))
		}
		if p.Status == scsi.CheckCondition && p.outcome()[0] == '5' {
			if !bytes.Equal(a.contents(), before[0]) || !bytes.Equal(b.contents(), before[1]) {
				t.Error("refused, and something has been changed")
			}
		}
		before = [][]byte{a.contents(), b.contents()}
		for _, sa := range []byte{0x00, 0x04, 0x05, 0x07} {
			if p := h.do(copyIn(sa, id, 4096)); p.Status != scsi.Good {
				h.expect("results", p, "5/24/00")
			}
		}
	}
	r.close()
}

func FuzzExtendedCopy(f *testing.F) {
	cscds := [][]byte{cscdNAA(0, 512), cscdNAA(1, 4096), cscd(2, 1, []byte("unit 1"), 0)}
	for _, s := range [][]byte{
		b2b(0, 1, 8, 0, 0), b2b(ownUnit, ownUnit, 3, 0, 5), b2b(1, 0, 1, 15, 120), b2b(2, 1, 2, 0, 1),
		b2bOffset(0, 1, 1000, 1, 2, 3, 4), b2bOffset(1, 0, 1<<31, 1<<63, 2, 3, 4), {0x03, 0, 0, 0x14}, {0x0a},
	} {
		f.Add(copyList(1, cscds, [][]byte{s, b2b(0, 0, 1, 0, 9)}))
	}
	f.Add(copyList(1, [][]byte{{0xff, 0xe4}}, nil))
	f.Fuzz(func(t *testing.T, list []byte) {
		var id uint32
		if len(list) > 0 {
			id = uint32(list[0])
		}
		fuzzCopy(t, copyOut(0x00, 0, len(list)), list, id)
	})
}

func FuzzPopulateToken(f *testing.F) {
	for _, l := range [][]byte{
		populateList(0, ranges(0, 8)), populateList(600, ranges(0, 1, 5, 5, 100, 28)), populateList(0, ranges(1<<63, 1<<32-1)),
	} {
		f.Add(l, false)
	}
	for _, l := range [][]byte{
		useList(zeroToken(), 0, ranges(0, 8)), useList(nil, 1<<63, ranges(3, 1)), useList(zeroToken(), 9, ranges(3, 0, 15, 1)),
	} {
		f.Add(l, true)
	}
	f.Fuzz(func(t *testing.T, list []byte, use bool) {
		sa := byte(0x10)
		if use {
			sa = 0x11
		}
		fuzzCopy(t, copyOut(sa, 1<<31, len(list)), list, 1<<31)
	})
}

// FuzzUseToken uses tokens that may be those of a unit, changed in places.
func FuzzUseToken(f *testing.F) {
	f.Add([]byte{}, uint16(0), byte(0), uint64(0))
	f.Add(ranges(0, 4, 100, 2), uint16(600), byte(1), uint64(3))
	f.Add(ranges(0, 40), uint16(20), byte(0x80), uint64(1<<60))
	f.Fuzz(func(t *testing.T, list []byte, at uint16, change byte, offset uint64) {
		r := newCopyRig(t, filledDisk(1, 64<<10, 0), newMemDisk(64<<10, 0))
		h := r.login("a")
		token := h.token(0, 8, 64, 8)
		l := useList(token, offset, list[:min(len(list), 4096)])
		if int(at) < len(l) {
			l[at] ^= change
		}
		if p := h.on(1).useToken(1, l); p.Status == scsi.Good {
			if at >= 16 && at < 528 && change != 0 && bytes.Equal(l[16:24], token[:8]) {
				t.Error("a forged token was taken")
			}
		}
		r.close()
	})
}
