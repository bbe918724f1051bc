package sheepdog

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"blockgate/backing"
	"blockgate/backing/sheepdog/internal/wire"
)

// ReadAt fills p. Parts in different objects are read at the same time.
func (s *Store) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := s.check(off, int64(len(p)), false); err != nil {
		return err
	}
	err := s.readAt(ctx, p, off)
	for try := 0; s.lostTo(err) && try < maxReloads; try++ {
		err = s.readAt(ctx, p, off)
	}
	if err != nil {
		return s.fail("read", off, err)
	}
	return nil
}

func (s *Store) readAt(ctx context.Context, p []byte, off int64) error {
	if err := s.own.enter(ctx); err != nil {
		return err
	}
	v := s.vol.Load()
	if at := off & (v.ObjectSize() - 1); at+int64(len(p)) <= v.ObjectSize() && len(p) > 0 {
		return s.read(ctx, uint32(off>>v.BlockShift), uint32(at), p)
	}
	return pieces(v.BlockShift, off, int64(len(p)), func(idx uint32, at, from, n int64) error {
		return s.read(ctx, idx, uint32(at), p[from:from+n])
	})
}

// lostTo reports whether a call found that another gateway has taken the VDI over,
// and may take it back.
func (s *Store) lostTo(err error) bool {
	return s.loc.Shared && errors.Is(err, errNotOwner) && !s.own.is()
}

// read reads within one object.
func (s *Store) read(ctx context.Context, idx, at uint32, p []byte) error {
	for e := (effort{missing: true, owned: true}); ; {
		v := s.vol.Load()
		slot := uint32(0)
		if int(idx) < len(v.slots) {
			slot = v.slots[idx].Load()
		}
		if slot == 0 {
			if s.own.locked && s.cl.doubt() {
				// Nobody is asked for a hole, and it may not be one any more.
				var t [8]byte
				err := s.cl.readObject(ctx, wire.InodeOID(v.VID), t[:], wire.OffSnapCtime, effort{owned: true})
				if err != nil {
					return err
				}
			}
			clear(p)
			return nil
		}
		err := s.cl.readObject(ctx, wire.DataOID(slot, idx), p, at, e)
		if !errors.Is(err, wire.NoObject) {
			return err
		}
		// Discarded meanwhile, or a snapshot that had it was deleted after we
		// had our own: then the slot has changed.
		if now := s.vol.Load(); now == v && v.slots[idx].Load() == slot {
			if e.missing {
				e.missing = false // the sheep may just not have it yet
				continue
			}
			return fmt.Errorf("object %d of VDI %#x is missing: %w", idx, slot, err)
		}
	}
}

// WriteAt writes p, durably. Parts in different objects are written at the same
// time; each of them is there or not on its own.
func (s *Store) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := s.check(off, int64(len(p)), true); err != nil {
		return err
	}
	shift := s.vol.Load().BlockShift
	err := pieces(shift, off, int64(len(p)), func(idx uint32, at, from, n int64) error {
		return s.change(ctx, func(v *volume) error {
			return s.write(ctx, v, idx, uint32(at), p[from:from+n])
		})
	})
	if err != nil {
		return s.fail("write", off, err)
	}
	return nil
}

// WriteFUA is WriteAt.
func (s *Store) WriteFUA(ctx context.Context, p []byte, off int64) error {
	return s.WriteAt(ctx, p, off)
}

// maxParallel is how many objects one call works on at the same time.
const maxParallel = 8

// pieces calls fn for the part of [off, off+n) in each object: at is the offset in
// the object, from the one in the range. Calls run at the same time if there is
// more than one; all have returned when pieces returns the first error there was.
func pieces(shift uint8, off, n int64, fn func(idx uint32, at, from, n int64) error) error {
	size := int64(1) << shift
	part := func(from int64) (uint32, int64, int64) {
		at := (off + from) & (size - 1)
		return uint32((off + from) >> shift), at, min(size-at, n-from)
	}
	if n == 0 {
		return nil
	}
	if idx, at, k := part(0); k == n {
		return fn(idx, at, 0, n)
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
		slots = make(chan struct{}, maxParallel)
	)
	failed := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return first != nil
	}
	for from := int64(0); from < n && !failed(); {
		idx, at, k := part(from)
		at0 := from
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := fn(idx, at, at0, k); err != nil {
				mu.Lock()
				if first == nil {
					first = err
				}
				mu.Unlock()
			}
		})
		from += k
	}
	wg.Wait()
	return first
}

