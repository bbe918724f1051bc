package curve

import (
	"bytes"
	"context"
	"fmt"

	"blockgate/backing"
	"blockgate/backing/curve/internal/nebd"
	"blockgate/internal/bufpool"
	"blockgate/internal/rangelock"
)

// WriteZeroes writes zeroes. With mayUnmap the space is given back too, if the
// store discards.
func (s *Store) WriteZeroes(ctx context.Context, off, n int64, mayUnmap bool) error {
	if err := s.check(off, n, true); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	if err := s.zero(ctx, off, n, mayUnmap && s.loc.Discard); err != nil {
		return s.fail("write of zeroes", off, err)
	}
	return nil
}

// Discard makes the range read as zeroes and tells Curve that nobody needs it.
// Curve gives the space of whole segments back, some time later, and until then
// reads what was there. So what is not zero is overwritten first; what was never
// written is left alone, so that it does not take space now.
func (s *Store) Discard(ctx context.Context, off, n int64) error {
	if err := s.check(off, n, true); err != nil {
		return err
	}
	if !s.loc.Discard {
		return fmt.Errorf("curve %s: discard: %w (option discard=yes)", s.loc, backing.ErrNotSupported)
	}
	if n == 0 {
		return nil
	}
	if err := s.zero(ctx, off, n, true); err != nil {
		return s.fail("discard", off, err)
	}
	return nil
}

func (s *Store) zero(ctx context.Context, off, n int64, discard bool) error {
	h := new(rangelock.Hold)
	from, to := s.outer(off, n)
	// What is looked at first must not change before it is left as it is.
	if err := s.ranges.Lock(ctx, nil, h, from, to, discard || !s.aligned(off, n)); err != nil {
		return err
	}
	defer s.ranges.Unlock(h)
	zeroes := bufpool.Get(int(min(n, maxRequest)))
	defer bufpool.Put(zeroes)
	clear(zeroes.B)
	in, end := s.inner(off, n)
	if in >= off+n { // within one block
		return s.writeParts(ctx, zeroes.B[:n], off)
	}
	if in > off {
		if err := s.writeParts(ctx, zeroes.B[:in-off], off); err != nil {
			return err
		}
	}
	if tail := off + n - end; tail > 0 {
		if err := s.writeParts(ctx, zeroes.B[:tail], end); err != nil {
			return err
		}
	}
	err := pieces(ctx, end-in, func(at, n int64) error {
		if discard {
			b := bufpool.Get(int(n))
			defer bufpool.Put(b)
			if err := s.read(ctx, b.B, in+at); err != nil {
				return err
			}
			if bytes.Equal(b.B, zeroes.B[:n]) {
				return nil
			}
		}
		return s.write(ctx, zeroes.B[:n], in+at)
	})
	if err != nil || !discard || in == end {
		return err
	}
	// libcurve counts the size in bytes as an int does.
	const most = 1 << 30
	for at := in; at < end; at += most {
		if err := s.cl.io(ctx, nebd.Discard, nil, nil, at, min(most, end-at)); err != nil {
			return err
		}
	}
	return nil
}
