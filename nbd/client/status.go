package client

import (
	"sync"
	"sync/atomic"
	"time"
)

// State is how a client fares.
type State uint8

// States of a client.
const (
	Connected State = iota
	Stalled         // the server cannot be reached, or its answers are late
	Failed          // see ErrFailed
)

// Status is how a client fares, since when, and why.
type Status struct {
	State  State
	Since  time.Time // of the last change of State; zero while there was none
	Reason string    // empty if Connected
}

// status keeps a client's Status and tells of its changes. Calls may come from
// anywhere; all are short.
type status struct {
	mu     sync.Mutex
	now    Status
	failed error
	lost   error
	link   *link // whose answers count as late
	slow   int   // how many of its connections are

	broken atomic.Bool // failed is set

	changes atomic.Uint32
	poke    chan struct{} // one element
}

// set derives the status; mu is held.
func (s *status) set() {
	n := Status{State: Connected}
	switch {
	case s.failed != nil:
		n.State, n.Reason = Failed, s.failed.Error()
	case s.lost != nil:
		n.State, n.Reason = Stalled, s.lost.Error()
	case s.slow > 0:
		n.State, n.Reason = Stalled, "the server is late with its answers"
	}
	n.Since = s.now.Since
	if n.State != s.now.State {
		n.Since = time.Now()
	}
	if n == s.now {
		return
	}
	s.now = n
	s.note(StatusChanged)
}

// note has OnChange told.
func (s *status) note(c Change) {
	s.changes.Or(uint32(c))
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

func (s *status) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = err
		s.broken.Store(true)
		s.set()
	}
}

// failure is why the client has failed, nil if it has not.
func (s *status) failure() error {
	if !s.broken.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *status) down(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost, s.link, s.slow = err, nil, 0
	s.set()
}

func (s *status) up(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost, s.link, s.slow = nil, l, 0
	s.set()
}

func (s *status) late(l *link, slow bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link != l {
		return
	}
	if slow {
		s.slow++
	} else {
		s.slow--
	}
	s.set()
}

func (s *status) get() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// tell calls fn for the changes until stop is closed.
func (s *status) tell(fn func(Change), stop <-chan struct{}) {
	for {
		select {
		case <-s.poke:
			if c := s.changes.Swap(0); c != 0 && fn != nil {
				fn(Change(c))
			}
		case <-stop:
			return
		}
	}
}
