package scsi_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"

	"blockgate/backing"
	"blockgate/scsi"
	"blockgate/scsi/sense"
)

// TestSBCModel runs random commands on a small unit and on a byte slice, and
// holds the one against the other after each.
func TestSBCModel(t *testing.T) {
	capSets := []backing.Caps{
		0, backing.CapsAll, backing.CapDiscard, backing.CapDiscard | backing.CapWriteZeroes,
		backing.CapTryRead | backing.CapTryWrite, backing.CapWriteFUA | backing.CapCompareAndWrite | backing.CapWriteZeroes,
	}
	rapid.Check(t, func(rt *rapid.T) {
		caps := rapid.SampledFrom(capSets).Draw(rt, "caps")
		bs := rapid.SampledFrom([]int{512, 4096}).Draw(rt, "block size")
		const blocks = 24
		disk := newMemDisk(blocks*bs, caps)
		disk.prompt = rapid.Bool().Draw(rt, "prompt")
		r := newSBCRig(t, disk, func(c *scsi.UnitConfig) {
			c.BlockSize = bs
			c.WriteCache = rapid.Bool().Draw(rt, "write cache")
		})
		m := &sbcModel{r: r, rt: rt, data: make([]byte, blocks*bs), blocks: blocks}
		rt.Repeat(map[string]func(*rapid.T){
			"read":            m.read,
			"write":           m.write,
			"writeVerify":     m.writeVerify,
			"verify":          m.verify,
			"writeSame":       m.writeSame,
			"unmap":           m.unmap,
			"compareAndWrite": m.compareAndWrite,
			"orWrite":         m.orWrite,
			"":                m.check,
		})
	})
}

type sbcModel struct {
	r      *sbcRig
	rt     *rapid.T
	data   []byte
	blocks int
}

// blockRange draws a range, sometimes one that is not on the medium.
func (m *sbcModel) blockRange(rt *rapid.T) (lba uint64, n int, ok bool) {
	lba = uint64(rapid.IntRange(0, m.blocks+1).Draw(rt, "lba"))
	n = rapid.IntRange(0, m.blocks).Draw(rt, "blocks")
	return lba, n, lba < uint64(m.blocks) && int(lba)+n <= m.blocks
}

// bytesOf draws n bytes out of few values, so that ranges happen to be equal.
func (m *sbcModel) bytesOf(rt *rapid.T, n int) []byte {
	p := make([]byte, n)
	for i := 0; i < n; i += m.r.bs {
		v := byte(rapid.IntRange(0, 3).Draw(rt, "fill"))
		for j := i; j < min(n, i+m.r.bs); j++ {
			p[j] = v
		}
	}
	return p
}

func (m *sbcModel) op(rt *rapid.T, family map[int]byte) byte {
	return family[rapid.SampledFrom([]int{10, 16}).Draw(rt, "CDB length")]
}

func (m *sbcModel) at(lba uint64, n int) []byte {
	return m.data[int(lba)*m.r.bs:][:n*m.r.bs]
}

// outOfRange is what a command says that was given a range beyond the end.
func (m *sbcModel) outOfRange(rt *rapid.T, res sbcResult) {
	want := sense.LBAOutOfRange(0)
	if res.status != scsi.CheckCondition || res.asc != want.ASC || res.ascq != want.ASCQ {
		rt.Fatalf("out of range: status %#x sense %x/%02x/%02x", res.status, res.key, res.asc, res.ascq)
	}
}

func (m *sbcModel) good(rt *rapid.T, res sbcResult) {
	if res.status != scsi.Good {
		rt.Fatalf("status %#x sense %x/%02x/%02x", res.status, res.key, res.asc, res.ascq)
	}
}

func (m *sbcModel) check(rt *rapid.T) {
	if !bytes.Equal(m.r.disk.data, m.data) {
		rt.Fatal("the medium differs from the model")
	}
}

func (m *sbcModel) read(rt *rapid.T) {
	lba, n, ok := m.blockRange(rt)
	res := m.r.do(cdbOf(m.op(rt, opRead), 0, lba, uint32(n)), nil)
	if !ok {
		m.outOfRange(rt, res)
		return
	}
	m.good(rt, res)
	if !bytes.Equal(res.in, m.at(lba, n)) {
		rt.Fatal("READ gave something else")
	}
}

func (m *sbcModel) write(rt *rapid.T) {
	lba, n, ok := m.blockRange(rt)
	flags := rapid.SampledFrom([]byte{0, 0x08, 0x10}).Draw(rt, "flags")
	out := m.bytesOf(rt, n*m.r.bs)
	sent := rapid.IntRange(0, len(out)).Draw(rt, "sent")
	res := m.r.do(cdbOf(m.op(rt, opWrite), flags, lba, uint32(n)), out[:sent])
	if !ok {
		m.outOfRange(rt, res)
		return
	}
	m.good(rt, res)
	copy(m.at(lba, n), out[:sent])
}

func (m *sbcModel) writeVerify(rt *rapid.T) {
	lba, n, ok := m.blockRange(rt)
	out := m.bytesOf(rt, n*m.r.bs)
	res := m.r.do(cdbOf(m.op(rt, opWriteCheck), rapid.SampledFrom([]byte{0, 2}).Draw(rt, "BYTCHK"), lba, uint32(n)), out)
	if !ok {
		m.outOfRange(rt, res)
		return
	}
	m.good(rt, res)
	copy(m.at(lba, n), out)
}

