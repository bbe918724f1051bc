package scsi

import (
	"context"
	"encoding/binary"
	"errors"
	"math"

	"blockgate/backing"
	"blockgate/internal/bufpool"
	"blockgate/scsi/sense"
)

// Bits of the CDB's flag byte (byte 1) that medium access commands share.
const (
	cdbDPO = 0x10
	cdbFUA = 0x08
)

// Bits that usage maps share. The group number is accepted and has no effect:
// there is no grouping function that a command could be counted in (SBC-3
// §4.20). Six bits, as SBC-4 has it, take SBC-3's five in.
const (
	useGroup = 0x3f
	useBytes = 0xff
)

// pieceBytes is how much of the medium a command that covers more than it
// transfers (VERIFY, WRITE SAME) handles between two looks at its context, and
// with it the most memory such a command takes.
const pieceBytes = 1 << 20

// unmapPieceBytes is the same for commands that only change allocation. Its
// multiples are the places where a range is cut, so that no deallocation unit
// is split.
const unmapPieceBytes = 1 << 30

// sbcCommands gives the rows of the direct access block device commands (SBC-3
// and SBC-4). READ PROTECT and WRITE PROTECT fields are absent from every usage
// map: no unit has protection information, so a value other than zero is an
// INVALID FIELD IN CDB.
func sbcCommands() []Command {
	var rows []Command
	rows = append(rows, sbcCapacityCommands()...)
	rows = append(rows, sbcReadCommands()...)
	rows = append(rows, sbcWriteCommands()...)
	rows = append(rows, sbcVerifyCommands()...)
	rows = append(rows, sbcAtomicCommands()...)
	rows = append(rows, sbcWriteAtomicCommands()...)
	rows = append(rows, sbcCacheCommands()...)
	rows = append(rows, sbcWriteSameCommands()...)
	rows = append(rows, sbcUnmapCommands()...)
	rows = append(rows, lbaStatusRow())
	rows = append(rows, sbcDefectCommands()...)
	rows = append(rows, sanitizeCommands()...)
	rows = append(rows, formatCommands()...)
	rows = append(rows, mmcCommands()...)
	return rows
}

// use6, use10, use12 and use16 make the usage map of a medium access command
// with the usual layout: flags in byte 1, then the LBA, the length and, but for
// six bytes, the group number.

func use6(op byte) []byte {
	return []byte{op, 0x1f, useBytes, useBytes, useBytes, 0}
}

func use10(op, flags byte) []byte {
	return []byte{op, flags, useBytes, useBytes, useBytes, useBytes, useGroup, useBytes, useBytes, 0}
}

func use12(op, flags byte) []byte {
	return []byte{op, flags, useBytes, useBytes, useBytes, useBytes,
		useBytes, useBytes, useBytes, useBytes, useGroup, 0}
}

func use16(op, flags byte) []byte {
	return []byte{op, flags, useBytes, useBytes, useBytes, useBytes, useBytes, useBytes, useBytes, useBytes,
		useBytes, useBytes, useBytes, useBytes, useGroup, 0}
}

// cdbBlocks reads the LBA and the number of blocks of a CDB with the usual
// layout. The length of a six byte CDB is given as 1 to 256 (SBC-3 §5.10), that
// of the others as it stands.
func cdbBlocks(cdb []byte) (lba, nblocks uint64) {
	switch cdb[0] >> 5 {
	case 0:
		lba = uint64(cdb[1]&0x1f)<<16 | uint64(cdb[2])<<8 | uint64(cdb[3])
		nblocks = uint64(cdb[4])
		if nblocks == 0 {
			nblocks = 256
		}
	case 4:
		lba = binary.BigEndian.Uint64(cdb[2:])
		nblocks = uint64(binary.BigEndian.Uint32(cdb[10:]))
	case 5:
		lba = uint64(binary.BigEndian.Uint32(cdb[2:]))
		nblocks = uint64(binary.BigEndian.Uint32(cdb[6:]))
	default:
		lba = uint64(binary.BigEndian.Uint32(cdb[2:]))
		nblocks = uint64(binary.BigEndian.Uint16(cdb[7:]))
	}
	return lba, nblocks
}

// lengthField is the first byte of the CDB's length field that cdbBlocks reads,
// for sense data.
func lengthField(cdb []byte) int {
	switch cdb[0] >> 5 {
	case 0:
		return 4
	case 4:
		return 10
	case 5:
		return 6
	}
	return 7
}

// checkRange says whether nblocks blocks from lba are on the medium. An LBA that
// does not exist is out of range also when the length is zero.
func checkRange(u *Unit, lba, nblocks uint64) *sense.Sense {
	size := u.Blocks()
	if lba < size && nblocks <= size-lba {
		return nil
	}
	s := sense.LBAOutOfRange(max(lba, size))
	return &s
}

