package scsi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/backing"
	"blockgate/scsi"
)

// keptRecord is a SanitizeStore in memory.
type keptRecord struct {
	mu   sync.Mutex
	data []byte
	err  error
}

func (k *keptRecord) Load(context.Context) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.data, k.err
}

func (k *keptRecord) Save(_ context.Context, data []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err == nil {
		k.data = bytes.Clone(data)
	}
	return k.err
}

const (
	saOverwrite  = 0x01
	saBlockErase = 0x02
	saExit       = 0x1f

	immed = 0x80
	ause  = 0x20
)

func sanitizeCDB(sa byte, n int) []byte {
	return []byte{0x48, sa, 0, 0, 0, 0, 0, byte(n >> 8), byte(n), 0}
}

// overwriteList is the parameter list of OVERWRITE.
func overwriteList(flags byte, pattern ...byte) []byte {
	return append([]byte{flags, 0, byte(len(pattern) >> 8), byte(len(pattern))}, pattern...)
}

func unbound(c *scsi.UnitConfig) { c.OverwriteRate = -1 }

func sense3(r sbcResult) [3]byte { return [3]byte{byte(r.key), r.asc, r.ascq} }

func (r *sbcRig) want(what string, got sbcResult, key, asc, ascq byte) {
	r.t.Helper()
	if got.status != scsi.CheckCondition || sense3(got) != [3]byte{key, asc, ascq} {
		r.t.Errorf("%s: status %#x sense % x, want %02x %02x %02x", what, got.status, sense3(got), key, asc, ascq)
	}
}

const sanitizeSize = 1 << 20

func TestSanitizeBlockErase(t *testing.T) {
	disk := newMemDisk(sanitizeSize, backing.CapDiscard)
	r := newSBCRig(t, disk, unbound)
	r.good("", r.do(cdbOf(0x2a, 0, 7, 1), pattern(1, 512)))
	r.good("BLOCK ERASE", r.do(sanitizeCDB(saBlockErase, 0), nil))
	r.wantMedium("", 0, make([]byte, sanitizeSize))
	if !bytes.Equal(disk.stable, disk.data) {
		t.Error("GOOD before it was durable")
	}
	for i, a := range disk.alloc {
		if a {
			t.Fatalf("block %d is still allocated", i)
		}
	}
	r.want("a parameter list", r.do(sanitizeCDB(saBlockErase, 4), make([]byte, 4)), 5, 0x24, 0)
	r.want("CRYPTO ERASE would be a lie", r.do(sanitizeCDB(0x03, 0), nil), 5, 0x24, 0)

	full := newSBCRig(t, newMemDisk(sanitizeSize, 0), unbound)
	full.want("on a store that cannot unmap", full.do(sanitizeCDB(saBlockErase, 0), nil), 5, 0x24, 0)
}

