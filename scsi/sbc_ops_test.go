package scsi_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"testing"

	"blockgate/backing"
	"blockgate/scsi"
	"blockgate/scsi/sense"
)

func TestSBCVerify(t *testing.T) {
	const n = 2100 // more than one piece
	eachVariant(t, func(t *testing.T, r *sbcRig) {
		data := pattern(1, n*512)
		copy(r.disk.data[512:], data)
		for c, op := range opVerify {
			what := fmt.Sprintf("VERIFY(%d)", c)
			r.good(what, r.do(cdbOf(op, 0, 1, n), nil))
			r.good(what+" that sends data it was not asked for", r.do(cdbOf(op, 0, 1, 1), make([]byte, 512)))
			r.good(what+" BYTCHK 1", r.do(cdbOf(op, 0x02, 1, n), data))
			for _, at := range []int{0, 511, 512, 4095, 4096, 1<<20 - 1, 1 << 20, n*512 - 1} {
				other := bytes.Clone(data)
				other[at] ^= 0x40
				r.bad(what, r.do(cdbOf(op, 0x02, 1, n), other), sense.MiscompareAt(uint64(at)))
			}
			if res := r.do(cdbOf(op, 0x02, 1, n), data[:n*512-512]); res.status != scsi.CheckCondition {
				t.Errorf("%s with a block less than it compares: status %#x", what, res.status)
			}
			r.bad(what+" BYTCHK 2", r.do(cdbOf(op, 0x04, 1, 1), data[:512]), sense.InvalidFieldInCDB(1, 2))
		}
	})
}

func TestSBCVerifyOneBlock(t *testing.T) {
	r := newSBCRig(t, newMemDisk(diskBlocks*512, 0), nil)
	block := pattern(3, 512)
	for i := range 3000 {
		copy(r.disk.data[i*512:], block)
	}
	for c, op := range opVerify {
		what := fmt.Sprintf("VERIFY(%d) BYTCHK 3", c)
		for _, n := range []uint32{0, 1, 2, 3000} {
			out := block[:min(n, 1)*512]
			if res := r.good(what, r.do(cdbOf(op, 0x06, 0, n), out)); res.outLen != int64(len(out)) {
				t.Errorf("%s of %d blocks asks for %d bytes", what, n, res.outLen)
			}
		}
		for _, at := range []int{0, 700, 2999*512 + 511} {
			r.disk.data[at] ^= 1
			r.bad(what, r.do(cdbOf(op, 0x06, 0, 3000), block), sense.MiscompareAt(uint64(at%512)))
			r.disk.data[at] ^= 1
		}
	}
}

func TestSBCWriteAndVerify(t *testing.T) {
	for c, op := range opWriteCheck {
		d := newMemDisk(diskBlocks*512, 0)
		r := newSBCRig(t, d, nil)
		what := fmt.Sprintf("WRITE AND VERIFY(%d)", c)
		for bytchk := byte(0); bytchk < 2; bytchk++ {
			data := pattern(bytchk, 8*512)
			r.good(what, r.do(cdbOf(op, bytchk<<1, 3, 8), data))
			r.wantMedium(what, 3*512, data)
		}
		for _, bad := range []byte{0x04, 0x06} {
			r.bad(what, r.do(cdbOf(op, bad, 3, 8), make([]byte, 8*512)), sense.InvalidFieldInCDB(1, 2))
		}
		// A medium that does not keep what it was given.
		d.fail = func(op string, off, n int64) error {
			if op == "ReadAt" {
				d.data[3*512+600] ^= 0x80
			}
			return nil
		}
		r.bad(what, r.do(cdbOf(op, 0x02, 3, 8), pattern(9, 8*512)), sense.MiscompareAt(600))
		r.good(what, r.do(cdbOf(op, 0, 3, 8), pattern(9, 8*512)))
	}
}

func TestSBCCompareAndWrite(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *sbcRig) {
		for _, n := range []int{1, 2, 255} {
			old, data := pattern(1, n*512), pattern(2, n*512)
			for _, lba := range []uint64{0, diskBlocks - uint64(n)} {
				at := int(lba) * 512
				copy(r.disk.data[at:], old)
				for _, diff := range []int{0, 27, n*512 - 27, n*512 - 1} {
					wrong := bytes.Clone(old)
					wrong[diff] ^= 1
					r.bad("miscompare", r.do(cawCDB(0, lba, byte(n)), append(wrong, data...)),
						sense.MiscompareAt(uint64(diff)))
					r.wantMedium("miscompare", at, old)
				}
				r.good("match", r.do(cawCDB(0x18, lba, byte(n)), append(bytes.Clone(old), data...)))
				r.wantMedium("match", at, data)
			}
		}
		r.good("no blocks", r.do(cawCDB(0, 5, 0), nil))
		before := bytes.Clone(r.disk.data)
		zero := make([]byte, 6*512)
		for _, sent := range []int{0, 512, 1023, 1025, 4 * 512} {
			r.bad("data-out of the wrong size", r.do(cawCDB(0, 300, 1), zero[:sent]), sense.InvalidFieldInCDB(13, -1))
		}
		r.bad("data-out too small", r.do(cawCDB(0, 300, 3), zero[:4*512]), sense.InvalidFieldInCDB(13, -1))
		r.wantMedium("refused", 0, before)
	})
}

