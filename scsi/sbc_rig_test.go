package scsi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"testing"

	"blockgate/backing"
	"blockgate/scsi"
	"blockgate/scsi/sense"
)

// memDisk is a store in memory that keeps apart what has been written and what
// would survive a power loss, counts calls, fails on demand and has the
// capabilities it is told to have.
type memDisk struct {
	prompt bool
	caps   backing.Caps
	// fail, if set, is asked before every call; op is the method's name.
	fail func(op string, off, n int64) error
	// before, if set, is called before every ReadAt and may wait.
	before func(off int64)

	mu     sync.Mutex
	data   []byte
	stable []byte
	alloc  []bool // for each 512 bytes
	calls  map[string]int
}

const memUnit = 512

func newMemDisk(size int, caps backing.Caps) *memDisk {
	return &memDisk{
		prompt: true, caps: caps, calls: map[string]int{},
		data: make([]byte, size), stable: make([]byte, size), alloc: make([]bool, size/memUnit),
	}
}

func (m *memDisk) enter(op string, off, n int64) error {
	m.calls[op]++
	if off < 0 || n < 0 || off+n > int64(len(m.data)) {
		return backing.ErrOutOfRange
	}
	if m.fail != nil {
		return m.fail(op, off, n)
	}
	return nil
}

func (m *memDisk) mark(off, n int64, allocated bool) {
	if allocated {
		for i := off / memUnit; i < (off+n+memUnit-1)/memUnit; i++ {
			m.alloc[i] = true
		}
		return
	}
	for i := (off + memUnit - 1) / memUnit; i < (off+n)/memUnit; i++ {
		m.alloc[i] = false
	}
}

func (m *memDisk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if m.before != nil {
		m.before(off)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter("ReadAt", off, int64(len(p))); err != nil {
		return err
	}
	copy(p, m.data[off:])
	return ctx.Err()
}

func (m *memDisk) WriteAt(ctx context.Context, p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter("WriteAt", off, int64(len(p))); err != nil {
		return err
	}
	copy(m.data[off:], p)
	m.mark(off, int64(len(p)), true)
	return ctx.Err()
}

func (m *memDisk) Flush(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter("Flush", 0, 0); err != nil {
		return err
	}
	copy(m.stable, m.data)
	return nil
}

func (m *memDisk) Size() int64                { return int64(len(m.data)) }
func (m *memDisk) Close() error               { return nil }
func (m *memDisk) Prompt() bool               { return m.prompt }
func (m *memDisk) Capabilities() backing.Caps { return m.caps }

func (m *memDisk) WriteFUA(_ context.Context, p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter("WriteFUA", off, int64(len(p))); err != nil {
		return err
	}
	copy(m.data[off:], p)
	copy(m.stable[off:], p)
	m.mark(off, int64(len(p)), true)
	return nil
}

func (m *memDisk) TryReadAt(p []byte, off int64) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter("TryReadAt", off, int64(len(p))); err != nil {
		return !errors.Is(err, errNotAtHand), err
	}
	copy(p, m.data[off:])
	return true, nil
}

func (m *memDisk) TryWriteAt(p []byte, off int64) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter("TryWriteAt", off, int64(len(p))); err != nil {
		return !errors.Is(err, errNotAtHand), err
	}
	copy(m.data[off:], p)
	m.mark(off, int64(len(p)), true)
	return true, nil
}

// errNotAtHand makes the Try methods give up.
var errNotAtHand = errors.New("not at hand")

func (m *memDisk) Discard(_ context.Context, off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter("Discard", off, n); err != nil {
		return err
	}
	clear(m.data[off : off+n])
	m.mark(off, n, false)
	return nil
}

func (m *memDisk) WriteZeroes(_ context.Context, off, n int64, mayUnmap bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter("WriteZeroes", off, n); err != nil {
		return err
	}
	clear(m.data[off : off+n])
	m.mark(off, n, !mayUnmap)
	return nil
}

func (m *memDisk) Extents(_ context.Context, off, n int64, fn func(backing.Extent) bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter("Extents", off, n); err != nil {
		return err
	}
	for o := off; o < off+n; o += memUnit {
		if !fn(backing.Extent{Off: o, Len: memUnit, Allocated: m.alloc[o/memUnit]}) {
			return nil
		}
	}
	return nil
}

