package glfs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"blockgate/backing"
	"blockgate/cmd/blockgate-gluster/internal/gfapi"
)

// health is how the store fares, and who wants to know.
type health struct {
	bad atomic.Bool // not Healthy, for who is in a hurry
	mu  sync.Mutex
	now backing.Health

	telling sync.Mutex // one call at a time
	fns     map[int]func(backing.Change)
	next    int
}

// set changes the state. Failed stays.
func (h *health) set(state backing.State, reason string) {
	h.mu.Lock()
	changed := h.now.State != state && h.now.State != backing.Failed
	if changed {
		h.now = backing.Health{State: state, Since: time.Now(), Reason: reason}
		h.bad.Store(state != backing.Healthy)
	}
	h.mu.Unlock()
	if changed {
		h.tell(backing.HealthChanged)
	}
}

// recovered is called after each call that succeeded.
func (h *health) recovered() {
	if h.bad.Load() {
		h.set(backing.Healthy, "")
	}
}

func (h *health) tell(c backing.Change) {
	h.telling.Lock()
	defer h.telling.Unlock()
	for _, fn := range h.fns {
		fn(c)
	}
}

// Health is how the store fares.
func (s *Store) Health() backing.Health {
	s.health.mu.Lock()
	defer s.health.mu.Unlock()
	return s.health.now
}

// Notify tells of changes of health and size.
func (s *Store) Notify(fn func(backing.Change)) (stop func()) {
	h := &s.health
	h.telling.Lock()
	defer h.telling.Unlock()
	if h.fns == nil {
		h.fns = make(map[int]func(backing.Change))
	}
	id := h.next
	h.next++
	h.fns[id] = fn
	return func() {
		h.telling.Lock()
		defer h.telling.Unlock()
		delete(h.fns, id)
	}
}

// How often there is a look at the calls, the lock and the size, and after which
// time without an answer the bricks are said to stall.
const (
	watchTime     = time.Second
	silentTime    = 5 * time.Second
	lockAgainTime = 5 * time.Second
	lookTime      = 10 * time.Second
)

// watch notices that calls are under way of which none ends.
func (s *Store) watch() {
	since, ended := time.Now(), uint64(0)
	s.each(func() {
		e := s.reach.ended.Load()
		if e != ended || e == s.reach.begun.Load() {
			since, ended = time.Now(), e
		}
		if time.Since(since) >= silentTime {
			s.health.set(backing.Stalled, fmt.Sprintf("gluster %s: no answer for %v", s.loc.name(), silentTime))
		}
	})
}

// tend sees to what no call does: that bricks have come back which nobody waits
// for, perhaps without the lock, and that the file has grown. It may have to wait
// for the bricks.
func (s *Store) tend() {
	locked, looked := time.Now(), time.Now()
	s.each(func() {
		if s.failed.Load() != nil {
			return
		}
		if s.locks() && time.Since(locked) >= lockAgainTime {
			s.keepLock()
			locked = time.Now()
		}
		switch idle := s.reach.ended.Load() == s.reach.begun.Load(); {
		case s.health.bad.Load() && idle:
			s.ask()
		case !s.health.bad.Load() && time.Since(looked) >= lookTime:
			s.look()
			looked = time.Now()
		}
	})
}

// each calls fn again and again until Close.
func (s *Store) each(fn func()) {
	defer s.watching.Done()
	tick := time.NewTicker(watchTime)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			fn()
		case <-s.life.Done():
			return
		}
	}
}

// look takes over that another client has made the file longer. One that is shorter
// keeps its size: to read behind the end is an error then.
func (s *Store) look() {
	ctx, cancel := context.WithTimeout(s.life, silentTime)
	defer cancel()
	st, err := s.statOnce(ctx)
	if err == nil && st.Size > s.size.Load() {
		s.setSize(st.Size)
	}
}

// keepLock takes the lock of bricks that were away and have come back without it,
// and notices that another client has it.
func (s *Store) keepLock() {
	h := s.acquire()
	h.suspect.Store(true)
	ctx, cancel := context.WithTimeout(s.life, silentTime)
	defer cancel()
	s.release(s.mend(ctx, h))
}

// ask reads a little to see whether the bricks answer.
func (s *Store) ask() {
	ctx, cancel := context.WithTimeout(s.life, silentTime)
	defer cancel()
	err := s.once(ctx, false, func(ctx context.Context, f file) error {
		_, err := f.ReadAt(ctx, make([]byte, 512), 0)
		return err
	})
	var u *gfapi.Unanswered
	if err == nil || !errors.As(err, &u) && !s.again(err) {
		s.health.recovered()
	}
}