func TestSanitizeOverwrite(t *testing.T) {
	disk := newMemDisk(sanitizeSize, 0)
	r := newSBCRig(t, disk, unbound)
	over := func(list []byte) sbcResult { return r.do(sanitizeCDB(saOverwrite, len(list)), list) }
	blockOf := func(p ...byte) []byte {
		one := bytes.Repeat(p, 512/len(p)+1)[:512]
		return bytes.Repeat(one, sanitizeSize/512)
	}
	p := pattern(3, 512)
	for name, c := range map[string]struct{ list, want []byte }{
		"one byte":                          {overwriteList(1, 0xaa), blockOf(0xaa)},
		"a block":                           {overwriteList(1, p...), blockOf(p...)},
		"each block begins with it":         {overwriteList(1, 1, 2, 3), blockOf(1, 2, 3)},
		"two passes":                        {overwriteList(2, 0x55), blockOf(0x55)},
		"two passes, the second inverted":   {overwriteList(0x82, 0x55), blockOf(0xaa)},
		"three passes, the second inverted": {overwriteList(0x83, 0x55), blockOf(0x55)},
	} {
		before := disk.count("WriteAt")
		r.good(name, over(c.list))
		r.wantMedium(name, 0, c.want)
		if !bytes.Equal(disk.stable, disk.data) {
			t.Errorf("%s: GOOD before it was durable", name)
		}
		if passes := int(c.list[0] & 0x1f); disk.count("WriteAt")-before < passes {
			t.Errorf("%s: %d writes for %d passes", name, disk.count("WriteAt")-before, passes)
		}
	}
	for name, c := range map[string]struct {
		list []byte
		n    int
		asc  byte
	}{
		"no list":             {nil, 0, 0x24},
		"header alone":        {overwriteList(1), 4, 0x24},
		"more than a block":   {overwriteList(1, make([]byte, 513)...), 517, 0x24},
		"no pass":             {overwriteList(0, 1), 5, 0x26},
		"a test pattern":      {overwriteList(0x21, 1), 5, 0x26},
		"reserved byte":       {[]byte{1, 1, 0, 1, 0}, 5, 0x26},
		"pattern of nothing":  {[]byte{1, 0, 0, 0, 0}, 5, 0x26},
		"pattern beyond list": {[]byte{1, 0, 0, 2, 0}, 5, 0x1a},
		"less data than said": {[]byte{1, 0, 0, 1}, 5, 0x1a},
	} {
		before := disk.count("WriteAt")
		r.want(name, r.do(sanitizeCDB(saOverwrite, c.n), c.list), 5, c.asc, 0)
		if disk.count("WriteAt") != before {
			t.Errorf("%s: refused and written", name)
		}
	}
}

// While the operation runs everything but questions about the unit gets its
// progress, and neither resets nor the loss of the nexus stop it.
func TestSanitizeInProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := newMemDisk(16<<20, 0)
		r := newSBCRig(t, disk, func(c *scsi.UnitConfig) { c.OverwriteRate = 1 << 20 }) // 16 s
		r.good("IMMED", r.do(sanitizeCDB(immed|saOverwrite, 5), overwriteList(1, 0x5a)))
		synctest.Wait()
		busy := func(what string) {
			t.Helper()
			for _, cdb := range [][]byte{tur, cdbOf(0x28, 0, 0, 1), make10(0x25), {0x1b, 0, 0, 0, 1, 0}, {0x1a, 0, 0x3f, 0, 255, 0}, sanitizeCDB(saExit, 0)} {
				r.want(what, r.do(cdb, nil), 2, 0x04, 0x1b)
			}
			r.good(what, r.do([]byte{0x12, 0, 0, 0, 96, 0}, nil))
			r.good(what, r.do(cdb12(0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64), nil))
		}
		busy("just begun")
		progress := func() uint16 {
			t.Helper()
			b := r.good("REQUEST SENSE", r.do([]byte{0x03, 0, 0, 0, 18, 0}, nil)).in
			if b[2]&0x0f != 2 || b[12] != 0x04 || b[13] != 0x1b || b[15]&0x80 == 0 {
				t.Errorf("REQUEST SENSE: % x", b)
			}
			return binary.BigEndian.Uint16(b[16:])
		}
		first := progress()
		time.Sleep(8 * time.Second)
		if p := progress(); p <= first || p < 0x4000 || p > 0xd000 {
			t.Errorf("progress %04x, then %04x half way", first, p)
		}
		for _, f := range []scsi.TMF{scsi.AbortTaskSet, scsi.LUNReset, scsi.TargetWarmReset} {
			done := make(chan scsi.TMFResult, 1)
			r.nexus.Manage(f, 0, 0, func(x scsi.TMFResult) { done <- x })
			if x := <-done; x != scsi.FunctionComplete {
				t.Errorf("task management %d: %d", f, x)
			}
		}
		r.nexus.Detach(nil)
		r.nexus = r.device.Attach(scsi.NexusConfig{Initiator: scsi.InitiatorPort{Name: "iqn.2026-01.test:later"}})
		defer r.nexus.Detach(nil)
		r.do(tur, nil) // the attention of a new nexus
		busy("after resets and another login")
		time.Sleep(20 * time.Second)
		synctest.Wait()
		r.good("done", r.do(tur, nil))
		r.wantMedium("", 0, bytes.Repeat([]byte{0x5a}, 16<<20))
	})
}

