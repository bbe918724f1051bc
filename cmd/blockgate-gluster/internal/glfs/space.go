package glfs

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"blockgate/backing"
	"blockgate/cmd/blockgate-gluster/internal/gfapi"
)

// The most that is asked of the bricks at once: a brick may have to write the
// zeroes, and does nothing else for the file meanwhile.
const (
	maxDiscard  = 1 << 30
	maxZerofill = 16 << 20
)

// Discard punches holes, which read as zeroes. Parts of the bricks' blocks are
// zeroed.
func (s *Store) Discard(ctx context.Context, off, n int64) error {
	if err := s.enter(off, n, true); err != nil {
		return err
	}
	defer s.leave()
	if s.caps&backing.CapDiscard == 0 {
		return s.fail("discard", off, backing.ErrNotSupported)
	}
	return s.pieces(ctx, "discard", off, n, maxDiscard, func(ctx context.Context, f file, off, n int64) error {
		return f.Discard(ctx, off, n)
	})
}

// WriteZeroes punches holes if it may, and otherwise has the bricks write zeroes,
// or writes them itself if they do not know how.
func (s *Store) WriteZeroes(ctx context.Context, off, n int64, mayUnmap bool) error {
	if err := s.enter(off, n, true); err != nil {
		return err
	}
	defer s.leave()
	if mayUnmap && s.caps&backing.CapDiscard != 0 {
		return s.pieces(ctx, "write zeroes", off, n, maxDiscard, func(ctx context.Context, f file, off, n int64) error {
			return f.Discard(ctx, off, n)
		})
	}
	return s.pieces(ctx, "write zeroes", off, n, maxZerofill, func(ctx context.Context, f file, off, n int64) error {
		err := f.Zerofill(ctx, off, n)
		if err == nil || !unsupported(err) {
			return err
		}
		zeroes := make([]byte, min(n, gfapi.MaxIO))
		for n > 0 {
			p := zeroes[:min(n, gfapi.MaxIO)]
			if err := writeAll(ctx, f, p, off, false); err != nil {
				return err
			}
			off, n = off+int64(len(p)), n-int64(len(p))
		}
		return nil
	})
}

// pieces divides a long range, each part of which has the stall limit for itself.
func (s *Store) pieces(ctx context.Context, what string, off, n, most int64, fn func(ctx context.Context, f file, off, n int64) error) error {
	if n == 0 {
		return ctx.Err()
	}
	for n > 0 {
		part := min(n, most)
		err := s.try(ctx, true, func(ctx context.Context, f file) error { return fn(ctx, f, off, part) })
		if err != nil {
			return s.fail(what, off, err)
		}
		off, n = off+part, n-part
	}
	if s.opt.Sync {
		return s.sync(ctx)
	}
	return nil
}

// Extents asks one replica of the bricks. Where they do not know, all is allocated.
func (s *Store) Extents(ctx context.Context, off, n int64, fn func(backing.Extent) bool) error {
	if err := s.enter(off, n, false); err != nil {
		return err
	}
	defer s.leave()
	if s.caps&backing.CapExtents == 0 {
		return s.fail("extents", off, backing.ErrNotSupported)
	}
	for end := off + n; off < end; {
		data, err := s.seek(ctx, off, end, gfapi.SeekData)
		if err != nil {
			return s.fail("extents", off, err)
		}
		if data > off && !fn(backing.Extent{Off: off, Len: data - off}) || data == end {
			return nil
		}
		hole, err := s.seek(ctx, data, end, gfapi.SeekHole)
		if err != nil {
			return s.fail("extents", data, err)
		}
		if hole == data { // they contradict themselves
			hole = end
		}
		if !fn(backing.Extent{Off: data, Len: hole - data, Allocated: true}) {
			return nil
		}
		off = hole
	}
	return ctx.Err()
}

