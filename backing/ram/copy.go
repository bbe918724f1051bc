package ram

import (
	"context"

	"blockgate/internal/bufpool"
)

// CopyRange copies n bytes from src to dst, which may overlap. What is a hole in
// the source becomes one in the destination.
func (s *Store) CopyRange(ctx context.Context, dst, src, n int64) error {
	if err := s.check(src, n, true); err != nil {
		return err
	}
	if err := s.check(dst, n, true); err != nil {
		return err
	}
	if n == 0 || dst == src {
		return nil
	}
	buf := bufpool.Get(int(min(n, 256<<10)))
	defer bufpool.Put(buf)
	// Backwards when the destination lies above the source, so that nothing is
	// overwritten before it was read.
	for done := int64(0); done < n; {
		m := min(n-done, int64(len(buf.B)))
		at := done
		if dst > src {
			at = n - done - m
		}
		if err := s.copyPiece(ctx, buf.B[:m], dst+at, src+at); err != nil {
			return err
		}
		done += m
	}
	return nil
}

func (s *Store) copyPiece(ctx context.Context, p []byte, dst, src int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c, at, n := s.at(src, int64(len(p)))
	if n == int64(len(p)) {
		if c == nil {
			return s.Discard(ctx, dst, n)
		}
		if length, allocated := c.extent(at, n); length == n && !allocated {
			return s.Discard(ctx, dst, n)
		}
	}
	if err := s.ReadAt(ctx, p, src); err != nil {
		return err
	}
	return s.WriteAt(ctx, p, dst)
}
