package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"

	"blockgate/backing"
	"blockgate/internal/bufpool"
)

// step bounds how much one system call of a long operation does, so that the
// end of ctx is seen between two.
const (
	spaceStep = 1 << 30
	copyStep  = 16 << 20
)

// Discard punches a hole. Where the file system turns out not to be able to, the
// range is overwritten with zeroes instead.
func (s *Store) Discard(ctx context.Context, off, n int64) error {
	if err := s.enter(off, n, true); err != nil {
		return err
	}
	defer s.gate.leave()
	s.locks.write(off, n)
	defer s.locks.unwrite(off, n)
	s.lending.holing()
	defer s.lending.holing()
	return s.settle(ctx, s.deallocate(ctx, off, n))
}

// WriteZeroes makes the range zero: by a hole if it may, else by allocated but
// unwritten space where the file system has such a thing, else by writing. Note
// that Extents reports unwritten space as a hole, as SEEK_DATA does.
func (s *Store) WriteZeroes(ctx context.Context, off, n int64, mayUnmap bool) error {
	if err := s.enter(off, n, true); err != nil {
		return err
	}
	defer s.gate.leave()
	s.locks.write(off, n)
	defer s.locks.unwrite(off, n)
	if mayUnmap && s.geo.punch && !s.noPunch.Load() {
		s.lending.holing()
		defer s.lending.holing()
		return s.settle(ctx, s.deallocate(ctx, off, n))
	}
	return s.settle(ctx, s.space(ctx, off, n, s.geo.unit, zeroRange, &s.noZeroRange))
}

// settle makes what a call has done durable if the store was opened with Sync:
// O_DSYNC is about writes and not about fallocate and copy_file_range.
func (s *Store) settle(ctx context.Context, err error) error {
	if err != nil || !s.opt.Sync {
		return err
	}
	return s.sync(ctx)
}

func (s *Store) deallocate(ctx context.Context, off, n int64) error {
	if s.geo.thin {
		return s.space(ctx, off, n, int64(s.geo.granularity), discardBlocks, &s.noPunch)
	}
	return s.space(ctx, off, n, s.geo.unit, punchHole, &s.noPunch)
}

// space applies one kind of fallocate, or a discard, to the range; what it cannot
// take is written: on a block device the ends that are no multiple of u, and
// everything once no is set.
func (s *Store) space(ctx context.Context, off, n, u int64, do func(h handle, off, n int64) error, no latch) error {
	if n == 0 {
		return nil
	}
	if no.Load() {
		return s.writeZeroes(ctx, off, n)
	}
	lo, hi := (off+u-1)/u*u, (off+n)/u*u
	if lo >= hi {
		return s.zeroEnd(ctx, off, n)
	}
	if err := s.zeroEnd(ctx, off, lo-off); err != nil {
		return err
	}
	if err := s.zeroEnd(ctx, hi, off+n-hi); err != nil {
		return err
	}
	unlock := s.lockEdges(lo, hi-lo)
	defer func() { unlock() }()
	for lo < hi {
		if err := ctx.Err(); err != nil {
			return err
		}
		m := min(hi-lo, max(spaceStep/u, 1)*u)
		switch err := do(s.h, lo, m); {
		case err == nil:
			lo += m
		case errors.Is(err, syscall.EINTR):
		case unsupported(err):
			// A device may learn it: it is another one below when a snapshot of
			// it is made or goes.
			no.Store(!s.geo.device)
			unlock()
			unlock = func() {}
			return s.writeZeroes(ctx, lo, hi-lo)
		default:
			return s.ioError("deallocate", lo, err)
		}
	}
	return nil
}

// zeroEnd zeroes an end of a range. On a thin volume it reads first: writing
// zeroes where there are some would take space, the opposite of a discard.
func (s *Store) zeroEnd(ctx context.Context, off, n int64) error {
	if !s.geo.thin || n == 0 {
		return s.writeZeroes(ctx, off, n)
	}
	b := bufpool.Get(int(min(n, maxBounce)))
	defer bufpool.Put(b)
	for end := off + n; off < end; {
		p := b.B[:min(end-off, int64(len(b.B)))]
		read := s.read
		if s.direct != nil {
			read = s.directRead
		}
		if err := read(p, off); err != nil {
			return err
		}
		if !isZero(p) {
			if err := s.writeZeroes(ctx, off, int64(len(p))); err != nil {
				return err
			}
		}
		off += int64(len(p))
	}
	return nil
}