func TestSanitizeFailure(t *testing.T) {
	disk := newMemDisk(sanitizeSize, backing.CapDiscard)
	kept := &keptRecord{}
	r := newSBCRig(t, disk, func(c *scsi.UnitConfig) { c.OverwriteRate, c.Sanitize = -1, kept })
	disk.fail = func(op string, _, _ int64) error {
		if op == "WriteAt" || op == "Discard" {
			return errors.New("broken")
		}
		return nil
	}
	over := overwriteList(1, 1)
	r.want("restricted", r.do(sanitizeCDB(saOverwrite, 5), over), 3, 0x31, 0x03)
	r.want("reads", r.do(cdbOf(0x28, 0, 0, 1), nil), 3, 0x31, 0x03)
	r.want("TEST UNIT READY", r.do(tur, nil), 3, 0x31, 0x03)
	r.want("no exit without AUSE", r.do(sanitizeCDB(saExit, 0), nil), 5, 0x24, 0)
	if len(kept.data) == 0 {
		t.Error("nothing is kept of the failure")
	}

	// A restart changes nothing about that.
	again := newSBCRigNotReady(t, disk, func(c *scsi.UnitConfig) { c.OverwriteRate, c.Sanitize = -1, kept })
	again.want("after a restart", again.do(cdbOf(0x28, 0, 0, 1), nil), 3, 0x31, 0x03)
	again.want("after a restart", again.do(sanitizeCDB(saExit, 0), nil), 5, 0x24, 0)
	again.want("unrestricted", again.do(sanitizeCDB(ause|saBlockErase, 0), nil), 3, 0x31, 0x03)
	again.good("exit", again.do(sanitizeCDB(saExit, 0), nil))
	again.good("it can be read", again.do(cdbOf(0x28, 0, 0, 1), nil))
	if len(kept.data) != 0 {
		t.Errorf("kept after the exit: %s", kept.data)
	}
	again.good("exit when nothing is wrong", again.do(sanitizeCDB(saExit, 0), nil))

	disk.fail = nil
	r.good("another one that succeeds", r.do(sanitizeCDB(saOverwrite, 5), over))
	r.good("the medium is back", r.do(cdbOf(0x28, 0, 0, 1), nil))

	kept.err = errors.New("no state")
	before := disk.count("WriteAt")
	r.want("what cannot be recorded is not begun", r.do(sanitizeCDB(saOverwrite, 5), over), 4, 0x44, 0)
	if disk.count("WriteAt") != before {
		t.Error("it was begun")
	}
}

// newSBCRigNotReady is newSBCRig for a unit that does not become ready.
func newSBCRigNotReady(t *testing.T, disk *memDisk, change func(*scsi.UnitConfig)) *sbcRig {
	cfg := scsi.UnitConfig{Type: scsi.TypeDirectAccess, Store: disk, WriteCache: true, Serial: "1"}
	change(&cfg)
	u, err := scsi.NewUnit(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := &sbcRig{t: t, disk: disk, unit: u, bs: 512, device: scsi.NewDevice(scsi.DeviceConfig{Name: "iqn.2026-01.test:disk"})}
	if err := r.device.SetUnit(0, u); err != nil {
		t.Fatal(err)
	}
	r.nexus = r.device.Attach(scsi.NexusConfig{Initiator: scsi.InitiatorPort{Name: "iqn.2026-01.test:host"}})
	t.Cleanup(func() { r.nexus.Detach(nil); u.Close(context.Background()) })
	r.do(tur, nil) // the attention of a new nexus
	return r
}

func TestSanitizeCutShortByTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk, kept := newMemDisk(sanitizeSize, 0), &keptRecord{}
		slow := func(c *scsi.UnitConfig) { c.OverwriteRate, c.Sanitize = 64<<10, kept }
		r := newSBCRig(t, disk, slow)
		r.good("", r.do(sanitizeCDB(immed|saOverwrite, 5), overwriteList(1, 1)))
		time.Sleep(time.Second)
		if err := r.unit.Close(t.Context()); err != nil { // does not wait for the rest of it
			t.Fatal(err)
		}
		again := newSBCRigNotReady(t, disk, slow)
		again.want("half sanitized", again.do(cdbOf(0x28, 0, 0, 1), nil), 3, 0x31, 0x03)
		kept.data = []byte("{")
		damaged := newSBCRigNotReady(t, disk, slow)
		damaged.want("a record that cannot be read counts as one", damaged.do(tur, nil), 3, 0x31, 0x03)
	})
}