// checkTransfer is checkRange for a command that moves the blocks in one data
// phase: it is also held against the MAXIMUM TRANSFER LENGTH of the Block Limits
// VPD page (SBC-3 §6.5.3).
func checkTransfer(t *Task, lba, nblocks uint64) *sense.Sense {
	u := t.unit
	if s := checkRange(u, lba, nblocks); s != nil {
		return s
	}
	if nblocks > uint64(u.maxTransfer)>>u.blockShift {
		s := sense.InvalidFieldInCDB(lengthField(t.CDB), -1)
		return &s
	}
	return nil
}

// blocksToEnd is the length of a command whose length field may say zero for
// everything from its LBA to the end of the medium.
func blocksToEnd(u *Unit, lba, nblocks uint64) uint64 {
	if size := u.Blocks(); nblocks == 0 && lba < size {
		return size - lba
	}
	return nblocks
}

// rangeOfCDB is Command.Range of commands with the usual layout.
func rangeOfCDB(t *Task) (lba, nblocks uint64) {
	lba, nblocks = cdbBlocks(t.CDB)
	return lba, min(nblocks, math.MaxUint64-lba)
}

// rangeToEnd is rangeOfCDB for commands where a length of zero means the rest of
// the medium.
func rangeToEnd(t *Task) (lba, nblocks uint64) {
	lba, nblocks = rangeOfCDB(t)
	return lba, blocksToEnd(t.unit, lba, nblocks)
}

// byteOffset is where lba begins in the store. lba has been held against the
// size of the medium, so the product fits.
func byteOffset(u *Unit, lba uint64) int64 { return int64(lba) * int64(u.BlockSize()) }

// wholeBlocks cuts data-out to the n bytes the CDB asks for. An initiator that
// announces less than its CDB asks for has the rest counted as residual by its
// transport; ok is false if the last of its blocks has not come whole, for which
// WRITE has writeShort and the others an error.
func wholeBlocks(u *Unit, out []byte, n int64) (blocks []byte, ok bool) {
	if int64(len(out)) > n {
		out = out[:n]
	}
	return out, len(out)%u.BlockSize() == 0
}

// durable says whether what the command writes must be on the medium before its
// status: FUA is set in a CDB that has the bit, or the write cache is off.
func durable(t *Task) bool {
	return (t.CDB[0]>>5 != 0 && t.CDB[1]&cdbFUA != 0) || !t.unit.writeCache()
}

// writeOut writes p at off, through to the medium if fua is set. The sense data
// of a failure is in t; false means failed.
func writeOut(t *Task, p []byte, off int64, fua bool) bool {
	u, st := t.unit, t.Store()
	if fua && u.caps.fua != nil {
		return storeOK(t, u.caps.fua.WriteFUA(t.Context(), p, off), AccessWrite, off)
	}
	if !storeOK(t, st.WriteAt(t.Context(), p, off), AccessWrite, off) {
		return false
	}
	return !fua || flushOut(t)
}

// flushOut makes everything durable that was written before; false means failed.
func flushOut(t *Task) bool {
	err := t.Store().Flush(t.Context())
	if err == nil {
		return true
	}
	t.FailStore(err, AccessNone, 0)
	if t.set.gaveUp {
		return false
	}
	for _, known := range []error{backing.ErrNoSpace, backing.ErrReadOnly, backing.ErrClosed, context.Canceled} {
		if errors.Is(err, known) {
			return false
		}
	}
	// No LBA is at fault more than any other.
	t.Fail(sense.SyncFailed())
	return false
}

// storeOK ends the task with the sense data that fits if err is not nil; off is
// where in the store it happened. Data-in is dropped then, so that a buffer that
// was not filled is never sent with what another task left in it.
func storeOK(t *Task, err error, a Access, off int64) bool {
	if err == nil {
		return true
	}
	t.FailStore(err, a, uint64(off)/uint64(t.unit.BlockSize()))
	return false
}

// stopped says whether the task has been aborted, and ends it if so. Commands
// that work in pieces ask between two of them.
func stopped(t *Task, off int64) bool {
	t.advance()
	return !storeOK(t, t.Context().Err(), AccessNone, off)
}

// pieceBuf gives a buffer for working through n bytes in pieces: whole blocks,
// about pieceBytes long, or n if that is less.
func pieceBuf(u *Unit, n int64) *bufpool.Buf {
	bs := int64(u.BlockSize())
	return bufpool.Get(int(min(n, max(bs, pieceBytes/bs*bs))))
}
