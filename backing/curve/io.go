package curve

import (
	"context"
	"sync"

	"blockgate/backing/curve/internal/nebd"
	"blockgate/internal/bufpool"
	"blockgate/internal/rangelock"
)

const (
	// maxRequest is how much one request reads or writes. libcurve cuts it into
	// pieces of 64 KiB.
	maxRequest = 1 << 20
	// maxParallel is how many requests one call has under way.
	maxParallel = 8
	// maxGather is up to where a write of parts of blocks is put together in a
	// buffer and written at once.
	maxGather = 64 << 10
)

// ReadAt fills p. What is longer than a request is read by several at once.
func (s *Store) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := s.check(off, int64(len(p)), false); err != nil {
		return err
	}
	var err error
	if s.aligned(off, int64(len(p))) {
		err = s.read(ctx, p, off)
	} else {
		err = s.readParts(ctx, p, off)
	}
	if err != nil {
		return s.fail("read", off, err)
	}
	return nil
}

// WriteAt writes p, durably. What is longer than a request is written by several
// at once, each of which is there or not on its own.
func (s *Store) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := s.check(off, int64(len(p)), true); err != nil {
		return err
	}
	if len(p) == 0 {
		return nil
	}
	q := requests.Get().(*request)
	err := s.locked(ctx, &q.hold, off, int64(len(p)), func() error {
		if s.aligned(off, int64(len(p))) {
			return s.write(ctx, p, off)
		}
		return s.writeParts(ctx, p, off)
	})
	requests.Put(q)
	if err != nil {
		return s.fail("write", off, err)
	}
	return nil
}

// WriteFUA is WriteAt.
func (s *Store) WriteFUA(ctx context.Context, p []byte, off int64) error {
	return s.WriteAt(ctx, p, off)
}

func (s *Store) aligned(off, n int64) bool { return (off|n)&(s.block-1) == 0 }

// outer is the range with the blocks it touches, inner what it has whole blocks of.
func (s *Store) outer(off, n int64) (from, to int64) {
	return off &^ (s.block - 1), (off + n + s.block - 1) &^ (s.block - 1)
}

func (s *Store) inner(off, n int64) (from, to int64) {
	from, to = (off+s.block-1)&^(s.block-1), (off+n)&^(s.block-1)
	return from, max(from, to)
}

// locked runs fn with the blocks of the range held: shared if the range has only
// whole ones, as then fn does not write back what it read, and alone otherwise.
func (s *Store) locked(ctx context.Context, h *rangelock.Hold, off, n int64, fn func() error) error {
	from, to := s.outer(off, n)
	if err := s.ranges.Lock(ctx, nil, h, from, to, !s.aligned(off, n)); err != nil {
		return err
	}
	defer s.ranges.Unlock(h)
	return fn()
}

// read reads whole blocks.
func (s *Store) read(ctx context.Context, p []byte, off int64) error {
	if n := int64(len(p)); n > 0 && n <= maxRequest {
		return s.cl.io(ctx, nebd.Read, p, nil, off, n)
	}
	return pieces(ctx, int64(len(p)), func(at, n int64) error {
		return s.cl.io(ctx, nebd.Read, p[at:at+n], nil, off+at, n)
	})
}

// write writes whole blocks.
func (s *Store) write(ctx context.Context, p []byte, off int64) error {
	if n := int64(len(p)); n > 0 && n <= maxRequest {
		return s.cl.io(ctx, nebd.Write, nil, p, off, n)
	}
	return pieces(ctx, int64(len(p)), func(at, n int64) error {
		return s.cl.io(ctx, nebd.Write, nil, p[at:at+n], off+at, n)
	})
}

// readParts reads what does not have whole blocks only: all of it by way of a
// buffer if it is short, and else the blocks at its ends.
func (s *Store) readParts(ctx context.Context, p []byte, off int64) error {
	from, to := s.outer(off, int64(len(p)))
	if to-from <= maxGather {
		b := bufpool.Get(int(to - from))
		defer bufpool.Put(b)
		if err := s.read(ctx, b.B, from); err != nil {
			return err
		}
		copy(p, b.B[off-from:])
		return nil
	}
	in, end := s.inner(off, int64(len(p)))
	if err := s.read(ctx, p[in-off:end-off], in); err != nil {
		return err
	}
	if in > off {
		if err := s.readParts(ctx, p[:in-off], off); err != nil {
			return err
		}
	}
	if tail := p[end-off:]; len(tail) > 0 {
		return s.readParts(ctx, tail, end)
	}
	return nil
}

// writeParts is write for what has parts of blocks at its ends; they are held
// alone.
func (s *Store) writeParts(ctx context.Context, p []byte, off int64) error {
	from, to := s.outer(off, int64(len(p)))
	if to-from <= maxGather {
		b := bufpool.Get(int(to - from))
		defer bufpool.Put(b)
		end := off + int64(len(p))
		if from < off || to-from == s.block {
			if err := s.read(ctx, b.B[:s.block], from); err != nil {
				return err
			}
		}
		if last := to - s.block; end < to && last > from {
			if err := s.read(ctx, b.B[last-from:], last); err != nil {
				return err
			}
		}
		copy(b.B[off-from:], p)
		return s.write(ctx, b.B, from)
	}
	in, end := s.inner(off, int64(len(p)))
	if err := s.write(ctx, p[in-off:end-off], in); err != nil {
		return err
	}
	if in > off {
		if err := s.writeParts(ctx, p[:in-off], off); err != nil {
			return err
		}
	}
	if tail := p[end-off:]; len(tail) > 0 {
		return s.writeParts(ctx, tail, end)
	}
	return nil
}

// pieces calls fn for each part of n bytes that one request can have. Calls run at
// the same time; all have returned when pieces returns the first error there was.
func pieces(ctx context.Context, n int64, fn func(at, n int64) error) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
		slots = make(chan struct{}, maxParallel)
	)
	note := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if first == nil {
			first = err
		}
	}
	failed := func() bool {
		if ctx.Err() != nil {
			note(context.Cause(ctx))
		}
		mu.Lock()
		defer mu.Unlock()
		return first != nil
	}
	for at := int64(0); at < n; at += maxRequest {
		slots <- struct{}{}
		if failed() {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := fn(at, min(maxRequest, n-at)); err != nil {
				note(err)
			}
		})
	}
	wg.Wait()
	return first
}