func TestSanitizeIsProtected(t *testing.T) {
	disk := newMemDisk(sanitizeSize, backing.CapDiscard)
	r := newSBCRig(t, disk, unbound)
	own := r.nexus
	r.unit.SetReadOnly(true)
	over := overwriteList(1, 1)
	r.want("OVERWRITE", r.do(sanitizeCDB(saOverwrite, 5), over), 7, 0x27, 0)
	r.want("BLOCK ERASE", r.do(sanitizeCDB(saBlockErase, 0), nil), 7, 0x27, 0)
	r.want("FORMAT UNIT", r.do([]byte{4, 0, 0, 0, 0, 0}, nil), 7, 0x27, 0)
	r.unit.SetReadOnly(false)
	r.attach("other")
	r.good("RESERVE(6)", r.do([]byte{0x16, 0, 0, 0, 0, 0}, nil))
	r.nexus = own
	for _, c := range [][]byte{sanitizeCDB(saOverwrite, 5), sanitizeCDB(saBlockErase, 0), sanitizeCDB(saExit, 0), {4, 0, 0, 0, 0, 0}} {
		if got := r.do(c, over); got.status != scsi.ReservationConflict {
			t.Errorf("CDB % x: status %#x, want a conflict", c, got.status)
		}
	}
	if disk.count("WriteAt")+disk.count("Discard") != 0 {
		t.Error("the medium was touched")
	}
}

// An overwrite fills the store: it is not offered where there is no room for it.
func TestSanitizeNeedsRoom(t *testing.T) {
	disk := &meteredDisk{memDisk: newMemDisk(sanitizeSize, backing.CapDiscard|backing.CapUsage)}
	disk.usage = backing.Usage{Used: 0, Available: sanitizeSize / 2}
	r := newSBCRig(t, disk.memDisk, func(c *scsi.UnitConfig) { c.Store, c.OverwriteRate = thinDisk{disk}, -1 })
	r.want("OVERWRITE", r.do(sanitizeCDB(saOverwrite, 5), overwriteList(1, 1)), 5, 0x24, 0)
	if b := r.good("", r.do([]byte{0xa3, 0x0c, 2, 0x48, 0, 1, 0, 0, 0, 64, 0, 0}, nil)).in; b[1]&7 != 1 {
		t.Errorf("REPORT SUPPORTED OPERATION CODES: % x", b)
	}
	r.good("BLOCK ERASE", r.do(sanitizeCDB(saBlockErase, 0), nil))
}

// thinDisk says that its blocks are allocated when they are written.
type thinDisk struct{ *meteredDisk }

func (thinDisk) Info() backing.Info { return backing.Info{Thin: true} }

func FuzzSanitizeOverwrite(f *testing.F) {
	f.Add(overwriteList(1, 0xaa))
	f.Add(overwriteList(0x83, pattern(1, 512)...))
	f.Add([]byte{1, 0, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, list []byte) {
		if len(list) > 0 {
			list[0] &= 0xe3 // many passes only take time
		}
		r := newSBCRig(t, newMemDisk(64<<10, 0), unbound)
		res := r.do(sanitizeCDB(saOverwrite, len(list)), list)
		if written := r.disk.count("WriteAt") > 0; written != (res.status == scsi.Good) {
			t.Errorf("status %#x, written %v", res.status, written)
		}
	})
}