func (m *memDisk) CompareAndWrite(_ context.Context, old, data []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter("CompareAndWrite", off, int64(len(old))); err != nil {
		return -1, err
	}
	for i := range old {
		if m.data[off+int64(i)] != old[i] {
			return i, nil
		}
	}
	copy(m.data[off:], data)
	m.mark(off, int64(len(data)), true)
	return -1, nil
}

func (m *memDisk) count(op string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls[op]
}

// sbcRig is a unit over a memDisk and one nexus that talks to it.
type sbcRig struct {
	t      testing.TB
	disk   *memDisk
	unit   *scsi.Unit
	device *scsi.Device
	nexus  *scsi.Nexus
	bs     int
}

// sbcDone is the transport: it hands each finished task on.
type sbcDone chan *scsi.Task

func (c sbcDone) TaskDone(t *scsi.Task) { c <- t }

// newSBCRig makes the rig; change may alter the unit's configuration.
func newSBCRig(t testing.TB, disk *memDisk, change func(*scsi.UnitConfig)) *sbcRig {
	t.Helper()
	cfg := scsi.UnitConfig{
		Type: scsi.TypeDirectAccess, Store: disk, BlockSize: 512, WriteCache: true,
		Vendor: "TEST", Product: "DISK", Serial: "1",
	}
	if change != nil {
		change(&cfg)
	}
	u, err := scsi.NewUnit(cfg)
	if err != nil {
		t.Fatal(err)
	}
	d := scsi.NewDevice(scsi.DeviceConfig{Name: "iqn.2026-01.test:disk"})
	if err := d.SetUnit(0, u); err != nil {
		t.Fatal(err)
	}
	r := &sbcRig{t: t, disk: disk, unit: u, device: d, bs: cfg.BlockSize}
	r.attach("host")
	t.Cleanup(func() {
		if err := u.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// attach makes the rig talk through a nexus of its own.
func (r *sbcRig) attach(host string) {
	r.t.Helper()
	r.nexus = r.device.Attach(scsi.NexusConfig{
		Initiator: scsi.InitiatorPort{Name: "iqn.2026-01.test:" + host},
		Port:      scsi.TargetPort{Name: "iqn.2026-01.test:disk", RelID: 1, Group: 1},
	})
	n := r.nexus
	r.t.Cleanup(func() { n.Detach(nil) })
	for range 8 { // the unit attentions of a new nexus
		if r.do([]byte{0, 0, 0, 0, 0, 0}, nil).status == scsi.Good {
			return
		}
	}
	r.t.Fatal("the unit does not become ready")
}

// sbcResult is how a command ended.
type sbcResult struct {
	status         scsi.Status
	key            sense.Key
	asc, ascq      byte
	info           uint64
	infoOK         bool
	in             []byte
	inLen, outLen  int64
	fieldOK, inCDB bool
	field          int
}

const plenty = 1 << 30

// do runs a command whose initiator has room for everything and announces
// exactly the data it has.
func (r *sbcRig) do(cdb, out []byte) sbcResult { return r.doEDTL(cdb, out, int64(len(out)), plenty) }

func (r *sbcRig) doEDTL(cdb, out []byte, maxOut, maxIn int64) sbcResult {
	r.t.Helper()
	done := make(sbcDone, 2)
	task := &scsi.Task{
		Nexus: r.nexus, Tag: 1, Attr: scsi.Simple, CDB: cdb, MaxIn: maxIn, MaxOut: maxOut, Transport: done,
	}
	if r.nexus.Admit(task) {
		task.Out = out[:min(int64(len(out)), task.OutLen)]
		task.Run()
	}
	<-done
	res := sbcResult{
		status: task.Status, in: slices.Clone(task.In), inLen: task.InLen, outLen: task.OutLen,
	}
	if s := task.Sense; task.Status == scsi.CheckCondition {
		if len(s) < 18 || s[0]&0x7f != 0x70 {
			r.t.Fatalf("%x: sense % x is not in fixed format", cdb, s)
		}
		res.key, res.asc, res.ascq = sense.Key(s[2]&0x0f), s[12], s[13]
		res.info, res.infoOK = uint64(binary.BigEndian.Uint32(s[3:])), s[0]&0x80 != 0
		res.fieldOK, res.inCDB, res.field = s[15]&0x80 != 0, s[15]&0x40 != 0, int(binary.BigEndian.Uint16(s[16:]))
	}
	task.Reset()
	return res
}

func (r *sbcRig) good(what string, res sbcResult) sbcResult {
	r.t.Helper()
	if res.status != scsi.Good {
		r.t.Fatalf("%s: status %#x sense %x/%02x/%02x, want GOOD", what, res.status, res.key, res.asc, res.ascq)
	}
	return res
}

func (r *sbcRig) bad(what string, res sbcResult, want sense.Sense) sbcResult {
	r.t.Helper()
	if res.status != scsi.CheckCondition || res.key != want.Key || res.asc != want.ASC || res.ascq != want.ASCQ {
		r.t.Fatalf("%s: status %#x sense %x/%02x/%02x, want %v", what, res.status, res.key, res.asc, res.ascq, want)
	}
	if len(res.in) != 0 {
		r.t.Fatalf("%s: failed and gave %d bytes", what, len(res.in))
	}
	if want.InfoValid && (!res.infoOK || res.info != want.Info) {
		r.t.Fatalf("%s: INFORMATION %d (valid %v), want %d", what, res.info, res.infoOK, want.Info)
	}
	if want.SKSV && (!res.fieldOK || res.inCDB != (want.SKS[0]&0x40 != 0) ||
		res.field != int(binary.BigEndian.Uint16(want.SKS[1:]))) {
		r.t.Fatalf("%s: field pointer %d (CDB %v), want % x", what, res.field, res.inCDB, want.SKS)
	}
	return res
}

// Opcodes of the families with the usual CDB layout.
var (
	opRead       = map[int]byte{6: 0x08, 10: 0x28, 12: 0xa8, 16: 0x88}
	opWrite      = map[int]byte{6: 0x0a, 10: 0x2a, 12: 0xaa, 16: 0x8a}
	opVerify     = map[int]byte{10: 0x2f, 12: 0xaf, 16: 0x8f}
	opWriteCheck = map[int]byte{10: 0x2e, 12: 0xae, 16: 0x8e}
	opWriteSame  = map[int]byte{10: 0x41, 16: 0x93}
	opSync       = map[int]byte{10: 0x35, 16: 0x91}
	opPreFetch   = map[int]byte{10: 0x34, 16: 0x90}
)

// cdbOf makes a CDB with the usual layout; its length follows from op.
func cdbOf(op, flags byte, lba uint64, nblocks uint32) []byte {
	switch op >> 5 {
	case 0:
		return []byte{op, byte(lba >> 16), byte(lba >> 8), byte(lba), byte(nblocks), 0}
	case 4:
		c := make([]byte, 16)
		c[0], c[1] = op, flags
		binary.BigEndian.PutUint64(c[2:], lba)
		binary.BigEndian.PutUint32(c[10:], nblocks)
		return c
	case 5:
		c := make([]byte, 12)
		c[0], c[1] = op, flags
		binary.BigEndian.PutUint32(c[2:], uint32(lba))
		binary.BigEndian.PutUint32(c[6:], nblocks)
		return c
	}
	c := make([]byte, 10)
	c[0], c[1] = op, flags
	binary.BigEndian.PutUint32(c[2:], uint32(lba))
	binary.BigEndian.PutUint16(c[7:], uint16(nblocks))
	return c
}

// cawCDB is COMPARE AND WRITE.
func cawCDB(flags byte, lba uint64, nblocks byte) []byte {
	c := make([]byte, 16)
	c[0], c[1], c[13] = 0x89, flags, nblocks
	binary.BigEndian.PutUint64(c[2:], lba)
	return c
}

// pattern gives n bytes that differ from those of any other seed and place.
func pattern(seed byte, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = seed ^ byte(i) ^ byte(i>>8)*31
	}
	return p
}

func (r *sbcRig) wantMedium(what string, off int, want []byte) {
	r.t.Helper()
	r.disk.mu.Lock()
	defer r.disk.mu.Unlock()
	if !bytes.Equal(r.disk.data[off:off+len(want)], want) {
		r.t.Fatalf("%s: the medium does not hold what it should at %d", what, off)
	}
}
