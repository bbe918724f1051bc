package scsi_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"blockgate/backing"
	"blockgate/scsi"
)

// A list may name several units, by each of the designators that they report,
// and each segment one pair of them.
func TestExtendedCopyBetweenUnits(t *testing.T) {
	a, b, c := filledDisk(1, 64<<10, 0), filledDisk(2, 64<<10, backing.CapsAll), filledDisk(3, 64<<10, 0)
	r := newCopyRig(t, a, b)
	r.add(c, func(u *scsi.UnitConfig) { u.BlockSize = 4096 })
	defer r.close()
	h := r.login("a")

	wantA, wantB, wantC := a.contents(), b.contents(), c.contents()
	copy(wantB[5*512:], wantA[2*512:][:3*512]) // LUN 0 to 1
	copy(wantC[4*4096:], wantB[:2*4096])       // LUN 1 to 2, in the source's blocks
	copy(wantA[100*512:], wantC[4096:][:4096]) // LUN 2 to 0, in the destination's
	copy(wantA[7:], wantB[3*512+9:][:1000])    // by bytes
	copy(wantB[50*512:], wantB[:20*512])       // inside LUN 1
	segments := [][]byte{
		b2b(ownUnit, 1, 3, 2, 5), b2b(1, 0, 16, 0, 4), b2b(0, 2, 8, 8, 100),
		b2bOffset(1, ownUnit, 1000, 3, 0, 9, 7), b2b(1, 1, 20, 0, 50), b2b(1, 0, 0, 0, 0),
	}
	segments[2] = b2b(0, 2, 8, 1, 100)
	segments[2][1] = 0x02 // DC
	h.expect("", h.copy(copyList(1, [][]byte{cscdNAA(2, 4096), cscd(2, 1, []byte("unit 1"), 512), cscdNAA(0, 0)}, segments)), "good")
	for i, m := range []*memDisk{a, b, c} {
		if want := [][]byte{wantA, wantB, wantC}[i]; !bytes.Equal(m.contents(), want) {
			t.Errorf("LUN %d does not hold what it should", i)
		}
	}
	if n := b.count("CopyRange"); n != 1 {
		t.Errorf("the store copied %d times by itself, want 1", n)
	}
}

// A designator that two units have names neither of them, except for the unit that
// has the command.
func TestExtendedCopyAmbiguousDesignator(t *testing.T) {
	r := newCopyRig(t, filledDisk(0, 64<<10, 0), filledDisk(1, 64<<10, 0))
	r.add(filledDisk(2, 64<<10, 0), func(c *scsi.UnitConfig) { c.NAA = [16]byte(naaOf(1)) })
	defer r.close()
	h := r.login("a")
	list := copyList(1, [][]byte{cscdNAA(1, 512)}, [][]byte{b2b(0, ownUnit, 1, 0, 9)})
	h.expect("on another unit", h.copy(list), "a/0d/02")
	h.expect("on one of the two", h.on(2).copy(list), "good")
	if b := h.on(2).good(read10(9, 1)); !bytes.Equal(b, pattern(2, 512)) {
		t.Error("copied from the other one")
	}
}

// A copy whose source and destination overlap gives what the source held before.
func TestExtendedCopyOverlapping(t *testing.T) {
	const size = 3 << 20 // several pieces
	for _, caps := range []backing.Caps{0, backing.CapsAll} {
		for _, c := range [][2]uint64{{0, 1}, {1, 0}, {0, 1024}, {1025, 1}, {5, 5}} {
			m := filledDisk(1, size, caps)
			r := newCopyRig(t, m)
			want := m.contents()
			const n = 5000
			copy(want[c[1]*512:][:n*512], bytes.Clone(want[c[0]*512:][:n*512]))
			h := r.login("a")
			h.expect("", h.copy(copyList(1, nil, [][]byte{b2b(ownUnit, ownUnit, n, c[0], c[1])})), "good")
			if !bytes.Equal(m.contents(), want) {
				t.Errorf("caps %x, from %d to %d: wrong content", caps, c[0], c[1])
			}
			r.close()
		}
	}
}