func TestSBCCompareAndWriteIsTheStores(t *testing.T) {
	d := newMemDisk(diskBlocks*512, backing.CapCompareAndWrite)
	r := newSBCRig(t, d, nil)
	r.good("match", r.do(cawCDB(0, 0, 1), append(make([]byte, 512), pattern(1, 512)...)))
	if d.count("CompareAndWrite") != 1 || d.count("WriteAt") != 0 {
		t.Error("the engine's own compare and write was not used")
	}
}

func TestSBCOrWrite(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *sbcRig) {
		const n = 2500
		have, or := pattern(1, n*512), pattern(77, n*512)
		copy(r.disk.data[10*512:], have)
		r.good("ORWRITE", r.do(cdbOf(0x8b, 0, 10, n), or))
		for i := range have {
			have[i] |= or[i]
		}
		r.wantMedium("ORWRITE", 10*512, have)
		r.good("no blocks", r.do(cdbOf(0x8b, 0, 10, 0), nil))
	})
}

// TestSBCShrunk: the medium becomes smaller while a command's data is on its way.
func TestSBCShrunk(t *testing.T) {
	p := unmapParams([2]uint64{10, 2})
	for name, tc := range map[string]struct{ cdb, out []byte }{
		"WRITE(10)":         {cdbOf(0x2a, 0, 10, 2), make([]byte, 1024)},
		"WRITE AND VERIFY":  {cdbOf(0x2e, 0, 10, 2), make([]byte, 1024)},
		"VERIFY(10) BYTCHK": {cdbOf(0x2f, 0x02, 10, 2), make([]byte, 1024)},
		"WRITE SAME(10)":    {cdbOf(0x41, 0, 10, 2), make([]byte, 512)},
		"ORWRITE":           {cdbOf(0x8b, 0, 10, 2), make([]byte, 1024)},
		"COMPARE AND WRITE": {cawCDB(0, 10, 2), make([]byte, 2048)},
		"UNMAP":             {unmapCDB(len(p)), p},
	} {
		for _, prompt := range []bool{true, false} {
			d := newMemDisk(64*512, backing.CapsAll)
			d.prompt = prompt
			r := newSBCRig(t, d, nil)
			done := make(sbcDone, 1)
			task := &scsi.Task{Nexus: r.nexus, Tag: 1, CDB: tc.cdb, MaxOut: int64(len(tc.out)), Transport: done}
			if !r.nexus.Admit(task) {
				t.Fatal(name, "refused")
			}
			d.mu.Lock()
			d.data = d.data[:11*512]
			d.mu.Unlock()
			r.unit.Resized()
			task.Out = tc.out
			task.Run()
			<-done
			if task.Status != scsi.CheckCondition || task.Sense[12] != 0x21 {
				t.Errorf("%s: status %#x sense % x", name, task.Status, task.Sense)
			}
		}
	}
}

