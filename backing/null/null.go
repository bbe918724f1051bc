// Package null is a store without a medium: reads give zeroes, writes are
// dropped. It measures everything above a store and serves as a sink.
package null

import (
	"context"
	"fmt"
	"sync/atomic"

	"blockgate/backing"
)

// Store is a null store. All methods are safe for concurrent use and never wait.
type Store struct {
	size     atomic.Int64
	closed   atomic.Bool
	readOnly bool
	name     string
}

// Open opens "SIZE", for example "1T" (see backing.ParseSize). Without a size
// in rest the one of a creation is taken; two that differ are an error.
func Open(_ context.Context, rest string, o backing.OpenOptions) (backing.Store, error) {
	size, err := backing.SizeFromURL(rest, o)
	if err != nil {
		return nil, fmt.Errorf("null: %w", err)
	}
	s := &Store{readOnly: o.ReadOnly, name: rest}
	s.size.Store(size)
	return s, nil
}

// ReadAt fills p with zeroes.
func (s *Store) ReadAt(_ context.Context, p []byte, off int64) error {
	if err := s.check(off, int64(len(p)), false); err != nil {
		return err
	}
	clear(p)
	return nil
}

// WriteAt drops p.
func (s *Store) WriteAt(_ context.Context, p []byte, off int64) error {
	return s.check(off, int64(len(p)), true)
}

// Flush has nothing to do.
func (s *Store) Flush(context.Context) error { return s.check(0, 0, false) }

// WriteFUA drops p: there is no later state that could lose it.
func (s *Store) WriteFUA(_ context.Context, p []byte, off int64) error {
	return s.check(off, int64(len(p)), true)
}

// Discard does nothing: the range reads as zeroes already.
func (s *Store) Discard(_ context.Context, off, n int64) error { return s.check(off, n, true) }

// WriteZeroes does nothing: the range reads as zeroes already.
func (s *Store) WriteZeroes(_ context.Context, off, n int64, _ bool) error {
	return s.check(off, n, true)
}

// CopyRange does nothing: source and destination read as zeroes.
func (s *Store) CopyRange(_ context.Context, dst, src, n int64) error {
	if err := s.check(src, n, true); err != nil {
		return err
	}
	return s.check(dst, n, true)
}

// Extents reports one hole.
func (s *Store) Extents(_ context.Context, off, n int64, fn func(backing.Extent) bool) error {
	if err := s.check(off, n, false); err != nil {
		return err
	}
	if n > 0 {
		fn(backing.Extent{Off: off, Len: n})
	}
	return nil
}

// Resize sets the size; it may also shrink, since nothing can be lost.
func (s *Store) Resize(_ context.Context, size int64) error {
	if err := s.check(0, 0, true); err != nil {
		return err
	}
	if size < 0 {
		return backing.ErrOutOfRange
	}
	s.size.Store(size)
	return nil
}

// Size is the size in bytes.
func (s *Store) Size() int64 { return s.size.Load() }

// Prompt is true.
func (s *Store) Prompt() bool { return true }

// Capabilities leaves out what modifies if the store is read-only.
func (s *Store) Capabilities() backing.Caps {
	if s.readOnly {
		return backing.CapsAll &^ backing.CapsModify
	}
	return backing.CapsAll
}

// Info describes the store.
func (s *Store) Info() backing.Info {
	return backing.Info{
		Engine: "null", Location: s.name, ReadOnly: s.readOnly,
		PhysicalBlock: 4096, Thin: true,
	}
}

// Close makes every later call fail with ErrClosed.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return backing.ErrClosed
	}
	return nil
}

func (s *Store) check(off, n int64, modify bool) error {
	if s.closed.Load() {
		return backing.ErrClosed
	}
	if modify && s.readOnly {
		return backing.ErrReadOnly
	}
	return backing.CheckRange(off, n, s.size.Load())
}
