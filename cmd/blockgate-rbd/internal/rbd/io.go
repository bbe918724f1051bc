package rbd

import (
	"bytes"
	"context"
	"errors"
	"syscall"

	"blockgate/backing"
	"blockgate/cmd/blockgate-rbd/internal/ceph"
)

// piece is how much of a request the library gets at once, in bytes.
const piece = 4 << 20

// span is how much of a discard or of zeroes it gets at once.
const span = 1 << 30

// check is what every call begins with.
func (s *Store) check(off, n int64, write bool) error {
	s.mu.Lock()
	closed, lost := s.closed, s.lost
	s.mu.Unlock()
	switch {
	case closed:
		return backing.ErrClosed
	case lost != "":
		return backing.ErrFailed
	case off < 0 || n < 0 || off > s.Size()-n:
		return backing.ErrOutOfRange
	case write && s.readOnly:
		return backing.ErrReadOnly
	}
	return nil
}

// ReadAt reads through a buffer that the library may keep.
func (s *Store) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := s.check(off, int64(len(p)), false); err != nil {
		return err
	}
	return pieces(p, off, func(p []byte, off int64) error {
		b, err := s.lib.Get(len(p))
		if err != nil {
			return err
		}
		defer s.lib.Put(b)
		n, err := s.lib.Read(ctx, s.image, off, b)
		if err == nil && n != int64(len(p)) {
			err = syscall.EIO // the image was cut short meanwhile
		}
		if err != nil {
			return s.wrap("read", s.fate(err, false))
		}
		copy(p, b.B)
		return nil
	})
}

// WriteAt waits for the library whatever becomes of ctx, as it cannot take a
// write back.
func (s *Store) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := s.check(off, int64(len(p)), true); err != nil {
		return err
	}
	s.straddle.RLock()
	defer s.straddle.RUnlock()
	return s.write(ctx, p, off)
}

func (s *Store) write(ctx context.Context, p []byte, off int64) error {
	return pieces(p, off, func(p []byte, off int64) error {
		b, err := s.lib.Get(len(p))
		if err != nil {
			return err
		}
		defer s.lib.Put(b)
		copy(b.B, p)
		return s.wrap("write", s.fate(s.lib.Write(ctx, s.image, off, b), true))
	})
}

// WriteFUA is WriteAt where there is no cache.
func (s *Store) WriteFUA(ctx context.Context, p []byte, off int64) error {
	if s.location.Cache {
		return backing.ErrNotSupported
	}
	return s.WriteAt(ctx, p, off)
}

