package server

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/internal/budget"
	"blockgate/nbd"
)

// slowSession keeps requests until the test ends them.
type slowSession struct {
	size uint64

	mu         sync.Mutex
	held       []*Request
	released   int
	closed     bool
	loan       []byte
	kept       int // loans that became copies
	lost       error
	distrusted int
}

func (s *slowSession) Size() uint64 { return s.size }

func (s *slowSession) Submit(r *Request) {
	if s.loan != nil && r.Type == nbd.CmdRead && r.MayLend() != nil {
		r.In, r.Lent = s.loan[:r.Length], true
		r.Done(nbd.None, "")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = append(s.held, r)
}

func (s *slowSession) EndLoan(r *Request, keep bool) error {
	if keep {
		r.In = bytes.Clone(r.In)
		s.kept++
	}
	return s.lost
}

func (s *slowSession) CopyLent(_ *Request, dst, v []byte) error {
	copy(dst, v)
	return s.lost
}

func (s *slowSession) Distrust(*Request) { s.distrusted++ }

func (s *slowSession) Release(*Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.released++
}

func (s *slowSession) Close() { s.closed = true }

// end ends the oldest request.
func (s *slowSession) end(e nbd.Errno) {
	s.mu.Lock()
	r := s.held[0]
	s.held = s.held[1:]
	s.mu.Unlock()
	if r.Type == nbd.CmdRead && e == nbd.None {
		r.In = make([]byte, r.Length)
	}
	r.Done(e, "")
}

func (s *slowSession) waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held)
}

type quietHost struct {
	wakes  int
	reason string
}

func (h *quietHost) Wake()               { h.wakes++ }
func (h *quietHost) Abort(reason string) { h.reason = reason }

func newRig(mode nbd.Mode, limit int64) (*machine, *slowSession, *quietHost) {
	s, h := &slowSession{size: 1 << 30}, &quietHost{}
	m := newMachine(machineConfig{
		Session: s, Mode: mode, Flags: nbd.HasFlags | nbd.SendFlush | nbd.SendFUA, BlockSize: nbd.DefaultBlockSize(),
		Budget: NewBudget(limit), Host: h, Lend: true,
	})
	return m, s, h
}

// drain takes all that is to be sent.
func drain(m *machine) []byte {
	var out []byte
	for {
		v := m.Gather()
		if v == nil {
			return out
		}
		for _, b := range v {
			out = append(out, b...)
		}
	}
}

func read(cookie, off, n uint64) []byte {
	return nbd.Request{Type: nbd.CmdRead, Cookie: cookie, Offset: off, Length: n}.Append(nil, nbd.Simple)
}

// A disconnecting client gets what it has asked for before.
func TestDisconnectWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s, _ := newRig(nbd.Simple, 1<<30)
		in := append(read(1, 0, 512), nbd.Request{Type: nbd.CmdDisconnect}.Append(nil, nbd.Simple)...)
		n, err := m.Feed(in)
		if m.EndFeed() {
			drain(m)
		}
		if n != len(in) || err != nil || !m.Again() {
			t.Fatalf("%d of %d bytes, %v, again %v", n, len(in), err, m.Again())
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			m.WaitRoom()
		}()
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("the read is not waited for")
		default:
		}
		s.end(nbd.None)
		if !m.BeginSend() || len(drain(m)) != nbd.SimpleReplyLen+512 {
			t.Error("the reply is not sent")
		}
		<-done
		if _, err := m.Feed(nil); err != errDisconnected {
			t.Errorf("Feed: %v", err)
		}
		m.EndFeed()
		m.Closed()
		if !s.closed || s.released != 1 {
			t.Errorf("closed %v, %d released", s.closed, s.released)
		}
	})
}

// What a connection may hold has bounds, and at them it is read no further.
func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s, _ := newRig(nbd.Simple, 1<<30)
		var in []byte
		for i := range uint64(maxInflight + 10) {
			in = append(in, read(i, 0, 512)...)
		}
		n, err := m.Feed(in)
		m.EndFeed()
		if err != nil || n != maxInflight*nbd.RequestLen || !m.Again() {
			t.Fatalf("%d requests are taken, %v", n/nbd.RequestLen, err)
		}
		for range 10 {
			s.end(nbd.None)
		}
		m.BeginSend()
		drain(m)
		m.WaitRoom()
		k, err := m.Feed(in[n:])
		m.EndFeed()
		if n+k != len(in) || err != nil {
			t.Errorf("%d bytes more, %v", k, err)
		}
		m.Closed()
		for s.waiting() > 0 {
			s.end(nbd.EIO) // after the end of the connection
		}
		if m.inflight != 0 || m.held != 0 || m.Budget.Used() != 0 || s.released != maxInflight+10 {
			t.Errorf("%d in flight, %d bytes, %d of the budget, %d released", m.inflight, m.held, m.Budget.Used(), s.released)
		}
	})
}