func (m *sbcModel) verify(rt *rapid.T) {
	lba, n, ok := m.blockRange(rt)
	out := m.bytesOf(rt, n*m.r.bs)
	if ok && rapid.Bool().Draw(rt, "equal") {
		copy(out, m.at(lba, n))
	}
	res := m.r.do(cdbOf(m.op(rt, opVerify), 0x02, lba, uint32(n)), out)
	switch {
	case !ok:
		m.outOfRange(rt, res)
	case bytes.Equal(out, m.at(lba, n)):
		m.good(rt, res)
	default:
		m.miscompare(rt, res, out, m.at(lba, n))
	}
}

func (m *sbcModel) miscompare(rt *rapid.T, res sbcResult, a, b []byte) {
	want := 0
	for a[want] == b[want] {
		want++
	}
	if res.key != sense.Miscompare || res.asc != 0x1d || !res.infoOK || res.info != uint64(want) {
		rt.Fatalf("miscompare at %d: status %#x sense %x/%02x/%02x at %d",
			want, res.status, res.key, res.asc, res.ascq, res.info)
	}
}

func (m *sbcModel) writeSame(rt *rapid.T) {
	lba, n, ok := m.blockRange(rt)
	block := m.bytesOf(rt, m.r.bs)
	thin := m.r.disk.caps&backing.CapDiscard != 0
	flags := byte(0)
	if thin && rapid.Bool().Draw(rt, "UNMAP") {
		flags = 0x08
	}
	res := m.r.do(cdbOf(m.op(rt, opWriteSame), flags, lba, uint32(n)), block)
	if !ok {
		m.outOfRange(rt, res)
		return
	}
	m.good(rt, res)
	if n == 0 {
		n = m.blocks - int(lba)
	}
	if flags != 0 {
		clear(block)
	}
	copy(m.at(lba, n), bytes.Repeat(block, n))
}

func (m *sbcModel) unmap(rt *rapid.T) {
	if m.r.disk.caps&backing.CapDiscard == 0 {
		return
	}
	var descs [][2]uint64
	all := true
	for range rapid.IntRange(0, 4).Draw(rt, "descriptors") {
		lba, n, ok := m.blockRange(rt)
		descs = append(descs, [2]uint64{lba, uint64(n)})
		all = all && (ok || n == 0 && lba == uint64(m.blocks))
	}
	p := unmapParams(descs...)
	res := m.r.do(unmapCDB(len(p)), p)
	if !all {
		m.outOfRange(rt, res)
		return
	}
	m.good(rt, res)
	for _, d := range descs {
		if d[1] > 0 {
			clear(m.at(d[0], int(d[1])))
		}
	}
}

func (m *sbcModel) compareAndWrite(rt *rapid.T) {
	lba, n, ok := m.blockRange(rt)
	old, data := m.bytesOf(rt, n*m.r.bs), m.bytesOf(rt, n*m.r.bs)
	if ok && rapid.Bool().Draw(rt, "equal") {
		copy(old, m.at(lba, n))
	}
	res := m.r.do(cawCDB(0, lba, byte(n)), append(bytes.Clone(old), data...))
	switch {
	case !ok:
		m.outOfRange(rt, res)
	case bytes.Equal(old, m.at(lba, n)):
		m.good(rt, res)
		copy(m.at(lba, n), data)
	default:
		m.miscompare(rt, res, old, m.at(lba, n))
	}
}

func (m *sbcModel) orWrite(rt *rapid.T) {
	lba, n, ok := m.blockRange(rt)
	out := m.bytesOf(rt, n*m.r.bs)
	res := m.r.do(cdbOf(0x8b, 0, lba, uint32(n)), out)
	if !ok {
		m.outOfRange(rt, res)
		return
	}
	m.good(rt, res)
	for i, b := range m.at(lba, n) {
		m.at(lba, n)[i] = b | out[i]
	}
}

// FuzzUnmap gives UNMAP any parameter list: it ends once, unmaps exactly what a
// list that is GOOD names, and nothing otherwise.
func FuzzUnmap(f *testing.F) {
	const blocks = 64
	one := unmapParams([2]uint64{3, 4})
	f.Add(one, uint16(len(one)))
	f.Add(one[:23], uint16(23))
	f.Add(one, uint16(0))
	f.Add(one[:8], uint16(24))
	f.Add(unmapParams([2]uint64{blocks, 0}, [2]uint64{1 << 63, 1 << 31}), uint16(40))
	f.Add(unmapParams([2]uint64{blocks - 1, 2}, [2]uint64{0, 1}), uint16(40))
	f.Add(unmapParams([2]uint64{1, 9}, [2]uint64{5, 9}), uint16(40))
	disk := newMemDisk(blocks*512, backing.CapDiscard)
	r := newSBCRig(f, disk, nil)
	full := pattern(1, blocks*512)
	for i := range full {
		full[i] |= 1 // no block is zero
	}
	f.Fuzz(func(t *testing.T, list []byte, length uint16) {
		r := *r
		r.t = t
		list = list[:min(len(list), int(length))]
		copy(disk.data, full)
		res := r.do(unmapCDB(int(length)), list)
		want := bytes.Clone(full)
		switch res.status {
		case scsi.Good:
			if len(list) >= 8 {
				n := min(int(binary.BigEndian.Uint16(list[2:])), len(list)-8)
				for d := list[8 : 8+n]; len(d) >= 16; d = d[16:] {
					first, count := binary.BigEndian.Uint64(d), uint64(binary.BigEndian.Uint32(d[8:]))
					if first > blocks || count > blocks-first {
						t.Fatal("GOOD for a range that does not exist")
					}
					clear(want[first*512 : (first+count)*512])
				}
			}
		case scsi.CheckCondition:
		default:
			t.Fatalf("status %#x", res.status)
		}
		if !bytes.Equal(disk.data, want) {
			t.Fatal("something else was unmapped")
		}
	})
}