// maxReloads bounds how often one call follows snapshots that others take.
const maxReloads = 10

// change runs fn, which changes data of the VDI and returns errStale if that has
// become a snapshot; it runs again on the new working VDI.
func (s *Store) change(ctx context.Context, fn func(*volume) error) error {
	for try := 0; ; try++ {
		if err := s.own.enter(ctx); err != nil {
			return err
		}
		if err := s.gate.rlock(ctx); err != nil {
			return err
		}
		if !s.own.is() {
			// Another gateway took the VDI over while we waited.
			s.gate.runlock()
			continue
		}
		v := s.vol.Load()
		err := fn(v)
		s.gate.runlock()
		if s.lostTo(err) && try < maxReloads {
			continue
		}
		if !stale(err) {
			return err
		}
		if try == maxReloads {
			return fmt.Errorf("after %d reloads of the inode: %w", try, err)
		}
		if err := s.reload(ctx, v); err != nil && !s.lostTo(err) {
			return fmt.Errorf("reload of the inode: %w", err)
		}
	}
}

func stale(err error) bool {
	return errors.Is(err, errStale) || errors.Is(err, wire.ReadOnly)
}

func (s *Store) stripe(idx uint32) *rwLock { return &s.stripes[idx%uint32(len(s.stripes))] }

// write writes within one object. The gate is held.
func (s *Store) write(ctx context.Context, v *volume, idx, at uint32, p []byte) error {
	l := s.stripe(idx)
	if err := l.rlock(ctx); err != nil {
		return err
	}
	if v.slots[idx].Load() == v.VID {
		err := s.overwrite(ctx, v, idx, at, p)
		l.runlock()
		return err
	}
	l.runlock()
	if err := l.lock(ctx); err != nil {
		return err
	}
	defer l.unlock()
	if v.slots[idx].Load() == v.VID {
		return s.overwrite(ctx, v, idx, at, p)
	}
	return s.createObject(ctx, v, idx, at, p)
}

func (s *Store) overwrite(ctx context.Context, v *volume, idx, at uint32, p []byte) error {
	req := wire.Request{Op: wire.OpWrite, Flags: wire.FlagWrite, OID: wire.DataOID(v.VID, idx), Offset: at}
	return s.certain(ctx, v, &req, p)
}

// certain sends a request for an object that is there, if the VDI is what we
// believe it to be.
func (s *Store) certain(ctx context.Context, v *volume, req *wire.Request, p []byte) error {
	_, _, err := s.cl.do(ctx, req, p, nil, effort{missing: true, owned: true})
	if !errors.Is(err, wire.NoObject) {
		return err
	}
	if err := s.cl.stillWorking(ctx, v.VID); err != nil {
		return err
	}
	_, _, err = s.cl.do(ctx, req, p, nil, effort{owned: true})
	return err
}

// createObject makes the object of a slot that is a hole or belongs to a snapshot,
// with p in it, and then names it in the index. The stripe is held alone: creating
// an object twice would empty it of what others had written in between.
func (s *Store) createObject(ctx context.Context, v *volume, idx, at uint32, p []byte) error {
	req := wire.Request{Op: wire.OpCreateAndWrite, Flags: wire.FlagWrite, OID: wire.DataOID(v.VID, idx), Offset: at}
	if from := v.slots[idx].Load(); from != 0 && int64(len(p)) < v.ObjectSize() {
		req.Flags |= wire.FlagCOW
		req.COWOID = wire.DataOID(from, idx)
	}
	if err := s.certain(ctx, v, &req, p); err != nil {
		return err
	}
	var slot [4]byte
	wire.PutSlot(slot[:], 0, v.VID)
	if err := s.cl.changeInode(context.WithoutCancel(ctx), v.VID, slot[:], wire.IndexOffset(idx)); err != nil {
		return err
	}
	v.set(idx, v.VID)
	// An inode takes updates even as a snapshot, and then the working VDI does
	// not have this one. Reload mends that, as our slot says that it is ours.
	return s.cl.stillWorking(context.WithoutCancel(ctx), v.VID)
}

// fail names the object of an error, without hiding its kind.
func (s *Store) fail(what string, off int64, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, backing.ErrClosed) {
		return err
	}
	return fmt.Errorf("sheepdog %s: %s at %d: %w", s.loc, what, off, storeError(err))
}
