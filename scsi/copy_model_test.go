package scsi_test

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"blockgate/backing"
	"blockgate/scsi"
)

// copyModel is what the units of a rig should hold.
type copyModel struct {
	rt    *rapid.T
	r     *copyRig
	h     *host
	disks []*memDisk
	bs    []int
	data  [][]byte

	tokens []modelToken
}

// modelToken is a token, the data it stands for, and where that is from.
type modelToken struct {
	bytes, data []byte
	lun         int
	blocks      []uint64
}

const copyModelSize = 24 << 10

// TestCopyModel runs random copies and tokens among units of several block sizes
// and capabilities, with writes between, and holds the units against byte slices.
func TestCopyModel(t *testing.T) {
	capSets := []backing.Caps{0, backing.CapsAll, backing.CapCopyRange, backing.CapDiscard | backing.CapWriteFUA}
	rapid.Check(t, func(rt *rapid.T) {
		m := &copyModel{rt: rt, r: newCopyRig(t)}
		for i := range 3 {
			bs := rapid.SampledFrom([]int{512, 512, 2048}).Draw(rt, "block size")
			d := filledDisk(byte(i), copyModelSize, rapid.SampledFrom(capSets).Draw(rt, "caps"))
			clear(d.data[8<<10 : 12<<10])
			copy(d.stable, d.data)
			m.r.add(d, func(c *scsi.UnitConfig) {
				c.BlockSize = bs
				c.WriteCache = rapid.Bool().Draw(rt, "write cache")
			})
			m.disks, m.bs, m.data = append(m.disks, d), append(m.bs, bs), append(m.data, d.contents())
		}
		m.h = m.r.login("a")
		rt.Repeat(map[string]func(*rapid.T){
			"extendedCopy": m.extendedCopy,
			"write":        m.write,
			"populate":     m.populate,
			"use":          m.use,
			"":             m.check,
		})
		m.r.close()
	})
}

func (m *copyModel) check(rt *rapid.T) {
	for i, d := range m.disks {
		if !bytes.Equal(d.contents(), m.data[i]) {
			rt.Fatalf("LUN %d does not hold what it should", i)
		}
		if !m.writeCache(i) && !bytes.Equal(d.stable, m.data[i]) {
			rt.Fatalf("LUN %d: not all is on the medium without a write cache", i)
		}
	}
}

func (m *copyModel) writeCache(lun int) bool {
	page := m.h.on(lun).good([]byte{0x1a, 0x08, 0x08, 0, 32, 0})[4:]
	return page[2]&0x04 != 0
}

func (m *copyModel) lun(rt *rapid.T, name string) int { return rapid.IntRange(0, 2).Draw(rt, name) }

// change tells the model that bytes of a unit are overwritten.
func (m *copyModel) change(lun int, off int, p []byte) {
	copy(m.data[lun][off:], p)
	bs := m.bs[lun]
	for lba := off / bs; lba*bs < off+len(p); lba++ {
		m.tokens = slices.DeleteFunc(m.tokens, func(k modelToken) bool {
			return k.lun == lun && slices.Contains(k.blocks, uint64(lba))
		})
	}
}

// extendedCopy draws a list of segments, of which any may be out of range: what
// is before it is copied.
func (m *copyModel) extendedCopy(rt *rapid.T) {
	cscds := [][]byte{cscdNAA(2, 0), cscdNAA(0, m.bs[0]), cscdNAA(1, 0)}
	lunOf := []int{2, 0, 1}
	own := m.lun(rt, "own")
	want := "good"
	var segments [][]byte
	for range rapid.IntRange(1, 4).Draw(rt, "segments") {
		id := func(name string) (id, lun int) {
			if id = rapid.IntRange(0, 3).Draw(rt, name); id == 3 {
				return ownUnit, own
			}
			return id, lunOf[id]
		}
		src, sl := id("source")
		dst, dl := id("destination")
		from := rapid.IntRange(0, copyModelSize/m.bs[sl]).Draw(rt, "from")
		to := rapid.IntRange(0, copyModelSize/m.bs[dl]).Draw(rt, "to")
		var n, so, do int
		if rapid.Bool().Draw(rt, "by bytes") {
			n = rapid.IntRange(0, 6000).Draw(rt, "bytes")
			so, do = rapid.IntRange(0, m.bs[sl]-1).Draw(rt, "source offset"), rapid.IntRange(0, m.bs[dl]-1).Draw(rt, "destination offset")
			segments = append(segments, b2bOffset(src, dst, uint32(n), uint64(from), uint64(to), uint16(so), uint16(do)))
		} else {
			k := rapid.IntRange(0, 12).Draw(rt, "blocks")
			s := b2b(src, dst, uint16(k), uint64(from), uint64(to))
			n = k * m.bs[sl]
			if rapid.Bool().Draw(rt, "in the destination's blocks") {
				s[1], n = 0x02, k*m.bs[dl]
			}
			segments = append(segments, s)
		}
		if want != "good" {
			continue
		}
		inexact := segments[len(segments)-1][0] == 0x02 && (n%m.bs[sl] != 0 || n%m.bs[dl] != 0)
		fits := func(lba, off, bs int) bool {
			return lba*bs < copyModelSize && lba*bs+(off+n+bs-1)/bs*bs <= copyModelSize
		}
		switch {
		case inexact:
			want = "a/26/0a"
		case !fits(from, so, m.bs[sl]) || !fits(to, do, m.bs[dl]):
			want = "a/00/00"
		default:
			m.change(dl, to*m.bs[dl]+do, bytes.Clone(m.data[sl][from*m.bs[sl]+so:][:n]))
		}
	}
	h := m.h.on(own)
	if got := h.copy(copyList(1, cscds, segments)).outcome(); got != want {
		rt.Fatalf("EXTENDED COPY ended with %s, want %s", got, want)
	}
}

