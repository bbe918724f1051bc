// Package connset keeps the connections of a server: it accepts them, bounds how
// many there are and how many of them have not finished their login, drives their
// clocks and ends them.
package connset

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"blockgate/internal/conndrive"
)

// Conn is a connection of a set.
type Conn interface {
	comparable
	// Abort closes it; its goroutine will call Set.Remove. Does not wait, and may
	// be called more than once and under the set's mutex.
	Abort(reason string)
	// From is where its peer is, for the log.
	From() string
	// Membership is the connection's Member.
	Membership() *Member
}

// Member is what a connection embeds for its Set. The zero value is ready.
type Member struct {
	login      *list.Element // in Set.logins during the login; Set.mu
	crowdedOut bool          // a newer connection took the place; Set.mu
}

// Membership implements Conn.
func (m *Member) Membership() *Member { return m }

// Config is what a Set needs; all of it.
type Config[C Conn] struct {
	Log      *slog.Logger
	Protocol string // begins each line of the log
	Logins   string // what logins are called
	// MaxConns and MaxLogins bound the connections, and those of them whose login
	// is not finished. At either limit the oldest unfinished login gives way to a
	// new connection; if there is none, the new one is closed.
	MaxConns, MaxLogins int
	// Tick is called for each connection every Every, for those that Ticks says
	// true of, from the first connection on until Stop.
	Tick  func(c C, now time.Time)
	Ticks func(c C) bool
	Every time.Duration
	// Closed is what Serve returns when it was ended by its owner.
	Closed error
}

// Set is the connections of one server. Safe for concurrent use.
type Set[C Conn] struct {
	cfg Config[C]

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	conns     map[C]struct{}
	logins    list.List // of C: those in the login, the oldest first
	idle      sync.Cond // a connection ended
	stopped   chan struct{}
	closed    bool
	ticking   bool
	told      time.Time // when a refusal was logged
}

// New makes an empty set; it holds no goroutine until the first connection.
func New[C Conn](cfg Config[C]) *Set[C] {
	s := &Set[C]{cfg: cfg, listeners: map[net.Listener]struct{}{}, conns: map[C]struct{}{}, stopped: make(chan struct{})}
	s.idle.L = &s.mu
	return s
}

// Serve gives accept what ln accepts until the listener is closed, by its owner or
// the set: then it returns Config.Closed, or the listener's own error. After Stop
// it closes ln. It tries again after errors that pass: a process out of file
// descriptors, or a network or firewall that fails one connection.
func (s *Set[C]) Serve(ln net.Listener, accept func(net.Conn)) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		ln.Close()
		return s.cfg.Closed
	}
	s.listeners[ln] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, ln)
		s.mu.Unlock()
	}()
	pause := time.Duration(0)
	for {
		nc, err := ln.Accept()
		if err == nil {
			pause = 0
			accept(nc)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return s.cfg.Closed
		}
		var ne net.Error
		if !(errors.As(err, &ne) && ne.Timeout() || conndrive.MayAccept(err)) {
			return fmt.Errorf("%s portal %s: %w", s.cfg.Protocol, ln.Addr(), err)
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.cfg.Log.Error(s.cfg.Protocol+": accept failed, waiting", "portal", ln.Addr(), "err", err, "wait", pause)
		select {
		case <-time.After(pause):
		case <-s.stopped:
			return s.cfg.Closed
		}
	}
}