// A budget that is used up by others holds a connection back until they are done.
func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s, _ := newRig(nbd.Simple, 1<<20)
		m.Budget.Take(1 << 20)
		in := read(1, 0, 4096)
		if n, err := m.Feed(in); n != 0 || err != nil || !m.Again() {
			t.Fatalf("%d bytes, %v", n, err)
		}
		m.EndFeed()
		done := make(chan struct{})
		go func() {
			m.WaitRoom()
			close(done)
		}()
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("the budget is not waited for")
		default:
		}
		m.Budget.Give(1 << 20)
		<-done
		if n, err := m.Feed(in); n != len(in) || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		m.EndFeed()
		// And one that waits ends with its connection.
		for m.Budget.Take(2048) { // all but less than what is asked for
		}
		if n, _ := m.Feed(in); n != 0 {
			t.Error("too much is taken")
		}
		m.EndFeed()
		go m.Drop("enough")
		m.WaitRoom()
		m.Closed()
		s.end(nbd.None)
	})
}

// Clients that read nothing of what they have asked for leave memory for the next,
// of their export and of others, and it is counted as theirs until it is sent.
func TestSlowReadersLeaveMemory(t *testing.T) {
	const piece = 64 << 10
	all := NewBudget(4 << 20)
	var ends []func()
	for i := range 6 {
		m, s, _ := newRig(nbd.Simple, 1)
		m.Budget, m.Share = all, budget.Share{Peer: i, Thing: i % 3}
		var in []byte
		for k := range uint64(100) {
			in = append(in, read(k, k*piece, piece)...)
		}
		before := all.Used()
		n, err := m.Feed(in)
		if err != nil || n == 0 || n == len(in) || !m.Again() {
			t.Fatalf("number %d: %d of %d bytes of requests are taken, %v; %d bytes are used", i, n, len(in), err, all.Used())
		}
		m.EndFeed()
		for s.waiting() > 0 {
			s.end(nbd.None)
		}
		took := all.Used() - before
		if asked := int64(n / nbd.RequestLen * piece); took != asked {
			t.Errorf("number %d: %d bytes are counted, %d were asked for", i, took, asked)
		}
		if i == 0 && took < 1<<20 {
			t.Errorf("the first gets only %d bytes", took)
		}
		ends = append(ends, func() {
			drain(m) // by the reader, whose Feed has the right to send
			m.Closed()
		})
	}
	for _, end := range ends {
		end()
	}
	if all.Used() != 0 {
		t.Errorf("%d bytes stay", all.Used())
	}
}

// A loan that is lost ends the connection; one that the system refuses is told to
// the session.
func TestLostLoans(t *testing.T) {
	m, s, h := newRig(nbd.Simple, 1<<30)
	s.loan, s.lost = bytes.Repeat([]byte{7}, 4096), errors.New("the file has become shorter")
	m.Feed(read(1, 0, 4096))
	m.EndFeed()
	if m.Gather() == nil {
		t.Fatal("nothing to send")
	}
	if err := m.Settle(); !errors.Is(err, s.lost) {
		t.Errorf("what is lost is settled: %v", err)
	}
	if !strings.Contains(h.reason, s.lost.Error()) {
		t.Errorf("the connection ends with %q", h.reason)
	}
	m.SendFailed(io.ErrClosedPipe)
	m.Closed()
	// Also where something else wants to run.
	m, s, _ = newRig(nbd.Simple, 1<<30)
	s.loan, s.lost = bytes.Repeat([]byte{7}, 4096), errors.New("the file has become shorter")
	m.Feed(append(read(1, 0, 4096), nbd.Request{Type: nbd.CmdFlush, Cookie: 2}.Append(nil, nbd.Simple)...))
	if m.EndFeed() && m.Gather() != nil {
		t.Error("what is lost is sent")
	}
	m.Closed()
	for err, want := range map[error]int{syscall.EFAULT: 2, io.ErrClosedPipe: 0} {
		m, s, _ := newRig(nbd.Simple, 1<<30)
		s.loan = bytes.Repeat([]byte{7}, 4096)
		m.Feed(append(read(1, 0, 4096), read(2, 0, 4096)...))
		m.EndFeed()
		m.Gather()
		m.Session.Submit(&Request{m: m, Request: nbd.Request{Type: nbd.CmdFlush}})
		s.end(nbd.None)
		m.SendFailed(err)
		if m.BeginSend() {
			t.Errorf("%v: more is to be sent behind half of a reply", err)
		}
		if s.distrusted != want || s.released != 2 {
			t.Errorf("%v: %d distrusted, want %d; %d released", err, s.distrusted, want, s.released)
		}
		m.Closed()
	}
}

