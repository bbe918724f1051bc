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

// Notify tells of changes of health, and of the size by Resize and Refresh.
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

// When calls are looked after, and after which time without an answer the bricks
// are said to stall.
const (
	watchTime     = time.Second
	silentTime    = 5 * time.Second
	lockAgainTime = 5 * time.Second
)

// watch notices that calls are under way of which none ends, and that bricks have
// come back which nobody waits for, perhaps without the lock.
func (s *Store) watch() {
	defer s.watching.Done()
	tick := time.NewTicker(watchTime)
	defer tick.Stop()
	since, ended, locked := time.Now(), uint64(0), time.Now()
	for {
		select {
		case <-tick.C:
		case <-s.life.Done():
			return
		}
		e := s.reach.ended.Load()
		idle := e == s.reach.begun.Load()
		if e != ended || idle {
			since, ended = time.Now(), e
		}
		if s.locks() && time.Since(locked) >= lockAgainTime && s.failed.Load() == nil {
			s.keepLock()
			locked = time.Now()
		}
		switch {
		case time.Since(since) >= silentTime:
			s.health.set(backing.Stalled, fmt.Sprintf("gluster %s: no answer for %v", s.loc.name(), silentTime))
		case idle && s.health.bad.Load() && s.failed.Load() == nil:
			s.ask()
		}
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