// TestSBCCompareAndWriteIsAtomic: several initiators count in one block of a
// store that only reads and writes. None of their steps may be lost.
func TestSBCCompareAndWriteIsAtomic(t *testing.T) {
	const hosts, steps = 4, 40
	d := newMemDisk(64*512, 0)
	d.prompt = false
	first := newSBCRig(t, d, nil)
	var wg sync.WaitGroup
	for h := range hosts {
		r := *first
		r.attach(fmt.Sprint("host", h))
		wg.Go(func() {
			for done := 0; done < steps; {
				old := r.do(cdbOf(0x28, 0, 9, 1), nil).in
				next := bytes.Clone(old)
				binary.BigEndian.PutUint64(next, binary.BigEndian.Uint64(old)+1)
				switch res := r.do(cawCDB(0, 9, 1), append(old, next...)); {
				case res.status == scsi.Good:
					done++
				case res.key != sense.Miscompare:
					t.Errorf("status %#x sense %x/%02x/%02x", res.status, res.key, res.asc, res.ascq)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := binary.BigEndian.Uint64(d.data[9*512:]); n != hosts*steps {
		t.Errorf("counted to %d, want %d", n, hosts*steps)
	}
}

// TestSBCExclusiveRanges: while an exclusive command is inside the store, commands
// on other blocks go on, and those on its own wait for it.
func TestSBCExclusiveRanges(t *testing.T) {
	t.Run("COMPARE AND WRITE", func(t *testing.T) {
		exclusiveRanges(t, cawCDB(0, 10, 1), append(make([]byte, 512), pattern(1, 512)...))
	})
	t.Run("a WRITE that ends inside a block", func(t *testing.T) {
		exclusiveRanges(t, cdbOf(0x2a, 0, 10, 1), pattern(1, 200))
	})
}

// exclusiveRanges: first is alone with block 10.
func exclusiveRanges(t *testing.T, first, firstOut []byte) {
	u := func(lba, n uint64) []byte { return unmapParams([2]uint64{lba, n}) }
	for name, tc := range map[string]struct {
		other, same       []byte
		otherOut, sameOut []byte
	}{
		"WRITE":      {cdbOf(0x2a, 0, 11, 1), cdbOf(0x2a, 0, 9, 2), make([]byte, 512), make([]byte, 1024)},
		"UNMAP":      {unmapCDB(24), unmapCDB(24), u(11, 50), u(9, 2)},
		"WRITE SAME": {cdbOf(0x93, 0, 11, 0), cdbOf(0x93, 0, 0, 0), make([]byte, 512), make([]byte, 512)},
	} {
		t.Run(name, func(t *testing.T) {
			d := newMemDisk(64*512, backing.CapDiscard)
			d.prompt = false
			inside, left := make(chan struct{}), make(chan struct{})
			leave := sync.OnceFunc(func() { close(left) })
			defer leave()
			d.before = func(off int64) {
				if off == 10*512 {
					close(inside)
					<-left
				}
			}
			r := newSBCRig(t, d, nil)
			done := make(sbcDone, 3)
			start := func(tag uint64, cdb, out []byte) {
				task := &scsi.Task{Nexus: r.nexus, Tag: tag, CDB: cdb, MaxOut: int64(len(out)), Transport: done}
				if !r.nexus.Admit(task) {
					t.Fatal("refused")
				}
				task.Out = out
				task.Run()
			}
			start(1, first, firstOut)
			<-inside
			start(2, tc.same, tc.sameOut)
			start(3, tc.other, tc.otherOut)
			if got := <-done; got.Tag != 3 {
				t.Fatalf("task %d was done first", got.Tag)
			}
			leave()
			// The blocks are free before the status is under way, so the two
			// answers may cross; the data below say who wrote last.
			for range 2 {
				if got := <-done; got.Status != scsi.Good {
					t.Errorf("task %d with status %#x", got.Tag, got.Status)
				}
			}
			if !bytes.Equal(d.data[10*512:][:512], make([]byte, 512)) {
				t.Error("the later command did not have the last word")
			}
		})
	}
}

// TestSBCAbortStopsLongCommands: an aborted command ends at its next piece.
func TestSBCAbortStopsLongCommands(t *testing.T) {
	for name, tc := range map[string]struct {
		op  string
		cdb []byte
		out []byte
	}{
		"VERIFY":     {"ReadAt", cdbOf(0x8f, 0, 0, 0x8000), nil},
		"WRITE SAME": {"WriteAt", cdbOf(0x93, 0, 0, 0x8000), pattern(1, 512)},
	} {
		d := newMemDisk(0x8000*512, 0)
		d.prompt = false
		r := newSBCRig(t, d, nil)
		done := make(sbcDone, 1)
		task := &scsi.Task{Nexus: r.nexus, Tag: 7, CDB: tc.cdb, MaxOut: int64(len(tc.out)), Transport: done}
		d.fail = func(op string, _, _ int64) error {
			if op == tc.op && d.calls[op] == 2 {
				r.nexus.Manage(scsi.AbortTask, scsi.FormatLUN(0), 7, func(scsi.TMFResult) {})
				<-task.Context().Done()
			}
			return nil
		}
		if !r.nexus.Admit(task) {
			t.Fatal(name, "refused")
		}
		task.Out = tc.out
		task.Run()
		<-done
		if !task.Aborted() || d.count(tc.op) > 2 {
			t.Errorf("%s: aborted %v after %d calls", name, task.Aborted(), d.count(tc.op))
		}
	}
}

func TestSBCReadCapacity(t *testing.T) {
	r := newSBCRig(t, newMemDisk(diskBlocks*512, backing.CapsAll), func(c *scsi.UnitConfig) {
		c.PhysicalBlock, c.LowestAligned = 4096, 5
	})
	res := r.good("READ CAPACITY(10)", r.do(make10(0x25), nil))
	if want := []byte{0, 0, 0x0f, 0xff, 0, 0, 2, 0}; !bytes.Equal(res.in, want) {
		t.Errorf("READ CAPACITY(10): % x", res.in)
	}
	rc16 := func(alloc byte) []byte { return []byte{0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, alloc, 0, 0} }
	want := make([]byte, 32)
	copy(want, []byte{0, 0, 0, 0, 0, 0, 0x0f, 0xff, 0, 0, 2, 0, 0, 3, 0xc0, 5})
	for _, alloc := range []byte{0, 1, 12, 32, 255} {
		res = r.good("READ CAPACITY(16)", r.do(rc16(alloc), nil))
		if !bytes.Equal(res.in, want[:min(alloc, 32)]) {
			t.Errorf("READ CAPACITY(16), %d bytes: % x", alloc, res.in)
		}
	}
	r.bad("reserved LBA", r.do(append([]byte{0x9e, 0x10, 1}, make([]byte, 13)...), nil), sense.InvalidFieldInCDB(2, -1))

	thick := newSBCRig(t, newMemDisk(diskBlocks*4096, 0), func(c *scsi.UnitConfig) { c.BlockSize = 4096 })
	res = thick.good("READ CAPACITY(16)", thick.do(rc16(32), nil))
	if binary.BigEndian.Uint32(res.in[8:]) != 4096 || res.in[14] != 0 {
		t.Errorf("READ CAPACITY(16) of a thick unit: % x", res.in)
	}
}

// make10 is a ten byte CDB of zeroes.
func make10(op byte) []byte { return []byte{op, 0, 0, 0, 0, 0, 0, 0, 0, 0} }

func TestSBCReadCapacityTooLargeFor10(t *testing.T) {
	r := newSBCRig(t, newMemDisk(512, 0), func(c *scsi.UnitConfig) { c.Store = newVastDisk() })
	res := r.good("READ CAPACITY(10)", r.do(make10(0x25), nil))
	if binary.BigEndian.Uint32(res.in) != math.MaxUint32 {
		t.Errorf("READ CAPACITY(10): % x", res.in)
	}
}

func TestSBCReadDefectData(t *testing.T) {
	r := newSBCRig(t, newMemDisk(diskBlocks*512, 0), nil)
	c := make10(0x37)
	c[2], c[8] = 0x1d, 32
	if res := r.good("READ DEFECT DATA(10)", r.do(c, nil)); !bytes.Equal(res.in, []byte{0, 0x1d, 0, 0}) {
		t.Errorf("READ DEFECT DATA(10): % x", res.in)
	}
	c[2] = 0x06
	r.bad("vendor specific format", r.do(c, nil), sense.InvalidFieldInCDB(2, 2))
	c = cdbOf(0xb7, 0x18, 0, 32)
	if res := r.good("READ DEFECT DATA(12)", r.do(c, nil)); !bytes.Equal(res.in, []byte{0, 0x18, 0, 0, 0, 0, 0, 0}) {
		t.Errorf("READ DEFECT DATA(12): % x", res.in)
	}
	r.bad("index beyond the list", r.do(cdbOf(0xb7, 0x18, 1, 32), nil), sense.InvalidFieldInCDB(2, -1))
}

func TestSBCWriteProtected(t *testing.T) {
	d := newMemDisk(diskBlocks*512, backing.CapsAll)
	r := newSBCRig(t, d, func(c *scsi.UnitConfig) { c.ReadOnly = true })
	for _, op := range []byte{0x0a, 0x2a, 0xaa, 0x8a, 0x2e, 0xae, 0x8e, 0x41, 0x93, 0x8b} {
		r.bad(fmt.Sprintf("%02x", op), r.do(cdbOf(op, 0, 0, 1), make([]byte, 512)), sense.WriteProtected())
	}
	r.bad("COMPARE AND WRITE", r.do(cawCDB(0, 0, 1), make([]byte, 1024)), sense.WriteProtected())
	p := unmapParams([2]uint64{0, 1})
	r.bad("UNMAP", r.do(unmapCDB(len(p)), p), sense.WriteProtected())
	for _, op := range []byte{0x28, 0x2f, 0x34, 0x35} {
		r.good(fmt.Sprintf("%02x", op), r.do(cdbOf(op, 0, 0, 1), nil))
	}
}
