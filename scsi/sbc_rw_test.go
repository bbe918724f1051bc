package scsi_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"testing"

	"blockgate/backing"
	"blockgate/scsi"
	"blockgate/scsi/sense"
)

const diskBlocks = 4096 // of 512 bytes

var sbcVariants = map[string]struct {
	prompt bool
	caps   backing.Caps
}{
	"prompt, every capability": {true, backing.CapsAll},
	"prompt, plain":            {true, 0},
	"slow, every capability":   {false, backing.CapsAll},
	"slow, plain":              {false, 0},
	"slow, try only":           {false, backing.CapTryRead | backing.CapTryWrite},
}

func eachVariant(t *testing.T, fn func(t *testing.T, r *sbcRig)) {
	for name, v := range sbcVariants {
		t.Run(name, func(t *testing.T) {
			d := newMemDisk(diskBlocks*512, v.caps)
			d.prompt = v.prompt
			fn(t, newSBCRig(t, d, nil))
		})
	}
}

func TestSBCReadWhatWasWritten(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *sbcRig) {
		for n, wop := range opWrite {
			for _, lba := range []uint64{0, 1, 77, diskBlocks - 3} {
				data := pattern(byte(n), 3*512)
				what := fmt.Sprintf("WRITE(%d) at %d", n, lba)
				r.good(what, r.do(cdbOf(wop, 0, lba, 3), data))
				r.wantMedium(what, int(lba)*512, data)
				for m, rop := range opRead {
					res := r.good(what, r.do(cdbOf(rop, 0, lba, 3), nil))
					if !bytes.Equal(res.in, data) || res.inLen != 3*512 {
						t.Fatalf("READ(%d) after %s: wrong data", m, what)
					}
				}
			}
		}
	})
}

func TestSBCSixByteLengthZeroIs256(t *testing.T) {
	r := newSBCRig(t, newMemDisk(diskBlocks*512, 0), nil)
	data := pattern(9, 256*512)
	r.good("WRITE(6)", r.do(cdbOf(0x0a, 0, 5, 0), data))
	r.wantMedium("WRITE(6)", 5*512, data)
	if res := r.good("READ(6)", r.do(cdbOf(0x08, 0, 5, 0), nil)); !bytes.Equal(res.in, data) {
		t.Fatalf("READ(6) gave %d bytes that differ", len(res.in))
	}
}

// TestSBCRange holds every command with an LBA against the end of the medium.
func TestSBCRange(t *testing.T) {
	r := newSBCRig(t, newMemDisk(diskBlocks*512, backing.CapsAll), nil)
	const size = diskBlocks
	ops := map[string]map[int]byte{
		"READ": opRead, "WRITE": opWrite, "VERIFY": opVerify, "WRITE AND VERIFY": opWriteCheck,
		"WRITE SAME": opWriteSame, "SYNCHRONIZE CACHE": opSync, "PRE-FETCH": opPreFetch, "ORWRITE": {16: 0x8b},
	}
	for name, family := range ops {
		for n, op := range family {
			lengths := func(nblocks uint32) []byte { // as much data as the command asks for
				switch {
				case name == "WRITE SAME":
					return make([]byte, 512)
				case name == "WRITE", name == "WRITE AND VERIFY", name == "ORWRITE":
					return make([]byte, int(min(nblocks, 256))*512)
				}
				return nil
			}
			try := func(lba uint64, nblocks uint32, ok bool) {
				t.Helper()
				what := fmt.Sprintf("%s(%d) lba %#x length %d", name, n, lba, nblocks)
				res := r.do(cdbOf(op, 0, lba, nblocks), lengths(nblocks))
				if ok {
					r.good(what, res)
					return
				}
				want := sense.LBAOutOfRange(0)
				want.InfoValid = false
				r.bad(what, res, want)
				if first := max(lba, size); first <= math.MaxUint32 && (!res.infoOK || res.info != first) {
					t.Fatalf("%s: INFORMATION %#x", what, res.info)
				}
			}
			try(size-1, 1, true)
			try(size-2, 2, true)
			try(size, 1, false)
			try(size-1, 2, false)
			try(size+1, 1, false)
			if n == 6 {
				try(0x1fffff, 1, false)
				continue
			}
			try(0, 0, true)
			try(size-1, 0, true)
			try(size, 0, false)
			try(size+1, 0, false)
			try(1<<31, 0, false)
			try(math.MaxUint32, 1, false)
			try(math.MaxUint32, 0, false)
			if n == 16 {
				try(1<<63, 0, false)
				try(math.MaxUint64, 1, false)
				try(math.MaxUint64, 0, false)
				try(math.MaxUint64, 2, false)
				try(1<<55, 1, false) // its byte offset overflows
			}
		}
	}
	for _, lba := range []uint64{size, size + 1, 1 << 63, math.MaxUint64} {
		want := sense.LBAOutOfRange(0)
		want.InfoValid = false
		r.bad("COMPARE AND WRITE", r.do(cawCDB(0, lba, 1), make([]byte, 1024)), want)
		r.bad("COMPARE AND WRITE", r.do(cawCDB(0, lba, 0), nil), want)
	}
}

