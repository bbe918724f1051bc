package file

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"blockgate/backing"
)

// CopyFrom copies from another file of the same file system by copy_file_range,
// which shares blocks where the file system can and else keeps the data inside
// the kernel. Where it cannot, and for sources that are not files or lie behind a
// layer, the error is ErrNotSupported.
func (s *Store) CopyFrom(ctx context.Context, src backing.Store, dst, srcOff, n int64, mayUnmap bool) error {
	from, ok := src.(*Store)
	if !ok || from == s || from.geo.device || from.caps&backing.CapExtents == 0 {
		return backing.ErrNotSupported
	}
	if err := from.enter(srcOff, n, false); err != nil {
		return err
	}
	defer from.gate.leave()
	if err := s.enter(dst, n, true); err != nil {
		return err
	}
	defer s.gate.leave()
	s.locks.write(dst, n)
	defer s.locks.unwrite(dst, n)
	s.lending.holing()
	defer s.lending.holing()
	return s.settle(ctx, s.copyFrom(ctx, from, dst, srcOff, n, mayUnmap))
}

// copyFrom copies runs of data and makes holes of holes: the kernel, unless it
// shares blocks, would write them out as zeroes.
func (s *Store) copyFrom(ctx context.Context, from *Store, dst, src, n int64, mayUnmap bool) error {
	hole := func(n int64) error {
		if mayUnmap && s.geo.punch && !s.noPunch.Load() {
			return s.deallocate(ctx, dst, n)
		}
		return s.space(ctx, dst, n, s.geo.unit, zeroRange, &s.noZeroRange)
	}
	for end := src + n; src < end; {
		data, next, err := seekData(from.h, src, end)
		if err != nil {
			return from.ioError("extents of", src, err)
		}
		if data > src {
			if err := hole(data - src); err != nil {
				return err
			}
			dst, src = dst+data-src, data
		}
		for src < next {
			if err := ctx.Err(); err != nil {
				return err
			}
			m, err := s.copyStepFrom(from, dst, src, min(next-src, copyStep))
			switch {
			case errors.Is(err, syscall.EINTR):
				continue
			case unsupported(err) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EXDEV):
				return fmt.Errorf("copy %s to %s: %w (%w)", from.path, s.path, backing.ErrNotSupported, err)
			case err != nil:
				return s.ioError("copy", dst, err)
			case m == 0:
				return fmt.Errorf("copy %s at %d: the file has become shorter", from.path, src)
			}
			dst, src = dst+m, src+m
		}
	}
	return nil
}

func (s *Store) copyStepFrom(from *Store, dst, src, n int64) (int64, error) {
	defer s.lockEdges(dst, n)()
	return copyFileRange(s.h, from.h, dst, src, n)
}