// pieces cuts a range where the pieces of the image end.
func pieces(p []byte, off int64, do func(p []byte, off int64) error) error {
	for len(p) > 0 {
		n := min(int64(len(p)), piece-off%piece)
		if err := do(p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// Flush waits until the library keeps nothing back.
func (s *Store) Flush(ctx context.Context) error {
	if err := s.check(0, 0, false); err != nil || s.readOnly {
		return err
	}
	return s.wrap("flush", s.fate(s.lib.Flush(ctx, s.image), true))
}

// Discard frees what can be freed and zeroes the rest. That is librbd's
// write_zeroes; its discard leaves out what is short.
func (s *Store) Discard(ctx context.Context, off, n int64) error {
	return s.WriteZeroes(ctx, off, n, true)
}

// WriteZeroes frees the range, or provisions it if it must not.
func (s *Store) WriteZeroes(ctx context.Context, off, n int64, mayUnmap bool) error {
	flags := ceph.WriteZeroesThick
	if mayUnmap {
		flags = 0
	}
	return s.spans(off, n, func(off, n int64) error {
		return s.lib.WriteZeroes(ctx, s.image, off, n, flags)
	})
}

func (s *Store) spans(off, n int64, do func(off, n int64) error) error {
	if err := s.check(off, n, true); err != nil {
		return err
	}
	s.straddle.RLock()
	defer s.straddle.RUnlock()
	for n > 0 {
		part := min(n, span-off%span)
		if err := do(off, part); err != nil {
			return s.wrap("zeroing", s.fate(err, true))
		}
		off, n = off+part, n-part
	}
	return nil
}

// sector is the most that librbd compares at once, in bytes; a range must lie in
// one.
const sector = 512

// CompareAndWrite is one operation of the OSD that has the object where librbd
// does that, which is all that hosts use for locks of their own.
func (s *Store) CompareAndWrite(ctx context.Context, old, new []byte, off int64) (int, error) {
	if len(old) != len(new) || s.location.Cache {
		return -1, backing.ErrNotSupported
	}
	n := int64(len(old))
	if err := s.check(off, n, true); err != nil {
		return -1, err
	}
	if n == 0 {
		return -1, nil
	}
	if off/sector != (off+n-1)/sector {
		return s.compareAcross(ctx, old, new, off)
	}
	s.straddle.RLock()
	defer s.straddle.RUnlock()
	b, err := s.lib.Get(2 * len(old))
	if err != nil {
		return -1, err
	}
	defer s.lib.Put(b)
	copy(b.B, old)
	copy(b.B[n:], new)
	at, err := s.lib.CompareAndWrite(ctx, s.image, off, b)
	var no syscall.Errno
	if errors.As(err, &no) && no == syscall.EILSEQ {
		return s.difference(ctx, old, off, at)
	}
	if err != nil {
		return -1, s.wrap("compare and write", s.fate(err, true))
	}
	return -1, nil
}

// difference is the offset of the first difference in the range. at is where the
// library found one: versions differ in whether it counts from the range or from
// the beginning of the image, and some tell only the object's.
func (s *Store) difference(ctx context.Context, old []byte, off, at int64) (int, error) {
	now := make([]byte, len(old))
	if err := s.ReadAt(ctx, now, off); err != nil {
		return -1, err
	}
	if i := firstDifference(old, now); i >= 0 {
		return i, nil
	}
	// Somebody has made it equal since; what was found holds.
	if at >= 0 && at < int64(len(old)) {
		return int(at), nil
	}
	return 0, nil
}

// compareAcross is for longer ranges, which librbd does not do in one step.
// With the lock there is no other client, and writes of this one wait.
func (s *Store) compareAcross(ctx context.Context, old, new []byte, off int64) (int, error) {
	if !s.owner {
		return -1, backing.ErrNotSupported
	}
	s.straddle.Lock()
	defer s.straddle.Unlock()
	now := make([]byte, len(old))
	if err := s.ReadAt(ctx, now, off); err != nil {
		return -1, err
	}
	if i := firstDifference(old, now); i >= 0 {
		return i, nil
	}
	return -1, s.write(ctx, new, off)
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// Extents tells which objects there are, from the image's object map.
func (s *Store) Extents(ctx context.Context, off, n int64, fn func(backing.Extent) bool) error {
	if err := s.check(off, n, false); err != nil {
		return err
	}
	if !s.fastDiff {
		return backing.ErrNotSupported
	}
	// Whole objects, as parts of one are told as the whole.
	step := s.object << 10
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := min(n, step-off%step)
		at := off
		var found []backing.Extent
		err := s.lib.Diff(s.image, off, part, func(o, m int64) {
			o, end := max(o, at), min(o+m, off+part)
			if o >= end {
				return
			}
			if o > at {
				found = append(found, backing.Extent{Off: at, Len: o - at})
			}
			if last := len(found) - 1; last >= 0 && found[last].Allocated && found[last].Off+found[last].Len == o {
				found[last].Len += end - o
			} else {
				found = append(found, backing.Extent{Off: o, Len: end - o, Allocated: true})
			}
			at = end
		})
		if err != nil {
			return s.wrap("reading the object map", s.fate(err, false))
		}
		if at < off+part {
			found = append(found, backing.Extent{Off: at, Len: off + part - at})
		}
		for _, e := range found {
			if !fn(e) {
				return nil
			}
		}
		off, n = off+part, n-part
	}
	return nil
}