func TestSBCTransferLimit(t *testing.T) {
	r := newSBCRig(t, newMemDisk(diskBlocks*512, 0), func(c *scsi.UnitConfig) { c.MaxTransfer = 64 << 10 })
	field := map[int]int{10: 7, 12: 6, 16: 10}
	for name, family := range map[string]map[int]byte{"READ": opRead, "WRITE": opWrite, "WRITE AND VERIFY": opWriteCheck} {
		for n, op := range family {
			if n == 6 {
				continue
			}
			var out []byte
			if name != "READ" {
				out = make([]byte, 128*512)
			}
			r.good(name, r.do(cdbOf(op, 0, 0, 128), out))
			r.bad(name, r.do(cdbOf(op, 0, 0, 129), out), sense.InvalidFieldInCDB(field[n], -1))
		}
	}
	r.good("VERIFY without data", r.do(cdbOf(0x8f, 0, 0, 129), nil))
	r.bad("VERIFY with data", r.do(cdbOf(0x8f, 0x02, 0, 129), make([]byte, 129*512)), sense.InvalidFieldInCDB(10, -1))
}

func TestSBCProtectionIsRefused(t *testing.T) {
	r := newSBCRig(t, newMemDisk(diskBlocks*512, backing.CapsAll), nil)
	for _, op := range []byte{0x28, 0xa8, 0x88, 0x2a, 0xaa, 0x8a, 0x2f, 0xaf, 0x8f, 0x2e, 0xae, 0x8e, 0x41, 0x93, 0x8b} {
		for p := byte(1); p < 8; p++ {
			r.bad(fmt.Sprintf("%02x PROTECT %d", op, p), r.do(cdbOf(op, p<<5, 0, 1), make([]byte, 512)),
				sense.InvalidFieldInCDB(1, -1))
		}
	}
	r.bad("COMPARE AND WRITE", r.do(cawCDB(0x20, 0, 1), make([]byte, 1024)), sense.InvalidFieldInCDB(1, -1))
}