// Loans are sent from where they are if the transport takes them at once, and
// copied if not.
func TestLoans(t *testing.T) {
	for _, waits := range []bool{false, true} {
		m, s, _ := newRig(nbd.Simple, 1<<30)
		s.loan = bytes.Repeat([]byte{7}, 4096)
		in := append(read(1, 0, 4096), read(2, 0, 4096)...)
		if n, err := m.Feed(in); n != len(in) || err != nil {
			t.Fatal(n, err)
		}
		if !m.EndFeed() {
			t.Fatal("the reader does not have the right to send")
		}
		v := m.Gather()
		if len(v) != 4 || &v[1][0] != &s.loan[0] {
			t.Fatalf("%d vectors, not the loan itself", len(v))
		}
		if waits {
			// The first reply is gone, half of the second.
			v[0], v[1], v[2] = nil, nil, nil
			v[3] = v[3][2048:]
			_ = m.Settle()
			clear(s.loan)
			if len(v[3]) != 2048 || v[3][0] != 7 {
				t.Error("what was not sent has changed")
			}
		}
		if m.Gather() != nil {
			t.Error("more to send")
		}
		if s.released != 2 || len(m.loans.reqs) != 0 {
			t.Errorf("%d released, %d loans", s.released, len(m.loans.reqs))
		}
		// Queued behind a batch, a loan becomes the request's own.
		s.loan = bytes.Repeat([]byte{9}, 4096)
		m.Feed(read(3, 0, 4096))
		_ = m.Settle()
		clear(s.loan)
		m.EndFeed()
		if out := drain(m); len(out) != nbd.SimpleReplyLen+4096 || out[100] != 9 || s.kept != 1 {
			t.Errorf("%d bytes, %d copies", len(out), s.kept)
		}
		m.Closed()
	}
}

// A client that takes nothing, or stops in the middle, is dropped; one that is
// idle is not.
func TestStall(t *testing.T) {
	now := time.Now()
	tick := func(m *machine, h *quietHost, want string) {
		t.Helper()
		for range 40 {
			now = now.Add(time.Second)
			m.tick(now, 30*time.Second)
		}
		if h.reason != want {
			t.Errorf("%q, want %q", h.reason, want)
		}
	}
	m, _, h := newRig(nbd.Simple, 1<<30)
	m.Feed(nil)
	m.EndFeed()
	tick(m, h, "")
	m.Feed(read(1, 0, 512)[:10])
	m.EndFeed()
	tick(m, h, "the client stopped in the middle of a request")

	m, s, h := newRig(nbd.Simple, 1<<30)
	m.Feed(nbd.Request{Type: nbd.CmdWrite, Length: 1 << 20}.Append(nil, nbd.Simple))
	m.EndFeed()
	if d := m.Direct(); len(d) != 1<<20 {
		t.Fatalf("%d bytes are wanted", len(d))
	}
	tick(m, h, "the client stopped in the middle of a request")
	m.Closed()
	if m.Budget.Used() != 0 || s.released != 0 {
		t.Errorf("%d bytes of the budget stay, %d released", m.Budget.Used(), s.released)
	}

	m, s, h = newRig(nbd.Simple, 1<<30)
	m.Feed(read(1, 0, 512))
	m.EndFeed()
	s.end(nbd.None)
	m.BeginSend()
	m.Gather()
	tick(m, h, "the client does not read what is sent to it")
}