// What is durable when the status comes is as for a write: all of it without a
// write cache. And a copy of zeroes to a thin unit takes no space.
func TestExtendedCopyDurableAndSparse(t *testing.T) {
	src, dst := newMemDisk(1<<20, 0), filledDisk(9, 1<<20, backing.CapsAll)
	copy(src.data[:4096], pattern(1, 4096))
	r := newCopyRig(t, src)
	r.add(dst, func(c *scsi.UnitConfig) { c.WriteCache = false })
	defer r.close()
	h := r.login("a")
	h.expect("", h.copy(copyList(1, [][]byte{cscdNAA(1, 512)}, [][]byte{b2b(ownUnit, 0, 8, 0, 0), b2b(ownUnit, 0, 100, 8, 8)})), "good")
	if !bytes.Equal(dst.stable[:108*512], src.data[:108*512]) {
		t.Error("the copy is not on the medium although there is no write cache")
	}
	if !dst.alloc[0] || slices.Contains(dst.alloc[8:108], true) || !dst.alloc[108] {
		t.Errorf("allocated: %v", dst.alloc[:110])
	}
}

// Between two stores that have a way of their own nothing is read and written; where
// it turns out that they have not, or it fails, the copy is made all the same, and
// what is wrong is laid to the end that it is wrong with.
func TestExtendedCopyByTheStores(t *testing.T) {
	unreadable := errors.New("a bad sector")
	for name, c := range map[string]struct {
		fail     error // of CopyFrom
		readable bool
		want     string
	}{
		"copied":        {nil, true, "good"},
		"not supported": {backing.ErrNotSupported, true, "good"},
		"another error": {errors.New("?"), true, "good"},
		"source fails":  {backing.ErrNotSupported, false, "a/0d/01"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := filledDisk(1, 1<<20, 0), filledDisk(2, 1<<20, backing.CapsAll)
			want := append(bytes.Clone(a.contents()[:512*500]), b.contents()[512*500:]...)
			b.fail = func(op string, _, _ int64) error {
				if op == "CopyFrom" {
					return c.fail
				}
				return nil
			}
			if !c.readable {
				a.fail = func(string, int64, int64) error { return unreadable }
			}
			r := newCopyRig(t, a)
			r.add(b, func(u *scsi.UnitConfig) { u.WriteCache = false })
			defer r.close()
			h := r.login("a")
			h.expect("", h.copy(copyList(1, [][]byte{cscdNAA(1, 512)}, [][]byte{b2b(ownUnit, 0, 500, 0, 0)})), c.want)
			if !c.readable {
				return
			}
			if !bytes.Equal(b.contents(), want) || !bytes.Equal(b.stable[:500*512], want[:500*512]) {
				t.Error("LUN 1 does not hold what it should, or not durably")
			}
			if n := b.count("WriteAt") + b.count("WriteFUA"); (n == 0) != (c.fail == nil) {
				t.Errorf("%d writes", n)
			}
		})
	}
}

// Everything that can be told from the list itself is ILLEGAL REQUEST, with a
// pointer where the standard gives one, and nothing is copied.
func TestExtendedCopyRefusals(t *testing.T) {
	one, seg := cscdNAA(1, 512), b2b(0, 0, 4, 0, 100)
	list := copyList(1, [][]byte{one}, [][]byte{b2b(0, 0, 4, 0, 200), seg})
	change := func(at int, b ...byte) []byte {
		l := bytes.Clone(list)
		copy(l[at:], b)
		return l
	}
	many := func(n int, d []byte) [][]byte { return slices.Repeat([][]byte{d}, n) }
	for _, c := range []struct {
		name  string
		list  []byte
		want  string
		field string
	}{
		{"no header", list[:15], "5/1a/00", ""},
		{"cut in the CSCD descriptors", list[:40], "5/1a/00", ""},
		{"cut in a segment", list[:len(list)-1], "5/1a/00", ""},
		{"segment list ends within a segment", change(8, 0, 0, 0, 27), "5/1a/00", ""},
		{"reserved list identifier usage", change(1, 0x08), "5/26/00", "list 1.4"},
		{"list identifier that is not used", change(1, 0x18), "5/26/00", "list 0"},
		{"broken CSCD list length", change(2, 0, 31), "5/26/00", "list 2"},
		{"inline data", append(change(12, 0, 0, 0, 4), 1, 2, 3, 4), "5/26/0b", "list 12"},
		{"too many CSCDs", copyList(1, many(65, one), [][]byte{seg}), "5/26/06", "list 2"},
		{"too many segments", copyList(1, [][]byte{one}, many(257, seg)), "5/26/08", "list 8"},
		{"too long", copyList(1, many(65, one), many(600, seg)), "5/1a/00", ""},
		{"N_Port_Name CSCD", change(16, 0xe0), "5/26/07", "list 16"},
		{"CSCD extension", change(16, 0xff), "5/26/07", "list 16"},
		{"designator too long", change(16+7, 21), "5/26/00", "list 23"},
		{"stream segment", change(48, 0x03), "5/26/09", "list 48"},
		{"embedded data segment", change(76, 0x05), "5/26/09", "list 76"},
		{"segment length", change(76+2, 0, 0x17), "5/26/00", "list 78"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := filledDisk(1, 1<<20, 0), filledDisk(2, 1<<20, 0)
			r := newCopyRig(t, a, b)
			defer r.close()
			h := r.login("a")
			p := h.expect("", h.copy(c.list), c.want)
			if f := p.field(); f != c.field {
				t.Errorf("points at %q, want %q", f, c.field)
			}
			if b.count("WriteAt") != 0 {
				t.Error("something has been copied")
			}
		})
	}
}