// TestSBCResiduals: the initiator announces more or less than the CDB asks for.
func TestSBCResiduals(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *sbcRig) {
		data := pattern(1, 4*512)
		r.good("fill", r.do(cdbOf(0x2a, 0, 0, 4), data))

		for _, room := range []int64{0, 200, 512, 700, 2048, 10000} {
			res := r.good("READ", r.doEDTL(cdbOf(0x28, 0, 0, 4), nil, 0, room))
			if res.inLen != 2048 || !bytes.Equal(res.in, data[:min(room, 2048)]) {
				t.Fatalf("READ with room for %d: %d bytes of %d", room, len(res.in), res.inLen)
			}
		}
		for _, op := range []byte{0x2a, 0xaa, 0x8a, 0x2e, 0xae, 0x8e} {
			flags := byte(0)
			if op&0x0f == 0x0e {
				flags = 0x02 // BYTCHK
			}
			for _, sent := range []int{0, 200, 512, 700, 1024, 10000} {
				clear(r.disk.data)
				out := pattern(byte(sent), sent)
				res := r.do(cdbOf(op, flags, 8, 2), out)
				if res.outLen != 1024 {
					t.Fatalf("%02x asks for %d bytes", op, res.outLen)
				}
				whole := min(sent, 1024)
				if whole%512 != 0 && op&0x0f == 0x0e { // refused as a whole
					r.bad("WRITE AND VERIFY of a part of a block", res, sense.InvalidInformationUnit())
					whole = 0
				} else {
					r.good("WRITE", res)
				}
				want := append(bytes.Clone(out[:whole]), make([]byte, 4*512-whole)...)
				r.wantMedium(fmt.Sprintf("%02x with %d bytes", op, sent), 8*512, want)
			}
		}
	})
}

// TestSBCDurability: what FUA or a write cache that is off promises is on the
// medium at GOOD.
func TestSBCDurability(t *testing.T) {
	cmds := map[string]struct {
		cdb  []byte
		out  []byte
		want []byte
	}{
		"WRITE(10) FUA":       {cdbOf(0x2a, 0x08, 4, 1), pattern(1, 512), pattern(1, 512)},
		"WRITE(12) FUA":       {cdbOf(0xaa, 0x08, 4, 1), pattern(2, 512), pattern(2, 512)},
		"WRITE(16) DPO FUA":   {cdbOf(0x8a, 0x18, 4, 1), pattern(3, 512), pattern(3, 512)},
		"WRITE AND VERIFY":    {cdbOf(0x2e, 0x02, 4, 1), pattern(4, 512), pattern(4, 512)},
		"ORWRITE FUA":         {cdbOf(0x8b, 0x08, 4, 1), pattern(5, 512), pattern(5, 512)},
		"COMPARE AND WRITE F": {cawCDB(0x08, 4, 1), append(make([]byte, 512), pattern(6, 512)...), pattern(6, 512)},
	}
	uncached := map[string]struct {
		cdb  []byte
		out  []byte
		want []byte
	}{
		"WRITE(6)":          {cdbOf(0x0a, 0, 4, 1), pattern(1, 512), pattern(1, 512)},
		"WRITE(10)":         {cdbOf(0x2a, 0, 4, 1), pattern(2, 512), pattern(2, 512)},
		"WRITE SAME(10)":    {cdbOf(0x41, 0, 4, 2), pattern(3, 512), append(pattern(3, 512), pattern(3, 512)...)},
		"ORWRITE":           {cdbOf(0x8b, 0, 4, 1), pattern(5, 512), pattern(5, 512)},
		"COMPARE AND WRITE": {cawCDB(0, 4, 1), append(make([]byte, 512), pattern(6, 512)...), pattern(6, 512)},
	}
	for _, caps := range []backing.Caps{0, backing.CapsAll} {
		for _, prompt := range []bool{true, false} {
			for name, c := range cmds {
				d := newMemDisk(diskBlocks*512, caps)
				d.prompt = prompt
				r := newSBCRig(t, d, nil)
				r.good(name, r.do(c.cdb, c.out))
				if !bytes.Equal(d.stable[4*512:][:len(c.want)], c.want) {
					t.Errorf("%s (caps %x): not on the medium", name, caps)
				}
			}
			for name, c := range uncached {
				d := newMemDisk(diskBlocks*512, caps)
				d.prompt = prompt
				r := newSBCRig(t, d, func(c *scsi.UnitConfig) { c.WriteCache = false })
				r.good(name, r.do(c.cdb, c.out))
				if !bytes.Equal(d.stable[4*512:][:len(c.want)], c.want) {
					t.Errorf("%s without a write cache (caps %x): not on the medium", name, caps)
				}
			}
		}
	}

	d := newMemDisk(diskBlocks*512, backing.CapWriteFUA)
	r := newSBCRig(t, d, nil)
	r.good("WRITE", r.do(cdbOf(0x2a, 0, 0, 1), pattern(1, 512)))
	if d.count("Flush")+d.count("WriteFUA") != 0 {
		t.Error("a plain WRITE did not stay in the cache")
	}
	r.good("FUA", r.do(cdbOf(0x2a, 8, 1, 1), pattern(1, 512)))
	if d.count("Flush") != 0 || d.count("WriteFUA") != 1 {
		t.Error("FUA flushed everything though the store writes through")
	}
	for _, op := range opSync {
		clear(d.stable)
		r.good("SYNCHRONIZE CACHE", r.do(cdbOf(op, 0x02, 0, 0), nil))
		if !bytes.Equal(d.stable, d.data) {
			t.Error("SYNCHRONIZE CACHE with IMMED came back before the flush")
		}
	}
}

