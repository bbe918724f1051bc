package scsi

import (
	"encoding/binary"
	"math"

	"blockgate/scsi/sense"
)

// sbcWriteAtomicCommands gives WRITE ATOMIC(16) (SBC-4 §5.44). Only stores that
// can say so of every failure have it (see backing.AtomicWriter); the row is
// Exclusive besides, so that no command of this unit sees a half, whatever the
// store does about concurrent calls. Atomic boundaries, bytes 10 and 11 of the
// CDB, are not offered: what they would allow to be torn never is.
func sbcWriteAtomicCommands() []Command {
	return []Command{{
		Name: "WRITE ATOMIC(16)", Op: 0x9c, SA: NoSA,
		Usage: []byte{0x9c, cdbDPO | cdbFUA, useBytes, useBytes, useBytes, useBytes, useBytes, useBytes,
			useBytes, useBytes, 0, 0, useBytes, useBytes, useGroup, 0},
		Types: TypeDisk, Dir: DirOut, Access: AccessWrite, Reserve: ResWrite,
		Medium: true, Exclusive: true,
		Supported: func(u *Unit) bool { return u.atomicLimits().max > 0 },
		OutLen:    writeAtomicOutLen, Range: rangeOfWriteAtomic, Run: writeAtomic,
	}}
}

// atomicLimits are the limits of WRITE ATOMIC in blocks; max is 0 if the unit
// does not have it.
type atomicLimits struct{ max, granularity, alignment uint64 }

// atomicLimits turns the store's limits, which are bytes, into blocks.
func (u *Unit) atomicLimits() atomicLimits {
	if u.caps.atomic == nil {
		return atomicLimits{}
	}
	l := u.caps.atomic.AtomicLimits()
	bs := int64(u.BlockSize())
	a := atomicLimits{
		max:         uint64(min(l.Max, u.maxTransfer) / bs),
		granularity: blocksOfMultiple(l.Granularity, bs),
		alignment:   blocksOfMultiple(l.Alignment, bs),
	}
	a.max = min(a.max, math.MaxUint16) // the CDB's field
	a.max -= a.max % a.granularity
	return a
}

// blocksOfMultiple is the least number of blocks of bs bytes that is a multiple of
// n bytes.
func blocksOfMultiple(n, bs int64) uint64 {
	n = max(n, 1)
	a, b := n, bs
	for b != 0 {
		a, b = b, a%b
	}
	return uint64(n / a)
}

// put writes the limits to the Block Limits VPD page (SBC-4 §6.6.4); an alignment
// or granularity of one block is none.
func (a atomicLimits) put(page []byte) {
	if a.max == 0 {
		return
	}
	binary.BigEndian.PutUint32(page[44:], uint32(a.max))
	if a.alignment > 1 {
		binary.BigEndian.PutUint32(page[48:], uint32(a.alignment))
	}
	if a.granularity > 1 {
		binary.BigEndian.PutUint32(page[52:], uint32(a.granularity))
	}
}

func writeAtomicBlocks(cdb []byte) (lba, nblocks uint64) {
	return binary.BigEndian.Uint64(cdb[2:]), uint64(binary.BigEndian.Uint16(cdb[12:]))
}

func rangeOfWriteAtomic(t *Task) (lba, nblocks uint64) {
	lba, nblocks = writeAtomicBlocks(t.CDB)
	return lba, min(nblocks, math.MaxUint64-lba)
}

// writeAtomicOutLen asks for the blocks. An initiator that announces fewer cannot
// have all of them written, so it is refused.
func writeAtomicOutLen(t *Task) (int64, *sense.Sense) {
	u := t.unit
	lba, nblocks := writeAtomicBlocks(t.CDB)
	if s := checkRange(u, lba, nblocks); s != nil {
		return 0, s
	}
	l, bad := u.atomicLimits(), -1
	n := int64(nblocks) * int64(u.BlockSize())
	switch {
	case lba%l.alignment != 0:
		bad = 2
	case nblocks > l.max, nblocks%l.granularity != 0, t.MaxOut < n:
		bad = 12
	}
	if bad >= 0 {
		s := sense.InvalidFieldInCDB(bad, -1)
		return 0, &s
	}
	return n, nil
}

// writeAtomic is WRITE ATOMIC(16).
func writeAtomic(t *Task) {
	u := t.unit
	lba, nblocks := writeAtomicBlocks(t.CDB)
	if s := checkRange(u, lba, nblocks); s != nil {
		t.Fail(*s)
		return
	}
	if int64(len(t.Out)) < t.OutLen {
		t.Fail(sense.InvalidFieldInCDB(12, -1))
		return
	}
	if nblocks == 0 {
		return
	}
	off := byteOffset(u, lba)
	if storeOK(t, u.caps.atomic.WriteAtomic(t.Context(), t.Out[:t.OutLen], off), AccessWrite, off) && durable(t) {
		flushOut(t)
	}
}