// What is found wrong while segments are processed is COPY ABORTED; the segments
// before it have been copied, and COMMAND-SPECIFIC INFORMATION says which failed.
func TestExtendedCopyAborts(t *testing.T) {
	good := b2b(0, 1, 1, 0, 0)
	cscds := [][]byte{cscdNAA(0, 512), cscdNAA(1, 512), cscdNAA(9, 512), cscdNAA(1, 4096), cscdNAA(1, 512), cscd(1, 3, naaOf(0)[:8], 512)}
	cscds[4][1] = 1 // a tape
	for _, c := range []struct {
		name string
		seg  []byte
		want string
		sd   bool // the pointer is into the segment
		at   int
	}{
		{"no such CSCD", b2b(0, 7, 1, 0, 0), "a/08/04", true, 6},
		{"no such source CSCD", b2b(0xfffe, 0, 1, 0, 0), "a/08/04", true, 4},
		{"unknown unit", b2b(2, 0, 1, 0, 0), "a/0d/02", false, 16 + 2*32},
		{"half a designator", b2b(0, 5, 1, 0, 0), "a/0d/02", false, 16 + 5*32},
		{"block length", b2b(0, 3, 1, 0, 0), "a/26/00", false, 16 + 3*32 + 29},
		{"device type", b2b(4, 0, 1, 0, 0), "a/0d/03", false, 16 + 4*32},
		{"beyond the source", b2b(0, 1, 2, 2047, 0), "a/00/00", true, 12},
		{"beyond the destination", b2b(0, 1, 2, 0, 2047), "a/00/00", true, 20},
		{"far beyond", b2b(0, 1, 2, 1<<64-1, 0), "a/00/00", true, 12},
		{"offset", b2bOffset(0, 1, 1, 0, 0, 512, 0), "a/26/00", true, 28},
		{"destination offset", b2bOffset(0, 1, 1, 0, 0, 0, 512), "a/26/00", true, 30},
		{"too long a segment", b2bOffset(0, 1, 256<<20+1, 0, 0, 0, 0), "a/26/00", true, 8},
		{"beyond by an offset", b2bOffset(0, 1, 512, 2047, 0, 1, 0), "a/00/00", true, 12},
	} {
		for _, descriptor := range []bool{false, true} {
			t.Run(fmt.Sprint(c.name, descriptor), func(t *testing.T) {
				a, b := filledDisk(1, 1<<20, 0), filledDisk(2, 1<<20, 0)
				r := newCopyRig(t)
				r.add(a, func(u *scsi.UnitConfig) { u.DescriptorSense = descriptor })
				r.add(b, nil)
				defer r.close()
				h := r.login("a")
				p := h.expect("", h.copy(copyList(1, cscds, [][]byte{good, c.seg, good})), c.want)
				info, sks := p.Sense[8:12], p.Sense[15:18]
				if descriptor {
					d := descriptors(t, p.Sense)
					info, sks = d[0x01][8:12], d[0x02][4:7]
				}
				if n := binary.BigEndian.Uint32(info); n != 1 {
					t.Errorf("segment %d, want 1", n)
				}
				sd, at := sks[0]&0x20 != 0, int(binary.BigEndian.Uint16(sks[1:]))
				if sks[0]&0x80 == 0 || sd != c.sd || at != c.at {
					t.Errorf("points at %d (segment %v), want %d (%v)", at, sd, c.at, c.sd)
				}
				if !bytes.Equal(b.data[:512], a.data[:512]) {
					t.Error("the segment before has not been copied")
				}
				if b.count("WriteAt") != 1 {
					t.Error("copied more than the segment before")
				}
			})
		}
	}
}