// TestSBCSixBytesHaveNoFUA: the bit is a part of the LBA there.
func TestSBCSixBytesHaveNoFUA(t *testing.T) {
	v := newVastDisk()
	r := newSBCRig(t, newMemDisk(512, 0), func(c *scsi.UnitConfig) { c.Store = v })
	r.good("WRITE(6)", r.do(cdbOf(0x0a, 0, 0x1fffff, 1), make([]byte, 512)))
	if *v.written != 512 || v.count("Flush") != 0 {
		t.Errorf("%d bytes written, %d flushes", *v.written, v.count("Flush"))
	}
}

func TestSBCUnmapIsDurableWithoutCache(t *testing.T) {
	d := newMemDisk(64*512, backing.CapDiscard)
	r := newSBCRig(t, d, func(c *scsi.UnitConfig) { c.WriteCache = false })
	r.good("WRITE", r.do(cdbOf(0x2a, 0, 0, 64), pattern(1, 64*512)))
	p := unmapParams([2]uint64{3, 4})
	r.good("UNMAP", r.do(unmapCDB(len(p)), p))
	if !bytes.Equal(d.stable, d.data) {
		t.Error("UNMAP is not on the medium")
	}
	r.good("WRITE SAME", r.do(cdbOf(0x93, 0x08, 20, 4), make([]byte, 512)))
	if !bytes.Equal(d.stable, d.data) {
		t.Error("WRITE SAME with UNMAP is not on the medium")
	}
}

func TestSBCTryFallsBack(t *testing.T) {
	d := newMemDisk(diskBlocks*512, backing.CapTryRead|backing.CapTryWrite)
	d.prompt = false
	d.fail = func(op string, _, _ int64) error {
		if op == "TryReadAt" || op == "TryWriteAt" {
			return errNotAtHand
		}
		return nil
	}
	r := newSBCRig(t, d, nil)
	data := pattern(1, 2048)
	r.good("WRITE", r.do(cdbOf(0x2a, 0, 3, 4), data))
	if res := r.good("READ", r.do(cdbOf(0x28, 0, 3, 4), nil)); !bytes.Equal(res.in, data) {
		t.Error("READ gave something else")
	}
	for op, n := range map[string]int{"TryReadAt": 1, "TryWriteAt": 1, "ReadAt": 1, "WriteAt": 1} {
		if d.count(op) != n {
			t.Errorf("%s was called %d times", op, d.count(op))
		}
	}
	r.good("FUA", r.do(cdbOf(0x2a, 0x08, 3, 4), data))
	if d.count("TryWriteAt") != 1 {
		t.Error("a FUA write was tried without waiting")
	}
}