func isZero(p []byte) bool {
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}

type latch interface {
	Load() bool
	Store(bool)
}

func (s *Store) writeZeroes(ctx context.Context, off, n int64) error {
	if n == 0 {
		return nil
	}
	size := min(n, maxBounce)
	var p []byte
	var b *bufpool.Buf
	if s.direct != nil {
		p, b = s.direct.buffer(size)
	} else {
		b = bufpool.Get(int(size))
		p = b.B
	}
	defer bufpool.Put(b)
	clear(p)
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		m := min(n, size)
		if err := s.put(p[:m], off, false); err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}

// Usage tells what the file takes of its file system, its own metadata there
// included, and what is left.
func (s *Store) Usage(context.Context) (backing.Usage, error) {
	if err := s.enter(0, 0, false); err != nil {
		return backing.Usage{}, err
	}
	defer s.gate.leave()
	u, err := usageOf(s.h)
	if err != nil {
		return u, s.ioError("usage of", 0, err)
	}
	return u, nil
}

// Extents reports what the file system has allocated, with its granularity.
func (s *Store) Extents(ctx context.Context, off, n int64, fn func(backing.Extent) bool) error {
	if err := s.enter(off, n, false); err != nil {
		return err
	}
	defer s.gate.leave()
	for end := off + n; off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, hole, err := seekData(s.h, off, end)
		if err != nil {
			return s.ioError("extents of", off, err)
		}
		if data > off && !fn(backing.Extent{Off: off, Len: data - off}) {
			return nil
		}
		if hole > data && !fn(backing.Extent{Off: data, Len: hole - data, Allocated: true}) {
			return nil
		}
		off = hole
	}
	return nil
}

// CopyRange copies by copy_file_range, which shares blocks where the file system
// can; ranges that overlap, and file systems that cannot, are read and written.
func (s *Store) CopyRange(ctx context.Context, dst, src, n int64) error {
	if err := backing.CheckRange(src, n, s.size.Load()); err != nil {
		return err
	}
	if err := s.enter(dst, n, true); err != nil {
		return err
	}
	defer s.gate.leave()
	if n == 0 || dst == src {
		return nil
	}
	s.locks.write(dst, n)
	defer s.locks.unwrite(dst, n)
	return s.settle(ctx, s.copy(ctx, dst, src, n))
}

func (s *Store) copy(ctx context.Context, dst, src, n int64) error {
	if overlap := dst < src+n && src < dst+n; overlap || s.noCopy.Load() {
		return s.copyThrough(ctx, dst, src, n)
	}
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		m, err := s.copyStep(dst, src, min(n, copyStep))
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case unsupported(err) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EXDEV):
			s.noCopy.Store(true)
			return s.copyThrough(ctx, dst, src, n)
		case err != nil:
			return s.ioError("copy", src, err)
		case m == 0:
			return fmt.Errorf("copy %s at %d: the file has become shorter", s.path, src)
		}
		dst, src, n = dst+m, src+m, n-m
	}
	return nil
}

func (s *Store) copyStep(dst, src, n int64) (int64, error) {
	defer s.lockEdges(dst, n)()
	return copyFileRange(s.h, s.h, dst, src, n)
}

// copyThrough copies by a buffer, backwards if the destination lies above the
// source, so that nothing is overwritten before it was read.
func (s *Store) copyThrough(ctx context.Context, dst, src, n int64) error {
	b := bufpool.Get(int(min(n, maxBounce)))
	defer bufpool.Put(b)
	for done := int64(0); done < n; {
		if err := ctx.Err(); err != nil {
			return err
		}
		m := min(n-done, int64(len(b.B)))
		at := done
		if dst > src {
			at = n - done - m
		}
		read := s.read
		if s.direct != nil {
			read = s.directRead
		}
		if err := read(b.B[:m], src+at); err != nil {
			return err
		}
		if err := s.put(b.B[:m], dst+at, false); err != nil {
			return err
		}
		done += m
	}
	return nil
}
