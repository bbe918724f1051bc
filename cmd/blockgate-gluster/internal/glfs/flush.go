package glfs

import (
	"context"
	"fmt"
	"sync"
)

// flusher lets one sync run at a time and serve all who wait for it. Of two that
// overlap a brick tells the loss of a write to one alone, and the other would
// report success.
type flusher struct {
	turn   chan struct{} // holds a token while a sync runs
	mu     sync.Mutex
	begun  uint64 // syncs begun
	passed uint64 // the last sync that succeeded
}

// Flush makes every write, discard and zeroing that had returned before durable on
// the bricks. If it fails, also because they were away for longer than the stall
// limit, the store is failed (backing.ErrFailed) until it is opened again: what
// the bricks had not written then may be lost with them.
func (s *Store) Flush(ctx context.Context) error {
	if err := s.enter(0, 0, false); err != nil {
		return err
	}
	defer s.leave()
	if s.opt.ReadOnly {
		return ctx.Err()
	}
	return s.sync(ctx)
}

func (s *Store) sync(ctx context.Context) error {
	fl := &s.flush
	fl.mu.Lock()
	want := fl.begun + 1 // a sync with this number begins later than this call
	fl.mu.Unlock()
	fl.turn <- struct{}{}
	defer func() { <-fl.turn }()
	if f := s.failed.Load(); f != nil {
		return f.err
	}
	fl.mu.Lock()
	if fl.passed >= want {
		fl.mu.Unlock()
		return nil
	}
	fl.begun++
	n := fl.begun
	fl.mu.Unlock()
	err := s.try(ctx, true, func(ctx context.Context, f file) error {
		err := f.Datasync(ctx)
		if err != nil && !s.Durable() {
			// What was behind is gone; the next one would succeed without it.
			return final{err}
		}
		return err
	})
	switch {
	case err == nil:
		fl.mu.Lock()
		fl.passed = n
		fl.mu.Unlock()
		return nil
	case s.life.Err() != nil || err == ctx.Err():
		return s.fail("flush", -1, err)
	}
	return s.giveUp(fmt.Errorf("flush: %w", err))
}