func TestSBCStoreErrors(t *testing.T) {
	boom := errors.New("boom")
	for _, tc := range []struct {
		name string
		op   string // store call that fails
		err  error
		cdb  []byte
		out  []byte
		want sense.Sense
	}{
		{"READ", "ReadAt", boom, cdbOf(0x28, 0, 7, 2), nil, sense.UnrecoveredRead(7)},
		{"WRITE", "WriteAt", boom, cdbOf(0x2a, 0, 7, 2), make([]byte, 1024), sense.WriteFault(7)},
		{"WRITE full", "WriteAt", backing.ErrNoSpace, cdbOf(0x2a, 0, 7, 2), make([]byte, 1024), sense.SpaceAllocationFailed()},
		{"WRITE wrapped", "WriteAt", fmt.Errorf("disk.img: %w", backing.ErrNoSpace), cdbOf(0x8a, 0, 7, 2),
			make([]byte, 1024), sense.SpaceAllocationFailed()},
		{"WRITE SAME full", "WriteAt", backing.ErrNoSpace, cdbOf(0x93, 0, 7, 2), pattern(1, 512), sense.SpaceAllocationFailed()},
		{"WRITE SAME zero full", "WriteAt", backing.ErrNoSpace, cdbOf(0x93, 1, 7, 2), nil, sense.SpaceAllocationFailed()},
		{"COMPARE AND WRITE full", "WriteAt", backing.ErrNoSpace, cawCDB(0, 7, 1), make([]byte, 1024), sense.SpaceAllocationFailed()},
		{"ORWRITE full", "WriteAt", backing.ErrNoSpace, cdbOf(0x8b, 0, 7, 1), make([]byte, 512), sense.SpaceAllocationFailed()},
		{"WRITE read-only", "WriteAt", backing.ErrReadOnly, cdbOf(0x2a, 0, 7, 2), make([]byte, 1024), sense.WriteProtected()},
		{"ORWRITE read", "ReadAt", boom, cdbOf(0x8b, 0, 7, 1), make([]byte, 512), sense.UnrecoveredRead(7)},
		{"VERIFY", "ReadAt", boom, cdbOf(0x2f, 0, 7, 2), nil, sense.UnrecoveredRead(7)},
		{"WRITE AND VERIFY", "ReadAt", boom, cdbOf(0x2e, 0, 7, 2), make([]byte, 1024), sense.UnrecoveredRead(7)},
		{"FUA flush", "Flush", boom, cdbOf(0x2a, 0x08, 7, 2), make([]byte, 1024), sense.SyncFailed()},
		{"SYNCHRONIZE CACHE", "Flush", boom, cdbOf(0x35, 0, 0, 0), nil, sense.SyncFailed()},
		{"SYNCHRONIZE CACHE full", "Flush", backing.ErrNoSpace, cdbOf(0x35, 0, 0, 0), nil, sense.SpaceAllocationFailed()},
	} {
		for _, prompt := range []bool{true, false} {
			d := newMemDisk(diskBlocks*512, 0)
			d.prompt = prompt
			r := newSBCRig(t, d, nil)
			d.fail = func(op string, _, _ int64) error {
				if op == tc.op {
					return tc.err
				}
				return nil
			}
			r.bad(tc.name, r.do(tc.cdb, tc.out), tc.want)
			d.fail = nil
			r.good(tc.name+", later", r.do(cdbOf(0x28, 0, 7, 2), nil))
		}
	}
}

func TestSBCNoAllocations(t *testing.T) {
	r := newSBCRig(t, newMemDisk(diskBlocks*512, 0), nil)
	done := make(sbcDone, 1)
	task := &scsi.Task{}
	out := make([]byte, 4096)
	for name, cdb := range map[string][]byte{
		"READ(10)": cdbOf(0x28, 0, 16, 8), "WRITE(10)": cdbOf(0x2a, 0, 16, 8),
	} {
		run := func() {
			task.Nexus, task.Tag, task.CDB, task.MaxIn, task.MaxOut, task.Transport = r.nexus, 1, cdb, 4096, 4096, done
			if r.nexus.Admit(task) {
				task.Out = out[:task.OutLen]
				task.Run()
			}
			<-done
			if task.Status != scsi.Good {
				t.Fatal(name, task.Status)
			}
			task.Reset()
		}
		run()
		if n := testing.AllocsPerRun(200, run); n != 0 && !raceEnabled {
			t.Errorf("%s of 4 KiB: %v allocations", name, n)
		}
	}
}
