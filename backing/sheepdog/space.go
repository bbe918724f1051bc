package sheepdog

import (
	"context"
	"fmt"

	"blockgate/backing"
	"blockgate/backing/sheepdog/internal/wire"
)

// zeroes is what parts of objects are filled with. It is never written.
var zeroes [256 << 10]byte

// Discard gives whole objects back and writes zeroes into the parts of others.
func (s *Store) Discard(ctx context.Context, off, n int64) error {
	if err := s.check(off, n, true); err != nil {
		return err
	}
	v := s.vol.Load()
	err := pieces(v.BlockShift, off, n, func(idx uint32, at, _, n int64) error {
		return s.change(ctx, func(v *volume) error {
			// The last object may be cut by the size.
			whole := min(v.ObjectSize(), s.Size()-int64(idx)<<v.BlockShift)
			if at == 0 && n == whole {
				return s.discard(ctx, v, idx)
			}
			return s.zero(ctx, v, idx, uint32(at), n, false)
		})
	})
	if err != nil {
		return s.fail("discard", off, err)
	}
	return nil
}

// discard removes the object of a slot.
func (s *Store) discard(ctx context.Context, v *volume, idx uint32) error {
	if v.slots[idx].Load() == 0 {
		return nil
	}
	l := s.stripe(idx)
	if err := l.lock(ctx); err != nil {
		return err
	}
	defer l.unlock()
	if v.slots[idx].Load() == 0 {
		return nil
	}
	// The daemon would clear the slot of a snapshot as well.
	if err := s.cl.stillWorking(ctx, v.VID); err != nil {
		return err
	}
	if err := s.cl.discard(ctx, v.VID, idx); err != nil {
		return err
	}
	v.set(idx, 0)
	return nil
}

func (c *client) discard(ctx context.Context, vid, idx uint32) error {
	_, _, err := c.do(ctx, &wire.Request{Op: wire.OpDiscard, OID: wire.DataOID(vid, idx)}, nil, nil, effort{owned: true})
	return err
}

// WriteZeroes makes the range read as zeroes; if mayUnmap by Discard, otherwise by
// writing them, so that the range has its objects.
func (s *Store) WriteZeroes(ctx context.Context, off, n int64, mayUnmap bool) error {
	if mayUnmap {
		return s.Discard(ctx, off, n)
	}
	if err := s.check(off, n, true); err != nil {
		return err
	}
	err := pieces(s.vol.Load().BlockShift, off, n, func(idx uint32, at, _, n int64) error {
		return s.change(ctx, func(v *volume) error { return s.zero(ctx, v, idx, uint32(at), n, true) })
	})
	if err != nil {
		return s.fail("write zeroes", off, err)
	}
	return nil
}

// zero writes zeroes within an object; a hole stays one unless it is to be filled.
func (s *Store) zero(ctx context.Context, v *volume, idx, at uint32, n int64, fill bool) error {
	for n > 0 {
		if !fill && v.slots[idx].Load() == 0 {
			return nil
		}
		k := min(n, int64(len(zeroes)))
		if err := s.write(ctx, v, idx, at, zeroes[:k]); err != nil {
			return err
		}
		at, n = at+uint32(k), n-k
	}
	return nil
}

// Extents tells which objects there are. An object that belongs to a snapshot of
// the VDI counts as allocated.
func (s *Store) Extents(ctx context.Context, off, n int64, fn func(backing.Extent) bool) error {
	if err := s.check(off, n, false); err != nil {
		return err
	}
	if err := s.own.enter(ctx); err != nil {
		return s.fail("extents", off, err)
	}
	v := s.vol.Load()
	runs := backing.JoinExtents(off, fn)
	for end := off + n; off < end; {
		idx := off >> v.BlockShift
		k := min((idx+1)<<v.BlockShift, end) - off
		allocated := idx < int64(len(v.slots)) && v.slots[idx].Load() != 0
		if !runs.Add(k, allocated) {
			return nil
		}
		off += k
	}
	runs.End()
	return nil
}

// Resize grows the VDI. Shrinking, and growing beyond what its index can hold,
// are backing.ErrNotSupported.
func (s *Store) Resize(ctx context.Context, size int64) error {
	if err := s.check(0, 0, true); err != nil {
		return err
	}
	for {
		if err := s.own.enter(ctx); err != nil {
			return s.fail("resize", size, err)
		}
		v := s.vol.Load()
		again, err := s.resize(ctx, v, size)
		if stale(err) {
			err = s.reload(ctx, v)
			again = true
		}
		if err != nil {
			return s.fail("resize", size, err)
		}
		if !again {
			return nil
		}
	}
}

func (s *Store) resize(ctx context.Context, from *volume, size int64) (again bool, err error) {
	if err := s.gate.lock(ctx); err != nil {
		return false, err
	}
	defer s.gate.unlock()
	v := s.vol.Load()
	if v != from || !s.own.is() {
		return true, nil
	}
	if size < int64(v.Size) {
		return false, fmt.Errorf("from %d to %d bytes: shrinking is %w", v.Size, size, backing.ErrNotSupported)
	}
	if size > wire.MaxObjects<<v.BlockShift {
		return false, fmt.Errorf("a VDI with objects of %d bytes ends at %d: %w", v.ObjectSize(), int64(wire.MaxObjects)<<v.BlockShift, backing.ErrNotSupported)
	}
	if err := s.cl.stillWorking(ctx, v.VID); err != nil {
		return false, err
	}
	var b [8]byte
	wire.PutSlot(b[:], 0, uint32(size))
	wire.PutSlot(b[:], 1, uint32(size>>32))
	if err := s.cl.changeInode(ctx, v.VID, b[:], wire.OffVDISize); err != nil {
		return false, err
	}
	s.grow(v, size)
	return false, s.cl.stillWorking(ctx, v.VID)
}

// grow makes a larger volume of v the store's. The gate is held alone.
func (s *Store) grow(v *volume, size int64) {
	inode := v.Inode
	inode.Size = uint64(size)
	n := newVolume(inode)
	for i := range v.slots {
		n.slots[i].Store(v.slots[i].Load())
	}
	for i := range v.touched {
		n.touched[i].Store(v.touched[i].Load())
	}
	s.vol.Store(n)
	s.size.Store(size)
}

// Refresh reads the size anew.
func (s *Store) Refresh(ctx context.Context) (int64, error) {
	if err := s.check(0, 0, false); err != nil {
		return s.Size(), err
	}
	if err := s.gate.lock(ctx); err != nil {
		return s.Size(), err
	}
	defer s.gate.unlock()
	v := s.vol.Load()
	n, err := s.cl.header(ctx, v.VID)
	if err != nil {
		return s.Size(), s.fail("refresh", 0, err)
	}
	if n.Size > v.Size {
		s.grow(v, int64(n.Size))
	}
	return s.Size(), nil
}