// descriptors splits descriptor format sense data, by type.
func descriptors(t *testing.T, s []byte) map[byte][]byte {
	t.Helper()
	if s[0] != 0x72 || int(s[7])+8 != len(s) {
		t.Fatalf("sense % x", s)
	}
	m := map[byte][]byte{}
	for s = s[8:]; len(s) > 0; s = s[2+s[1]:] {
		m[s[0]] = s[:2+s[1]]
	}
	return m
}

// A copy of zero length, and none at all, are not errors.
func TestExtendedCopyOfNothing(t *testing.T) {
	m := newMemDisk(1<<20, 0)
	r := newCopyRig(t, m)
	defer r.close()
	h := r.login("a")
	h.expect("no list", h.copy(nil), "good")
	h.expect("no descriptors", h.copy(copyList(1, nil, nil)), "good")
	h.expect("no segments", h.copy(copyList(1, [][]byte{cscdNAA(9, 512)}, nil)), "good")
	if m.count("WriteAt") != 0 {
		t.Error("something was written")
	}
	h.expect("a list beyond all bounds", h.do(copyOut(0, 0, 1<<31)), "5/1a/00")
	h.expect("a list that comes short", h.do(copyOut(0, 0, 64), copyList(1, nil, nil)...), "5/1a/00")
}

// A unit fails a copy in its own way, which the sense data carries.
func TestExtendedCopyForwardsFailures(t *testing.T) {
	failing := func(what string) *memDisk {
		m := filledDisk(1, 8<<20, 0)
		m.fail = func(op string, off, _ int64) error {
			if op == what && off >= 4<<20 {
				return backing.ErrNoSpace
			}
			return nil
		}
		return m
	}
	const n = 12288 // 6 MiB
	list := copyList(1, [][]byte{cscdNAA(0, 512), cscdNAA(1, 512)}, [][]byte{b2b(0, 1, n, 0, 0)})
	for _, c := range []struct {
		name     string
		src, dst *memDisk
		source   bool
	}{
		{"source", failing("ReadAt"), newMemDisk(8<<20, 0), true},
		{"destination", newMemDisk(8<<20, 0), failing("WriteAt"), false},
	} {
		for _, descriptor := range []bool{false, true} {
			r := newCopyRig(t, c.src)
			r.add(c.dst, nil)
			r.add(newMemDisk(512, 0), func(u *scsi.UnitConfig) { u.DescriptorSense = descriptor })
			h := r.login("a").on(2)
			p := h.expect(c.name, h.copy(list), "a/0d/01")
			var fwd []byte // status and sense data
			if descriptor {
				d := descriptors(t, p.Sense)
				if f := d[0x0c]; (f[2]&0x0f == 1) != c.source {
					t.Errorf("%s: descriptor % x", c.name, f)
				}
				fwd = d[0x0c][3:]
				if residue := binary.BigEndian.Uint64(d[0x00][4:]); residue != n-8192 {
					t.Errorf("%s: %d blocks left", c.name, residue)
				}
			} else {
				at, other := p.Sense[8], p.Sense[9]
				if !c.source {
					at, other = other, at
				}
				if at == 0 || other != 0 {
					t.Fatalf("%s: sense % x", c.name, p.Sense)
				}
				fwd = p.Sense[at:]
				if residue := binary.BigEndian.Uint32(p.Sense[3:]); p.Sense[0]&0x80 == 0 || residue != n-8192 {
					t.Errorf("%s: %d blocks left", c.name, residue)
				}
			}
			if fwd[0] != 0x02 || senseText(fwd[1:]) != "7/27/07" {
				t.Errorf("%s: forwarded % x", c.name, fwd)
			}
			r.close()
		}
	}
}