func TestNotARequest(t *testing.T) {
	m, _, _ := newRig(nbd.Simple, 1<<30)
	if _, err := m.Feed(make([]byte, nbd.RequestLen)); err == nil {
		t.Error("zeroes are a request")
	}
	m, _, _ = newRig(nbd.Extended, 1<<30)
	if _, err := m.Feed(nbd.Request{Flags: nbd.FlagPayloadLen, Type: nbd.CmdWrite, Length: 1 << 40}.Append(nil, nbd.Extended)); err == nil {
		t.Error("a payload of a terabyte is taken")
	}
}

func FuzzMachine(f *testing.F) {
	for mode := range nbd.Extended + 1 {
		var in []byte
		for _, r := range []nbd.Request{
			{Type: nbd.CmdRead, Length: 4096}, {Type: nbd.CmdWrite, Length: 16}, {Type: nbd.CmdFlush}, {Type: nbd.CmdTrim, Length: 512},
			{Flags: nbd.FlagFUA, Type: nbd.CmdWriteZeroes, Length: 512}, {Type: nbd.CmdBlockStatus, Length: 4096}, {Type: nbd.CmdDisconnect},
		} {
			in = r.Append(in, mode)
			if r.Type == nbd.CmdWrite {
				in = append(in, make([]byte, 16)...)
			}
		}
		f.Add(uint8(mode), uint8(7), in)
	}
	f.Fuzz(func(t *testing.T, mode, cut uint8, in []byte) {
		store := openRAM(t, 1<<20)
		defer store.Close()
		s, err := ForStore(store, StoreOptions{}).Open(nil)
		if err != nil {
			t.Fatal(err)
		}
		m := newMachine(machineConfig{
			Session: s, Mode: nbd.Mode(mode % 3), Flags: nbd.HasFlags | nbd.SendFUA | nbd.SendTrim | nbd.SendWriteZeroes,
			BlockSize: nbd.DefaultBlockSize(), Allocation: mode%2 == 0, Budget: NewBudget(1 << 30), Host: &quietHost{}, Lend: true,
		})
		// In pieces of any size, everything that is consumed is the same.
		for step := int(cut) + 1; ; {
			p := in[:min(step, len(in))]
			n, err := m.Feed(p)
			if m.EndFeed() || m.BeginSend() {
				drain(m)
			}
			in = in[n:]
			if d := m.Direct(); err == nil && d != nil && len(in) > 0 {
				k := copy(d, in)
				m.Filled(k)
				in = in[k:]
				continue
			}
			if err != nil || len(in) == 0 || n == 0 && len(p) == len(in) {
				break
			}
			if n == 0 {
				step += nbd.ExtendedRequestLen
			}
		}
		m.Closed()
		m.mu.Lock() // a flush may still run
		defer m.mu.Unlock()
		for m.inflight > 0 {
			m.room.Wait()
		}
		if n := m.Budget.Used(); n != 0 || m.held != 0 {
			t.Errorf("%d bytes of the budget and %d of the connection stay", n, m.held)
		}
	})
}

// Short payloads come with what is behind them; long ones go where they belong.
func TestWhereDataGoes(t *testing.T) {
	for _, n := range []int{512, directMin - 1, directMin, 1 << 20} {
		m, s, _ := newRig(nbd.Simple, 1<<30)
		in := append(nbd.Request{Type: nbd.CmdWrite, Length: uint64(n)}.Append(nil, nbd.Simple), pattern(n, n)...)
		cut := nbd.RequestLen + n/2
		k, err := m.Feed(in[:cut])
		m.EndFeed()
		if long := n >= directMin; err != nil || long != (k == cut) || long != (len(m.Direct()) == n-n/2) {
			t.Fatalf("%d bytes: %d are taken, %d wanted in place, %v", n, k, len(m.Direct()), err)
		}
		if d := m.Direct(); d != nil {
			m.Filled(copy(d, in[cut:]))
			k = len(in)
		}
		if k2, err := m.Feed(in[k:]); k+k2 != len(in) || err != nil || s.waiting() != 1 {
			t.Fatalf("%d bytes: %d and %d are taken, %v", n, k, k2, err)
		}
		m.EndFeed()
		if !bytes.Equal(s.held[0].Data, pattern(n, n)) {
			t.Errorf("%d bytes: other data", n)
		}
		s.end(nbd.None)
		m.Closed()
	}
}
