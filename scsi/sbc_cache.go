package scsi

// cdbImmed is the IMMED bit of SYNCHRONIZE CACHE and PRE-FETCH, byte 1.
const cdbImmed = 0x02

func sbcCacheCommands() []Command {
	sync := func(name string, types Types, use []byte) Command {
		return Command{
			Name: name, Op: use[0], SA: NoSA, Usage: use,
			// It changes nothing that can be read, so a write-protected unit
			// takes it; a reservation treats it as a write (SBC-3 table 12).
			Types: types, Dir: DirNone, Access: AccessNone, Reserve: ResWrite,
			Medium: true, Run: synchronizeCache,
		}
	}
	fetch := func(name string, use []byte) Command {
		return Command{
			Name: name, Op: use[0], SA: NoSA, Usage: use,
			Types: TypeDisk, Dir: DirNone, Access: AccessRead, Reserve: ResRead,
			Run: preFetch,
		}
	}
	return []Command{
		sync("SYNCHRONIZE CACHE(10)", TypeDisk|TypeCD, use10(0x35, cdbImmed)),
		sync("SYNCHRONIZE CACHE(16)", TypeDisk, use16(0x91, cdbImmed)),
		fetch("PRE-FETCH(10)", use10(0x34, cdbImmed)),
		fetch("PRE-FETCH(16)", use16(0x90, cdbImmed)),
	}
}

// synchronizeCache is SYNCHRONIZE CACHE (SBC-3 §5.24, §5.25). Stores know one
// flush, that of everything, so the range is only checked. IMMED allows to
// answer before the data is on the medium and does not ask for it: an initiator
// that hears GOOD may take its data for safe.
func synchronizeCache(t *Task) {
	lba, nblocks := cdbBlocks(t.CDB)
	if s := checkRange(t.unit, lba, nblocks); s != nil {
		t.Fail(*s)
		return
	}
	flushOut(t)
}

// preFetch is PRE-FETCH (SBC-3 §5.8, §5.9). The device server has no cache of
// its own that could take the blocks, for which the standard's answer is GOOD;
// CONDITION MET would promise that all of them are there.
func preFetch(t *Task) {
	lba, nblocks := cdbBlocks(t.CDB)
	if s := checkRange(t.unit, lba, nblocks); s != nil {
		t.Fail(*s)
	}
}
