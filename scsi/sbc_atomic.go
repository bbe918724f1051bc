package scsi

import (
	"encoding/binary"
	"math"

	"blockgate/internal/bufpool"
	"blockgate/scsi/sense"
)

// sbcAtomicCommands gives the commands that read, decide and write in one step.
// Their rows are Exclusive: no other task touches the blocks meanwhile.
func sbcAtomicCommands() []Command {
	return []Command{{
		Name: "COMPARE AND WRITE", Op: 0x89, SA: NoSA,
		Usage: []byte{0x89, cdbDPO | cdbFUA, useBytes, useBytes, useBytes, useBytes, useBytes, useBytes,
			useBytes, useBytes, 0, 0, 0, useBytes, useGroup, 0},
		Types: TypeDisk, Dir: DirOut, Access: AccessWrite, Reserve: ResWrite,
		Medium: true, Exclusive: true,
		OutLen: compareAndWriteOutLen, Range: rangeOfCompareAndWrite, Run: compareAndWrite,
	}, {
		Name: "ORWRITE(16)", Op: 0x8b, SA: NoSA,
		Usage: use16(0x8b, cdbDPO|cdbFUA),
		Types: TypeDisk, Dir: DirOut, Access: AccessWrite, Reserve: ResWrite,
		Medium: true, Exclusive: true,
		OutLen: transferOutLen, Range: rangeOfCDB, Run: orWrite,
	}}
}

// compareAndWriteBlocks reads the range of the CDB; its length is one byte, so
// it never exceeds the MAXIMUM COMPARE AND WRITE LENGTH of 255.
func compareAndWriteBlocks(cdb []byte) (lba, nblocks uint64) {
	return binary.BigEndian.Uint64(cdb[2:]), uint64(cdb[13])
}

func rangeOfCompareAndWrite(t *Task) (lba, nblocks uint64) {
	lba, nblocks = compareAndWriteBlocks(t.CDB)
	return lba, min(nblocks, math.MaxUint64-lba)
}

// compareAndWriteOutLen asks for the blocks to compare and the blocks to write.
// An initiator that announces more or less disagrees about where the first end
// and the second begin, so it is refused before anything is compared.
func compareAndWriteOutLen(t *Task) (int64, *sense.Sense) {
	lba, nblocks := compareAndWriteBlocks(t.CDB)
	if s := checkRange(t.unit, lba, nblocks); s != nil {
		return 0, s
	}
	n := 2 * int64(nblocks) * int64(t.unit.BlockSize())
	if t.MaxOut != n {
		s := sense.InvalidFieldInCDB(13, -1)
		return 0, &s
	}
	return n, nil
}

// compareAndWrite is COMPARE AND WRITE (SBC-3 §5.2). A store whose engine can
// compare and write does so, against every other client of the engine; for any
// other store the row's exclusive range is what makes it one step.
func compareAndWrite(t *Task) {
	u := t.unit
	lba, nblocks := compareAndWriteBlocks(t.CDB)
	if s := checkRange(u, lba, nblocks); s != nil {
		t.Fail(*s)
		return
	}
	n := int64(nblocks) * int64(u.BlockSize())
	if n == 0 {
		return
	}
	if int64(len(t.Out)) < 2*n {
		t.Fail(sense.InvalidFieldInCDB(13, -1))
		return
	}
	off, old, data := byteOffset(u, lba), t.Out[:n], t.Out[n:2*n]
	if u.caps.caw == nil {
		if compare(t, old, off, n) {
			writeOut(t, data, off, durable(t))
		}
		return
	}
	at, err := u.caps.caw.CompareAndWrite(t.Context(), old, data, off)
	switch {
	case !storeOK(t, err, AccessWrite, off):
	case at >= 0:
		t.Fail(sense.MiscompareAt(uint64(at)))
	case durable(t):
		flushOut(t)
	}
}

// orWrite is ORWRITE(16) (SBC-3 §5.7): each byte of the medium is replaced by
// itself OR the data-out's.
func orWrite(t *Task) {
	off, data, ok := outBlocks(t)
	if !ok || len(data) == 0 {
		return
	}
	buf := pieceBuf(t.unit, int64(len(data)))
	defer bufpool.Put(buf)
	for len(data) > 0 {
		if stopped(t, off) {
			return
		}
		p := buf.B[:min(len(data), len(buf.B))]
		if !storeOK(t, t.Store().ReadAt(t.Context(), p, off), AccessRead, off) {
			return
		}
		for i := range p {
			p[i] |= data[i]
		}
		if !storeOK(t, t.Store().WriteAt(t.Context(), p, off), AccessWrite, off) {
			return
		}
		off, data = off+int64(len(p)), data[len(p):]
	}
	if durable(t) {
		flushOut(t)
	}
}
