package scsi

import (
	"blockgate/internal/bufpool"
	"blockgate/scsi/sense"
)

func sbcReadCommands() []Command {
	row := func(name string, types Types, use []byte) Command {
		return Command{
			Name: name, Op: use[0], SA: NoSA, Usage: use,
			Types: types, Dir: DirIn, Access: AccessRead, Reserve: ResRead,
			Medium: true, Range: rangeOfCDB, Try: tryRead, Lend: lendRead, Begin: beginRead, Run: read,
		}
	}
	return []Command{
		row("READ(6)", TypeDisk, use6(0x08)),
		row("READ(10)", TypeDisk|TypeCD, use10(0x28, cdbDPO|cdbFUA)),
		row("READ(12)", TypeDisk|TypeCD, use12(0xa8, cdbDPO|cdbFUA)),
		row("READ(16)", TypeDisk, use16(0x88, cdbDPO|cdbFUA)),
	}
}

func sbcWriteCommands() []Command {
	row := func(name string, use []byte) Command {
		c := Command{
			Name: name, Op: use[0], SA: NoSA, Usage: use,
			Types: TypeDisk, Dir: DirOut, Access: AccessWrite, Reserve: ResWrite,
			Medium: true, OutLen: transferOutLen, Range: rangeOfCDB, Try: tryWrite, Begin: beginWrite, Run: write,
		}
		short := c
		short.Exclusive, short.Try, short.Begin, short.Run = true, nil, nil, writeShort
		c.Short = &short
		return c
	}
	return []Command{
		row("WRITE(6)", use6(0x0a)),
		row("WRITE(10)", use10(0x2a, cdbDPO|cdbFUA)),
		row("WRITE(12)", use12(0xaa, cdbDPO|cdbFUA)),
		row("WRITE(16)", use16(0x8a, cdbDPO|cdbFUA)),
	}
}

// read is READ (SBC-3 §5.10 to §5.13). FUA asks for data that is no older than
// the medium's; every store's reads see its latest writes, and a write cache
// that no reader can miss needs no flush before a read. Only what the initiator
// has room for is read.
func read(t *Task) {
	lba, nblocks := cdbBlocks(t.CDB)
	if s := checkTransfer(t, lba, nblocks); s != nil {
		t.Fail(*s)
		return
	}
	off := byteOffset(t.unit, lba)
	buf := t.AllocIn(int64(nblocks) * int64(t.unit.BlockSize()))
	if len(buf) == 0 {
		return
	}
	storeOK(t, t.Store().ReadAt(t.Context(), buf, off), AccessRead, off)
}

// tryRead is read for data that is at hand. Whatever is wrong with the CDB is
// left to read.
func tryRead(t *Task) bool {
	u := t.unit
	if u.caps.tryReader == nil {
		return false
	}
	lba, nblocks := cdbBlocks(t.CDB)
	if checkTransfer(t, lba, nblocks) != nil {
		return false
	}
	off := byteOffset(u, lba)
	buf := t.AllocIn(int64(nblocks) * int64(u.BlockSize()))
	if len(buf) == 0 {
		return true
	}
	done, err := u.caps.tryReader.TryReadAt(buf, off)
	if !done {
		t.AllocIn(0)
		return false
	}
	storeOK(t, err, AccessRead, off)
	return true
}

// transferOutLen is Command.OutLen of commands whose data-out is the blocks of
// the CDB.
func transferOutLen(t *Task) (int64, *sense.Sense) {
	lba, nblocks := cdbBlocks(t.CDB)
	if s := checkTransfer(t, lba, nblocks); s != nil {
		return 0, s
	}
	return int64(nblocks) * int64(t.unit.BlockSize()), nil
}

// outBlocks gives the place and the data of a command like WRITE at Run, when
// the data is there. The range is checked again, since the medium may have
// become smaller while the data came in. ok false: the task has failed.
func outBlocks(t *Task) (off int64, data []byte, ok bool) {
	lba, nblocks := cdbBlocks(t.CDB)
	if s := checkRange(t.unit, lba, nblocks); s != nil {
		t.Fail(*s)
		return 0, nil, false
	}
	if data, ok = wholeBlocks(t.unit, t.Out, t.OutLen); !ok {
		t.Fail(sense.InvalidInformationUnit())
		return 0, nil, false
	}
	return byteOffset(t.unit, lba), data, true
}

// write is WRITE (SBC-3 §5.30 to §5.33).
func write(t *Task) {
	off, data, ok := outBlocks(t)
	if !ok || len(data) == 0 {
		return
	}
	writeOut(t, data, off, durable(t))
}

// writeShort is write for an initiator that announces less data than its CDB asks
// for, and ends it inside a block: the rest of that block stays as it is. (The
// rest of the range is overflow, as it is when whole blocks are missing.) Nobody
// else changes the block meanwhile.
func writeShort(t *Task) {
	u := t.unit
	lba, nblocks := cdbBlocks(t.CDB)
	if s := checkRange(u, lba, nblocks); s != nil {
		t.Fail(*s)
		return
	}
	data, off := t.Out, byteOffset(u, lba)
	whole := len(data) / u.BlockSize() * u.BlockSize()
	if whole > 0 && !writeOut(t, data[:whole], off, durable(t)) || whole == len(data) {
		return
	}
	off += int64(whole)
	b := bufpool.Get(u.BlockSize())
	defer bufpool.Put(b)
	if storeOK(t, t.Store().ReadAt(t.Context(), b.B, off), AccessRead, off) {
		copy(b.B, data[whole:])
		writeOut(t, b.B, off, durable(t))
	}
}

// tryWrite is write where the store takes the data without waiting for a medium,
// which only a write that may stay in a cache can hope for.
func tryWrite(t *Task) bool {
	u := t.unit
	if u.caps.tryWriter == nil || durable(t) {
		return false
	}
	lba, nblocks := cdbBlocks(t.CDB)
	if checkRange(u, lba, nblocks) != nil {
		return false
	}
	data, ok := wholeBlocks(u, t.Out, t.OutLen)
	if !ok {
		return false
	}
	if len(data) == 0 {
		return true
	}
	off := byteOffset(u, lba)
	done, err := u.caps.tryWriter.TryWriteAt(data, off)
	if done {
		storeOK(t, err, AccessWrite, off)
	}
	return done
}
