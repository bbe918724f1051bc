package scsi_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"testing"

	"blockgate/scsi"
)

// gatedStore is memory whose calls can be made to wait.
type gatedStore struct {
	prompt bool

	mu      sync.Mutex
	data    []byte
	gates   map[int64]chan struct{} // a call at this offset waits for it, whatever its context says
	flushes int
	err     error         // what every call returns, if not nil
	entered chan struct{} // if not nil, gets one for each call that waits
}

func newGatedStore(size int) *gatedStore {
	return &gatedStore{data: make([]byte, size), gates: make(map[int64]chan struct{})}
}

// hold makes the next calls at off wait until the function it returns is called.
func (s *gatedStore) hold(off int64) (release func()) {
	c := make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gates[off] = c
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.gates, off)
		close(c)
	}
}

func (s *gatedStore) pass(off int64) {
	s.mu.Lock()
	c := s.gates[off]
	s.mu.Unlock()
	if c != nil {
		if s.entered != nil {
			s.entered <- struct{}{}
		}
		<-c
	}
}

func (s *gatedStore) ReadAt(_ context.Context, p []byte, off int64) error {
	s.pass(off)
	s.mu.Lock()
	defer s.mu.Unlock()
	copy(p, s.data[off:])
	return s.err
}

func (s *gatedStore) WriteAt(_ context.Context, p []byte, off int64) error {
	s.pass(off)
	s.mu.Lock()
	defer s.mu.Unlock()
	copy(s.data[off:], p)
	return s.err
}

func (s *gatedStore) Flush(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flushes++
	return s.err
}

func (s *gatedStore) Size() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(len(s.data))
}

func (s *gatedStore) resize(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.data = make([]byte, n)
}

func (s *gatedStore) Close() error { return nil }

func (s *gatedStore) Prompt() bool { return s.prompt }

// rig is a device with one disk at LUN 0.
type rig struct {
	t     testing.TB
	store *gatedStore
	unit  *scsi.Unit
	dev   *scsi.Device
}

func newRig(t testing.TB, change func(*scsi.UnitConfig)) *rig {
	t.Helper()
	r := &rig{t: t, store: newGatedStore(1 << 20)}
	r.unit = r.newUnit(func(c *scsi.UnitConfig) {
		c.Store = r.store
		if change != nil {
			change(c)
		}
	})
	r.dev = scsi.NewDevice(scsi.DeviceConfig{Name: "iqn.2026-01.test:disk"})
	if err := r.dev.SetUnit(0, r.unit); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) newUnit(change func(*scsi.UnitConfig)) *scsi.Unit {
	r.t.Helper()
	cfg := scsi.UnitConfig{
		Type: scsi.TypeDirectAccess, WriteCache: true,
		Vendor: "TEST", Product: "DISK", Revision: "1.0", Serial: "serial-1",
		NAA: [16]byte{0x60, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
	}
	change(&cfg)
	u, err := scsi.NewUnit(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return u
}

// host is an initiator with one nexus.
type host struct {
	t   testing.TB
	nx  *scsi.Nexus
	lun uint64
	tag uint64
}

// attach logs a host in; its unit attentions are still pending.
func (r *rig) attach(name string) *host { return r.attachPort(name, 1, nil) }

func (r *rig) attachPort(name string, rel uint16, luns func(uint64) bool) *host {
	return &host{t: r.t, nx: r.dev.Attach(scsi.NexusConfig{
		Initiator: scsi.InitiatorPort{Name: "iqn.2026-01.test:" + name, ISID: [6]byte{0, 2, 0x3d, 0, 0, 1}},
		Port:      scsi.TargetPort{Name: "iqn.2026-01.test:disk", RelID: rel, Group: 1}, LUNs: luns,
	})}
}

// login is attach, with the attentions of a new nexus taken.
func (r *rig) login(name string) *host {
	r.t.Helper()
	h := r.attach(name)
	h.expect("login", h.do(tur), "6/29/00")
	h.expect("login", h.do(tur), "good")
	return h
}

var tur = []byte{0, 0, 0, 0, 0, 0}

// pending is a task on its way.
type pending struct {
	*scsi.Task
	out  []byte
	done chan struct{}
}

func (p *pending) TaskDone(*scsi.Task) { close(p.done) } // a second call panics

func (p *pending) finished() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// admit gives a task to the unit without running it; ok is Admit's answer.
func (h *host) admit(attr scsi.Attr, cdb, out []byte) (p *pending, ok bool) {
	h.tag++
	p = &pending{Task: &scsi.Task{
		LUN: h.lun, Tag: h.tag, Attr: attr, CDB: slices.Clone(cdb), MaxIn: 1 << 20, MaxOut: int64(len(out)),
	}, out: out, done: make(chan struct{})}
	p.Transport = p
	return p, h.nx.Admit(p.Task)
}

func (p *pending) run() {
	p.Out = p.out[:min(int64(len(p.out)), p.OutLen)]
	p.Run()
}

// start admits and runs a task without waiting for it.
func (h *host) start(attr scsi.Attr, cdb, out []byte) *pending {
	p, ok := h.admit(attr, cdb, out)
	if ok {
		p.run()
	}
	return p
}

// do runs a command to its end.
func (h *host) do(cdb []byte, out ...byte) *pending {
	p := h.start(scsi.Simple, cdb, out)
	<-p.done
	return p
}

// outcome says in short how a task ended: "good", "6/29/00", "conflict", …
func (p *pending) outcome() string {
	switch {
	case p.Aborted():
		return "aborted"
	case p.Status == scsi.Good:
		return "good"
	case p.Status == scsi.ReservationConflict:
		return "conflict"
	case p.Status != scsi.CheckCondition:
		return fmt.Sprintf("status %02x", uint8(p.Status))
	}
	return senseText(p.Sense)
}

func senseText(s []byte) string {
	if s[0]&0x7e == 0x72 {
		return fmt.Sprintf("%x/%02x/%02x", s[1]&0x0f, s[2], s[3])
	}
	return fmt.Sprintf("%x/%02x/%02x", s[2]&0x0f, s[12], s[13])
}

// field is where fixed format sense data points: "cdb 2.7", "list 4".
func (p *pending) field() string {
	s := p.Sense
	if len(s) < 18 || s[15]&0x80 == 0 {
		return ""
	}
	where := "list"
	if s[15]&0x40 != 0 {
		where = "cdb"
	}
	text := fmt.Sprintf("%s %d", where, binary.BigEndian.Uint16(s[16:]))
	if s[15]&0x08 != 0 {
		text += fmt.Sprintf(".%d", s[15]&0x07)
	}
	return text
}

func (h *host) expect(what string, p *pending, want string) *pending {
	h.t.Helper()
	if got := p.outcome(); got != want {
		h.t.Errorf("%s: CDB % x ended with %s, want %s", what, p.CDB, got, want)
	}
	return p
}

func (h *host) good(cdb []byte, out ...byte) []byte {
	h.t.Helper()
	return h.expect("", h.do(cdb, out...), "good").In
}

func read10(lba uint32, n uint16) []byte {
	return []byte{0x28, 0, byte(lba >> 24), byte(lba >> 16), byte(lba >> 8), byte(lba), 0, byte(n >> 8), byte(n), 0}
}

func write10(lba uint32, n uint16) []byte {
	c := read10(lba, n)
	c[0] = 0x2a
	return c
}

func block(fill byte) []byte { return slices.Repeat([]byte{fill}, 512) }
