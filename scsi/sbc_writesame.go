package scsi

import (
	"bytes"
	"errors"

	"blockgate/backing"
	"blockgate/internal/bufpool"
	"blockgate/scsi/sense"
)

// Bits of byte 1 of WRITE SAME. LBDATA and PBDATA are obsolete and ANCHOR asks
// for a provisioning state that no store has; they are not in the usage maps.
const (
	wsUnmap = 0x08
	wsNDOB  = 0x01 // WRITE SAME(16) only: no data-out, the block is zero
)

func sbcWriteSameCommands() []Command {
	row := func(name string, use []byte) Command {
		return Command{
			Name: name, Op: use[0], SA: NoSA, Usage: use,
			Types: TypeDisk, Dir: DirOut, Access: AccessWrite, Reserve: ResWrite,
			Medium: true, OutLen: writeSameOutLen, Range: rangeToEnd, Run: writeSame,
		}
	}
	return []Command{
		row("WRITE SAME(10)", use10(0x41, wsUnmap)),
		row("WRITE SAME(16)", use16(0x93, wsUnmap|wsNDOB)),
	}
}

// checkWriteSame checks the CDB of WRITE SAME (SBC-3 §5.43, §5.44) and gives its
// range. A length of zero means the rest of the medium (WSNZ is zero), which,
// as any other length, may not exceed MAXIMUM WRITE SAME LENGTH.
func checkWriteSame(t *Task) (lba, nblocks uint64, s *sense.Sense) {
	u := t.unit
	if t.CDB[1]&wsUnmap != 0 && !u.thin() {
		f := sense.InvalidFieldInCDB(1, 3)
		return 0, 0, &f
	}
	lba, nblocks = cdbBlocks(t.CDB)
	if s := checkRange(u, lba, nblocks); s != nil {
		return 0, 0, s
	}
	nblocks = blocksToEnd(u, lba, nblocks)
	if nblocks > u.maxWriteSame() {
		f := sense.InvalidFieldInCDB(lengthField(t.CDB), -1)
		return 0, 0, &f
	}
	return lba, nblocks, nil
}

// writeSameOutLen asks for one block. An initiator that announces more or less
// has mistaken the block size, and writing what it meant is not possible.
func writeSameOutLen(t *Task) (int64, *sense.Sense) {
	if _, _, s := checkWriteSame(t); s != nil {
		return 0, s
	}
	if noDataOut(t) {
		return 0, nil
	}
	bs := int64(t.unit.BlockSize())
	if t.MaxOut != bs {
		s := sense.InvalidFieldInCDB(lengthField(t.CDB), -1)
		return 0, &s
	}
	return bs, nil
}

// noDataOut says whether the command has NDOB set; the 10 byte CDB lacks it.
func noDataOut(t *Task) bool { return t.CDB[0] == 0x93 && t.CDB[1]&wsNDOB != 0 }

// writeSame is WRITE SAME. With UNMAP set the blocks are deallocated and read as
// zeroes (LBPRZ is one), whatever the data-out holds: SBC-4 tells an unmap
// operation from a write by the bit alone.
func writeSame(t *Task) {
	lba, nblocks, s := checkWriteSame(t)
	if s != nil {
		t.Fail(*s)
		return
	}
	u := t.unit
	bs := int64(u.BlockSize())
	var block []byte // nil: zeroes
	if !noDataOut(t) {
		if int64(len(t.Out)) < bs {
			t.Fail(sense.InvalidFieldInCDB(lengthField(t.CDB), -1))
			return
		}
		if block = t.Out[:bs]; isZero(block) {
			block = nil
		}
	}
	off, n := byteOffset(u, lba), int64(nblocks)*bs
	ok := false
	switch {
	case t.CDB[1]&wsUnmap != 0:
		ok = discard(t, off, n)
	case block == nil:
		ok = zero(t, off, n, false)
	default:
		ok = fill(t, block, off, n)
	}
	if ok && cacheOff(t) {
		flushOut(t)
	}
}

// cacheOff is durable for commands that have no FUA bit.
func cacheOff(t *Task) bool { return !t.unit.writeCache() }

// isZero says whether p holds zeroes only.
func isZero(p []byte) bool {
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[:len(p)-1], p[1:])
}

// inPieces calls fn for [off, off+n) in pieces of at most size bytes that end at
// multiples of size, and looks at the task's context before each. A failure that
// fn returns ends the task; ErrNotSupported is left to the caller, with where it
// happened. rest is what has not been done.
func inPieces(t *Task, off, n, size int64, fn func(off, n int64) error) (rest int64, ok bool) {
	for n > 0 {
		if stopped(t, off) {
			return n, false
		}
		k := min(n, size-off%size)
		err := fn(off, k)
		if errors.Is(err, backing.ErrNotSupported) {
			return n, true
		}
		if !storeOK(t, err, AccessWrite, off) {
			return n, false
		}
		off, n = off+k, n-k
	}
	return 0, true
}

// discard deallocates [off, off+n); what the store cannot deallocate is zeroed,
// so that the range reads as zeroes in any case. false: the task has failed.
func discard(t *Task, off, n int64) bool {
	if d := t.unit.caps.discarder; d != nil {
		rest, ok := inPieces(t, off, n, unmapPieceBytes, func(off, n int64) error {
			return d.Discard(t.Context(), off, n)
		})
		if !ok {
			return false
		}
		off, n = off+n-rest, rest
	}
	return zero(t, off, n, true)
}

// zero makes [off, off+n) read as zeroes, without a payload if the store can.
func zero(t *Task, off, n int64, mayUnmap bool) bool {
	if zw := t.unit.caps.zeroWriter; zw != nil {
		rest, ok := inPieces(t, off, n, unmapPieceBytes, func(off, n int64) error {
			return zw.WriteZeroes(t.Context(), off, n, mayUnmap)
		})
		if !ok {
			return false
		}
		off, n = off+n-rest, rest
	}
	return fill(t, nil, off, n)
}

// fill writes block, or zeroes if it is nil, over [off, off+n), a whole number of
// blocks, with writes as large as pieceBytes.
func fill(t *Task, block []byte, off, n int64) bool {
	if n == 0 {
		return true
	}
	buf := pieceBuf(t.unit, n)
	defer bufpool.Put(buf)
	if block == nil {
		clear(buf.B)
	} else {
		for i := 0; i < len(buf.B); i += len(block) {
			copy(buf.B[i:], block)
		}
	}
	for n > 0 {
		if stopped(t, off) {
			return false
		}
		k := min(n, int64(len(buf.B)))
		if !storeOK(t, t.Store().WriteAt(t.Context(), buf.B[:k], off), AccessWrite, off) {
			return false
		}
		off, n = off+k, n-k
	}
	return true
}