// seek is where data or a hole begins from off on, end at most.
func (s *Store) seek(ctx context.Context, off, end int64, whence int) (int64, error) {
	var at int64
	err := s.try(ctx, false, func(ctx context.Context, f file) error {
		found := make(chan int64, 1)
		err := blocking(ctx, func() error {
			at, err := f.Seek(off, whence)
			found <- at
			return err
		})
		if err == nil {
			at = <-found
		}
		return err
	})
	switch {
	case errors.Is(err, syscall.ENXIO):
		return end, nil // behind the last data, or the end of a file that became shorter
	case err != nil && unsupported(err):
		// The volume shards since, which it does to new files only; be safe.
		if whence == gfapi.SeekData {
			return off, nil
		}
		return end, nil
	case err != nil:
		return 0, err
	}
	return min(max(at, off), end), nil
}

// Resize makes the file longer. Shrinking is ErrNotSupported.
func (s *Store) Resize(ctx context.Context, size int64) error {
	if err := s.enter(0, 0, true); err != nil {
		return err
	}
	defer s.leave()
	now, err := s.stat(ctx)
	switch {
	case err != nil:
		return s.fail("resize", -1, err)
	case size < now.Size:
		return s.fail("resize", -1, fmt.Errorf("%w: it has %d bytes, %d are fewer", backing.ErrNotSupported, now.Size, size))
	case size > now.Size:
		err := s.try(ctx, true, func(ctx context.Context, f file) error {
			return blocking(ctx, func() error { return f.Truncate(size) })
		})
		if err != nil {
			return s.fail("resize", -1, err)
		}
	}
	s.setSize(size)
	return nil
}

// Refresh asks for the size of the file, which others may have changed. The
// volume's translators may answer with what they knew a second ago.
func (s *Store) Refresh(ctx context.Context) (int64, error) {
	if err := s.enter(0, 0, false); err != nil {
		return 0, err
	}
	defer s.leave()
	st, err := s.stat(ctx)
	if err != nil {
		return 0, s.fail("size", -1, err)
	}
	s.setSize(st.Size)
	return st.Size, nil
}

func (s *Store) setSize(size int64) {
	if s.size.Swap(size) != size {
		s.health.tell(backing.SizeChanged)
	}
}

func (s *Store) stat(ctx context.Context) (st syscall.Stat_t, err error) {
	err = s.try(ctx, false, func(ctx context.Context, f file) (err error) {
		st, err = statOf(ctx, f)
		return err
	})
	return st, err
}

// statOnce is stat without a second attempt.
func (s *Store) statOnce(ctx context.Context) (st syscall.Stat_t, err error) {
	err = s.once(ctx, false, func(ctx context.Context, f file) (err error) {
		st, err = statOf(ctx, f)
		return err
	})
	return st, err
}

func statOf(ctx context.Context, f file) (syscall.Stat_t, error) {
	found := make(chan syscall.Stat_t, 1)
	err := blocking(ctx, func() error {
		st, err := f.Stat()
		found <- st
		return err
	})
	if err != nil {
		return syscall.Stat_t{}, err
	}
	return <-found, nil
}

// Usage is what the file takes, of one replica, and what the volume has left.
func (s *Store) Usage(ctx context.Context) (backing.Usage, error) {
	if err := s.enter(0, 0, false); err != nil {
		return backing.Usage{}, err
	}
	defer s.leave()
	st, err := s.stat(ctx)
	var left int64
	if err == nil {
		err = s.try(ctx, false, func(ctx context.Context, _ file) error {
			found := make(chan int64, 1)
			err := blocking(ctx, func() error {
				n, err := s.vol.Space(s.loc.Path)
				found <- n
				return err
			})
			if err == nil {
				left = <-found
			}
			return err
		})
	}
	if err != nil {
		return backing.Usage{}, s.fail("usage", -1, err)
	}
	return backing.Usage{Used: st.Blocks * 512, Available: left}, nil
}
