package file

import (
	"context"
	"errors"
	"sync"
	"syscall"
)

// flusher lets one fdatasync run at a time and serve all who wait for it. One
// at a time is more than thrift: of two that overlap the kernel tells the loss
// of a write to one alone, and the other would report success.
type flusher struct {
	once   sync.Once
	turn   chan struct{} // holds a token while nobody syncs
	mu     sync.Mutex
	begun  uint64 // syncs begun
	passed uint64 // the last sync that succeeded
}

// Flush makes every write, discard and zeroing that had returned before durable.
// If it fails the store is failed (backing.ErrFailed) until opened again.
func (s *Store) Flush(ctx context.Context) error {
	if err := s.enter(0, 0, false); err != nil {
		return err
	}
	defer s.gate.leave()
	if s.opt.ReadOnly {
		return nil
	}
	return s.sync(ctx)
}

func (s *Store) sync(ctx context.Context) error {
	fl := &s.flush
	fl.once.Do(func() {
		fl.turn = make(chan struct{}, 1)
		fl.turn <- struct{}{}
	})
	fl.mu.Lock()
	want := fl.begun + 1 // a sync with this number begins later than this call
	fl.mu.Unlock()

	select {
	case <-fl.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { fl.turn <- struct{}{} }()

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

	for {
		err := fdatasync(s.h)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EINTR) {
			return s.fail("flush", err)
		}
	}
	if f := s.failed.Load(); f != nil {
		return f.err
	}
	fl.mu.Lock()
	fl.passed = n
	fl.mu.Unlock()
	return nil
}