// Add takes a connection in, in its login. false: it was aborted instead, and is
// not to be run.
func (s *Set[C]) Add(c C) bool {
	var reason string // why one connection has to go
	loser, tell := c, false
	s.mu.Lock()
	if !s.ticking && !s.closed {
		s.ticking = true
		go s.tick()
	}
	switch n := s.logins.Len(); {
	case s.closed:
		reason = "the server is stopping"
	case len(s.conns) >= s.cfg.MaxConns && n == 0:
		reason = fmt.Sprintf("%d connections are open", len(s.conns))
	case len(s.conns) >= s.cfg.MaxConns || n >= s.cfg.MaxLogins:
		// The oldest gives way: a login takes milliseconds, and peers that say
		// nothing must not keep others out until they time out.
		reason = fmt.Sprintf("%d connections are open and %d %s are not finished", len(s.conns), n, s.cfg.Logins)
		loser = s.logins.Front().Value.(C)
		m := loser.Membership()
		s.endLoginLocked(m)
		m.crowdedOut = true
	}
	in := loser != c || reason == ""
	if in {
		s.conns[c] = struct{}{}
		c.Membership().login = s.logins.PushBack(c)
	}
	if now := time.Now(); reason != "" && now.Sub(s.told) > time.Second {
		// One line a second at most: this is what a flood looks like.
		s.told, tell = now, true
	}
	s.mu.Unlock()
	if tell {
		s.cfg.Log.Warn(s.cfg.Protocol+": too many connections, one is closed", "from", loser.From(), "reason", reason)
	}
	if reason != "" {
		loser.Abort(reason)
	}
	return in
}

// EndLogin says that c has left the login; it reports whether c had to give way to
// a newer connection before that.
func (s *Set[C]) EndLogin(c C) (crowdedOut bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := c.Membership()
	s.endLoginLocked(m)
	return m.crowdedOut
}

func (s *Set[C]) endLoginLocked(m *Member) {
	if m.login != nil {
		s.logins.Remove(m.login)
		m.login = nil
	}
}

// Remove says that c has ended, its login too.
func (s *Set[C]) Remove(c C) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.idle.Broadcast()
}

// Select lists the connections that want is true of, in no order. want is called
// under the set's mutex.
func (s *Set[C]) Select(want func(C) bool) []C {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := make([]C, 0, len(s.conns))
	for c := range s.conns {
		if want(c) {
			l = append(l, c)
		}
	}
	return l
}

func (s *Set[C]) tick() {
	t := time.NewTicker(s.cfg.Every)
	defer t.Stop()
	for {
		select {
		case <-s.stopped:
			return
		case now := <-t.C:
			for _, c := range s.Select(s.cfg.Ticks) {
				s.cfg.Tick(c, now)
			}
		}
	}
}

// CloseListeners ends every Serve; connections go on.
func (s *Set[C]) CloseListeners() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ln := range s.listeners {
		ln.Close()
	}
}

// Stop is CloseListeners, and nothing is served or added any more; the clocks stop.
func (s *Set[C]) Stop() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stopped)
	}
	s.mu.Unlock()
	s.CloseListeners()
}

// Abort aborts the connections that which is true of.
func (s *Set[C]) Abort(reason string, which func(C) bool) {
	for _, c := range s.Select(which) {
		c.Abort(reason)
	}
}

// endWait is how long End waits. A connection that was aborted ends at once, but
// for one that sends from a page of a file, or has to copy it, while the medium
// of that hangs.
const endWait = 5 * time.Second

// End is Stop, aborts all connections and waits until there is none, but no longer
// than endWait. How many are left then it logs; each ends when its store answers.
func (s *Set[C]) End(reason string) (left int) {
	s.Stop()
	s.Abort(reason, func(C) bool { return true })
	ctx, cancel := context.WithTimeout(context.Background(), endWait)
	defer cancel()
	if left = s.Wait(ctx); left > 0 {
		s.cfg.Log.Error(s.cfg.Protocol+": connections that do not end are left to the store that they wait for", "connections", left)
	}
	return left
}

// Wait waits until there is no connection, or ctx ends, and says how many are left.
func (s *Set[C]) Wait(ctx context.Context) (left int) {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock() // the waiter is either before its look at ctx or waiting
		defer s.mu.Unlock()
		s.idle.Broadcast()
	})
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.conns) > 0 && ctx.Err() == nil {
		s.idle.Wait()
	}
	return len(s.conns)
}
