package rbd

import (
	"context"
	"time"

	"blockgate/backing"
	"blockgate/cmd/blockgate-rbd/internal/ceph"
)

// watch follows what others change of the image's header.
func (s *Store) watch() error {
	stop, err := s.lib.Watch(s.image, func() {
		select {
		case s.changes <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return s.wrap("watch", err)
	}
	s.unwatch = stop
	s.watched.Go(func() {
		for {
			select {
			case <-s.quit:
				return
			case <-s.changes:
				s.reread()
			}
		}
	})
	return nil
}

func (s *Store) reread() (int64, error) {
	var size uint64
	if err := ceph.Errno(s.lib.GetSize(s.image, &size)); err != nil {
		return s.Size(), s.wrap("reading the size", s.fate(err, false))
	}
	if old := s.size.Swap(int64(size)); old != int64(size) {
		s.tell(backing.SizeChanged)
	}
	return int64(size), nil
}

// Refresh reads the size anew.
func (s *Store) Refresh(context.Context) (int64, error) {
	if err := s.check(0, 0, false); err != nil {
		return s.Size(), err
	}
	return s.reread()
}

// Resize makes the image larger.
func (s *Store) Resize(_ context.Context, size int64) error {
	if err := s.check(0, 0, true); err != nil {
		return err
	}
	if size < s.Size() {
		return backing.ErrNotSupported
	}
	if err := ceph.Errno(s.lib.Resize(s.image, uint64(size))); err != nil {
		return s.wrap("resize", s.fate(err, true))
	}
	_, err := s.reread()
	return err
}

// Health is Failed when another client has fenced this one off.
func (s *Store) Health() backing.Health {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.health
}

func (s *Store) setHealth(state backing.State, reason string) {
	s.mu.Lock()
	s.health = backing.Health{State: state, Since: time.Now(), Reason: reason}
	s.mu.Unlock()
	s.tell(backing.HealthChanged)
}

// Notify tells of changes of the size and of Health.
func (s *Store) Notify(fn func(backing.Change)) (stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fn++
	id := s.fn
	s.fns[id] = fn
	return func() {
		s.telling.Lock()
		defer s.telling.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.fns, id)
	}
}

// tell calls those who want to know, one call at a time.
func (s *Store) tell(c backing.Change) {
	s.telling.Lock()
	defer s.telling.Unlock()
	s.mu.Lock()
	fns := make([]func(backing.Change), 0, len(s.fns))
	for _, fn := range s.fns {
		fns = append(fns, fn)
	}
	s.mu.Unlock()
	for _, fn := range fns {
		fn(c)
	}
}

// NotifyRestart: see package side.
func (s *Store) NotifyRestart(fn func(reason string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restart = fn
}