func (m *copyModel) write(rt *rapid.T) {
	lun := m.lun(rt, "lun")
	lba := rapid.IntRange(0, copyModelSize/m.bs[lun]-1).Draw(rt, "lba")
	p := pattern(rapid.Byte().Draw(rt, "pattern"), m.bs[lun])
	m.h.on(lun).good(write10(uint32(lba), 1), p...)
	m.change(lun, lba*m.bs[lun], p)
}

// ranges draws ranges of a unit that do not overlap.
func (m *copyModel) ranges(rt *rapid.T, lun int) (list []byte, blocks []uint64) {
	free := make([]bool, copyModelSize/m.bs[lun])
	for range rapid.IntRange(1, 4).Draw(rt, "ranges") {
		lba := rapid.IntRange(0, len(free)-1).Draw(rt, "lba")
		n := 0
		for want := rapid.IntRange(1, 8).Draw(rt, "blocks"); n < want && lba+n < len(free) && !free[lba+n]; n++ {
			free[lba+n] = true
			blocks = append(blocks, uint64(lba+n))
		}
		list = append(list, ranges(uint64(lba), uint64(n))...)
	}
	return list, blocks
}

func (m *copyModel) populate(rt *rapid.T) {
	if len(m.tokens) >= 8 {
		rt.Skip("enough")
	}
	lun := m.lun(rt, "lun")
	list, blocks := m.ranges(rt, lun)
	h := m.h.on(lun)
	if got := h.populate(1, populateList(0, list)).outcome(); got != "good" {
		rt.Fatalf("POPULATE TOKEN ended with %s", got)
	}
	k := modelToken{bytes: tokenOf(h.good(copyIn(0x07, 1, 4096))), lun: lun, blocks: blocks}
	for _, lba := range blocks {
		k.data = append(k.data, m.data[lun][int(lba)*m.bs[lun]:][:m.bs[lun]]...)
	}
	m.tokens = append(m.tokens, k)
}

// use writes a token somewhere, which may cancel it for the next time.
func (m *copyModel) use(rt *rapid.T) {
	if len(m.tokens) == 0 {
		rt.Skip("no token")
	}
	k := rapid.SampledFrom(m.tokens).Draw(rt, "token")
	lun := m.lun(rt, "lun")
	bs := m.bs[lun]
	list, blocks := m.ranges(rt, lun)
	if lun == k.lun && slices.ContainsFunc(blocks, func(lba uint64) bool { return slices.Contains(k.blocks, lba) }) {
		rt.Skip("the token would be cancelled by its own use")
	}
	offset := rapid.IntRange(0, (len(k.data)-1)/bs).Draw(rt, "offset")
	data := append(bytes.Clone(k.data), make([]byte, bs)...)
	data = data[:(len(k.data)+bs-1)/bs*bs][offset*bs:]
	want := "good"
	for i, lba := range blocks {
		if i*bs >= len(data) {
			want = "a/0d/04"
			break
		}
		m.change(lun, int(lba)*bs, data[i*bs:][:bs])
	}
	if got := m.h.on(lun).useToken(2, useList(k.bytes, uint64(offset), list)).outcome(); got != want {
		rt.Fatalf("WRITE USING TOKEN ended with %s, want %s", got, want)
	}
}
