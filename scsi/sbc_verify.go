package scsi

import (
	"bytes"

	"blockgate/internal/bufpool"
	"blockgate/scsi/sense"
)

// cdbBytchk is the BYTCHK field of VERIFY and WRITE AND VERIFY, byte 1.
const cdbBytchk = 0x06

// Values of BYTCHK (SBC-3 §5.34, table 112).
const (
	bytchkMedium = 0 // the blocks can be read, no data-out
	bytchkAll    = 1 // data-out has as many blocks as the range
	bytchkOne    = 3 // data-out has one block, compared with each of the range
)

func sbcVerifyCommands() []Command {
	verifyRow := func(name string, use []byte) Command {
		return Command{
			Name: name, Op: use[0], SA: NoSA, Usage: use,
			Types: TypeDisk, Dir: DirOut, Access: AccessRead, Reserve: ResRead,
			Medium: true, OutLen: verifyOutLen, Range: rangeOfCDB, Run: verify,
		}
	}
	writeRow := func(name string, use []byte) Command {
		return Command{
			Name: name, Op: use[0], SA: NoSA, Usage: use,
			Types: TypeDisk, Dir: DirOut, Access: AccessWrite, Reserve: ResWrite,
			Medium: true, OutLen: writeVerifyOutLen, Range: rangeOfCDB, Run: writeVerify,
		}
	}
	return []Command{
		verifyRow("VERIFY(10)", use10(0x2f, cdbDPO|cdbBytchk)),
		verifyRow("VERIFY(12)", use12(0xaf, cdbDPO|cdbBytchk)),
		verifyRow("VERIFY(16)", use16(0x8f, cdbDPO|cdbBytchk)),
		writeRow("WRITE AND VERIFY(10)", use10(0x2e, cdbDPO|cdbBytchk)),
		writeRow("WRITE AND VERIFY(12)", use12(0xae, cdbDPO|cdbBytchk)),
		writeRow("WRITE AND VERIFY(16)", use16(0x8e, cdbDPO|cdbBytchk)),
	}
}

func bytchk(t *Task) byte { return t.CDB[1] & cdbBytchk >> 1 }

// verifyOutLen is Command.OutLen of VERIFY. The MAXIMUM TRANSFER LENGTH holds
// only where blocks are transferred.
func verifyOutLen(t *Task) (int64, *sense.Sense) {
	lba, nblocks := cdbBlocks(t.CDB)
	bs := int64(t.unit.BlockSize())
	switch bytchk(t) {
	case bytchkMedium:
		return 0, checkRange(t.unit, lba, nblocks)
	case bytchkAll:
		return int64(nblocks) * bs, checkTransfer(t, lba, nblocks)
	case bytchkOne:
		return int64(min(nblocks, 1)) * bs, checkRange(t.unit, lba, nblocks)
	}
	s := sense.InvalidFieldInCDB(1, 2)
	return 0, &s
}

// verify is VERIFY (SBC-3 §5.34 to §5.36). Data-out must be complete: comparing
// with a part of it would call GOOD what was not looked at.
func verify(t *Task) {
	u := t.unit
	lba, nblocks := cdbBlocks(t.CDB)
	if s := checkRange(u, lba, nblocks); s != nil {
		t.Fail(*s)
		return
	}
	if int64(len(t.Out)) < t.OutLen {
		t.Fail(sense.InvalidFieldInCDB(lengthField(t.CDB), -1))
		return
	}
	off, n := byteOffset(u, lba), int64(nblocks)*int64(u.BlockSize())
	switch bytchk(t) {
	case bytchkMedium:
		compare(t, nil, off, n)
	case bytchkAll:
		compare(t, t.Out[:n], off, n)
	case bytchkOne:
		compare(t, t.Out[:t.OutLen], off, n)
	}
}

// writeVerifyOutLen is Command.OutLen of WRITE AND VERIFY, which knows the
// values 0 and 1 of BYTCHK.
func writeVerifyOutLen(t *Task) (int64, *sense.Sense) {
	if bytchk(t) > bytchkAll {
		s := sense.InvalidFieldInCDB(1, 2)
		return 0, &s
	}
	return transferOutLen(t)
}

// writeVerify is WRITE AND VERIFY (SBC-3 §5.39 to §5.41). What is verified is the
// medium, so the data goes there first, whatever the write cache is set to.
func writeVerify(t *Task) {
	off, data, ok := outBlocks(t)
	if !ok || len(data) == 0 || !writeOut(t, data, off, true) {
		return
	}
	var want []byte
	if bytchk(t) == bytchkAll {
		want = data
	}
	compare(t, want, off, int64(len(data)))
}

// compare reads [off, off+n), a whole number of blocks, in pieces and compares it
// with want: nothing if want is nil, byte by byte if it is n bytes long, each
// block with it if it is one block. A difference ends the task with MISCOMPARE
// and the offset of the first byte that differs in want. It returns false if
// the task has failed.
func compare(t *Task, want []byte, off, n int64) bool {
	if n == 0 {
		return true
	}
	buf := pieceBuf(t.unit, n)
	defer bufpool.Put(buf)
	perBlock := int64(len(want)) < n
	for done := int64(0); done < n; {
		if stopped(t, off+done) {
			return false
		}
		got := buf.B[:min(n-done, int64(len(buf.B)))]
		if !storeOK(t, t.Store().ReadAt(t.Context(), got, off+done), AccessRead, off+done) {
			return false
		}
		at := -1
		switch {
		case want == nil:
		case perBlock:
			for i := 0; i < len(got) && at < 0; i += len(want) {
				at = firstDiff(got[i:i+len(want)], want)
			}
		default:
			if at = firstDiff(got, want[done:done+int64(len(got))]); at >= 0 {
				at += int(done)
			}
		}
		if at >= 0 {
			t.Fail(sense.MiscompareAt(uint64(at)))
			return false
		}
		done += int64(len(got))
	}
	return true
}

// firstDiff gives the index of the first byte in which a and b, of equal length,
// differ, or -1.
func firstDiff(a, b []byte) int {
	const step = 4096 // find the neighbourhood at the speed of memory first
	for i := 0; i < len(a); i += step {
		j := min(i+step, len(a))
		if bytes.Equal(a[i:j], b[i:j]) {
			continue
		}
		for k := i; k < j; k++ {
			if a[k] != b[k] {
				return k
			}
		}
	}
	return -1
}
