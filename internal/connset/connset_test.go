package connset_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/internal/connset"
)

var errClosed = errors.New("closed")

// conn is a connection that ends when it is aborted.
type conn struct {
	connset.Member
	set     *connset.Set[*conn]
	mu      sync.Mutex
	aborted string
	ready   bool
	ticks   int
}

func (c *conn) From() string { return "peer" }

func (c *conn) Abort(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.aborted == "" {
		c.aborted = reason
	}
}

func (c *conn) why() string { c.mu.Lock(); defer c.mu.Unlock(); return c.aborted }

func (c *conn) tick(time.Time) { c.mu.Lock(); defer c.mu.Unlock(); c.ticks++ }

func (c *conn) end() bool {
	crowdedOut := c.set.EndLogin(c)
	c.set.Remove(c)
	return crowdedOut
}

type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }
func (l *lines) String() string              { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

func newSet(conns, logins int) (*connset.Set[*conn], *lines) {
	log := new(lines)
	return connset.New(connset.Config[*conn]{
		Log: slog.New(slog.NewTextHandler(log, nil)), Protocol: "test", Logins: "logins", MaxConns: conns, MaxLogins: logins,
		Tick: (*conn).tick, Ticks: func(c *conn) bool { return c.ready }, Every: time.Second, Closed: errClosed,
	}), log
}

func add(t *testing.T, s *connset.Set[*conn], want bool) *conn {
	t.Helper()
	c := &conn{set: s}
	if got := s.Add(c); got != want {
		t.Errorf("taken in: %v, want %v", got, want)
	}
	if (c.why() == "") != want {
		t.Errorf("aborted: %q", c.why())
	}
	return c
}

// The oldest login gives way to a new connection; what has logged in does not.
func TestCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSet(3, 2)
		defer s.Stop()
		a, b := add(t, s, true), add(t, s, true)
		if s.EndLogin(a) {
			t.Error("the first was crowded out")
		}
		c := add(t, s, true)
		d := add(t, s, true) // three are open
		if b.why() == "" || !b.end() {
			t.Error("the oldest login did not give way")
		}
		if a.why() != "" || c.why() != "" {
			t.Error("another one did")
		}
		s.EndLogin(c)
		s.EndLogin(d)
		add(t, s, false)
		add(t, s, false)
		if n := strings.Count(log.String(), "too many connections"); n != 1 {
			t.Errorf("%d lines at once:\n%s", n, log)
		}
		time.Sleep(2 * time.Second)
		add(t, s, false)
		if n := strings.Count(log.String(), "too many connections"); n != 2 {
			t.Errorf("%d lines:\n%s", n, log)
		}
		d.end()
		add(t, s, true)
	})
}

// Clocks go for those that want it, until the set stops.
func TestTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newSet(8, 8)
		quiet := add(t, s, true)
		c := &conn{set: s, ready: true}
		s.Add(c)
		time.Sleep(3500 * time.Millisecond)
		s.Stop()
		s.Stop()
		time.Sleep(time.Minute)
		synctest.Wait()
		if c.ticks != 3 || quiet.ticks != 0 {
			t.Errorf("%d and %d ticks", c.ticks, quiet.ticks)
		}
		add(t, s, false)
		s.Abort("over", func(x *conn) bool { return x == c })
		if c.why() != "over" || quiet.why() != "" {
			t.Errorf("aborted %q and %q", c.why(), quiet.why())
		}
	})
}

// Wait sees the last one go, or its context end.
// The end waits for connections, and not for ever.
func TestEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSet(4, 4)
		c, hung := add(t, s, true), add(t, s, true)
		go func() {
			time.Sleep(time.Second)
			c.end()
		}()
		began := time.Now()
		if n := s.End("the end"); n != 1 || time.Since(began) > 10*time.Second {
			t.Errorf("%d connections are left after %v", n, time.Since(began))
		}
		if c.why() != "the end" || hung.why() != "the end" || !strings.Contains(log.String(), "connections=1") {
			t.Errorf("%q, %q, log:\n%s", c.why(), hung.why(), log)
		}
		hung.end()
		began = time.Now()
		if n := s.End("again"); n != 0 || time.Since(began) > 0 {
			t.Errorf("%d connections are left of none", n)
		}
	})
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newSet(8, 8)
		defer s.Stop()
		c := add(t, s, true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if left := s.Wait(ctx); left != 1 {
			t.Errorf("%d left", left)
		}
		time.AfterFunc(time.Hour, func() { c.end() })
		if left := s.Wait(t.Context()); left != 0 {
			t.Errorf("%d left", left)
		}
	})
}

// accepts is a listener that gives one error after the other, and then waits to be
// closed.
type accepts struct {
	net.Listener
	errs   []error
	n      int
	closed chan struct{}
}

func (l *accepts) Accept() (net.Conn, error) {
	if l.n < len(l.errs) {
		l.n++
		return nil, l.errs[l.n-1]
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *accepts) Close() error   { close(l.closed); return nil }
func (l *accepts) Addr() net.Addr { return &net.UnixAddr{Name: "here"} }

type timeout struct{ error }

func (timeout) Timeout() bool   { return true }
func (timeout) Temporary() bool { return true }

// Serve waits longer and longer while it cannot accept, and ends with what closes
// its listener.
func TestServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSet(8, 8)
		late := timeout{errors.New("later")}
		refused := &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EPERM)}
		l := &accepts{errs: []error{late, refused, late}, closed: make(chan struct{})}
		began := time.Now()
		done := make(chan error)
		go func() { done <- s.Serve(l, func(net.Conn) {}) }()
		time.Sleep(time.Second)
		synctest.Wait()
		if n := strings.Count(log.String(), "accept failed, waiting"); n != 3 || !strings.Contains(log.String(), "wait=20ms") {
			t.Errorf("after %v:\n%s", time.Since(began), log)
		}
		s.CloseListeners()
		if err := <-done; err != errClosed {
			t.Errorf("ended with %v", err)
		}
		for _, broken := range []error{errors.New("broken"), os.NewSyscallError("accept4", syscall.EINVAL)} {
			if err := s.Serve(&accepts{errs: []error{broken}, closed: make(chan struct{})}, nil); !errors.Is(err, broken) {
				t.Errorf("ended with %v", err)
			}
		}
		s.Stop()
		after := &accepts{closed: make(chan struct{})}
		if err := s.Serve(after, nil); err != errClosed {
			t.Errorf("served after Stop: %v", err)
		}
		<-after.closed
	})
}
