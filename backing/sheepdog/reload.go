package sheepdog

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"blockgate/backing/sheepdog/internal/wire"
)

func newSlots(n uint32) []atomic.Uint32 { return make([]atomic.Uint32, n) }

// reload makes the working VDI the store's, after somebody took a snapshot and so
// made from, which the store had, the snapshot. It waits for what is under way.
func (s *Store) reload(ctx context.Context, from *volume) error {
	if err := s.gate.lock(ctx); err != nil {
		return err
	}
	defer s.gate.unlock()
	if s.vol.Load() != from {
		return nil
	}
	return s.follow(ctx, from)
}

// follow is reload with the gate held alone.
func (s *Store) follow(ctx context.Context, from *volume) error {
	v, err := s.working(ctx)
	if err != nil {
		return err
	}
	if v.VID != from.VID {
		if err := s.own.moved(ctx, from.VID, v.VID); err != nil {
			return err
		}
		if err := s.repair(ctx, from, v); err != nil {
			return err
		}
	}
	s.vol.Store(v)
	s.size.Store(int64(v.Size))
	return nil
}

// working reads the working VDI. While a snapshot is being taken there is none
// for a moment, since the daemon writes one inode after the other.
func (s *Store) working(ctx context.Context) (*volume, error) {
	pause := s.cl.cfg.Backoff
	for begin := time.Now(); ; {
		vid, err := s.cl.lookup(ctx, s.loc.Name, "", 0)
		var v *volume
		if err == nil {
			if v, err = s.cl.load(ctx, vid); err == nil && !v.Snapshot() {
				return v, nil
			}
		}
		passing := err == nil || errors.Is(err, wire.NoVDI) || errors.Is(err, wire.NoObject)
		if !passing {
			return nil, err
		}
		if time.Since(begin) > min(s.cl.timeout, 10*time.Second) {
			return nil, fmt.Errorf("there is no working VDI: %w", errors.Join(err, errStale))
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, context.Cause(ctx)
		}
		pause = min(2*pause, 32*s.cl.cfg.Backoff)
	}
}

// repair puts into v, the working VDI, what we did to old, its parent, and what
// reached the index of old only after the daemon had copied it.
//
// The object is copied: were the slot of v to name that of old, the daemons would
// not count the reference, and would free the object with the snapshot.
func (s *Store) repair(ctx context.Context, old, v *volume) error {
	for i := range min(len(old.slots), len(v.slots)) {
		idx := uint32(i)
		ours, theirs := old.slots[i].Load(), v.slots[i].Load()
		switch {
		case ours == theirs || theirs == v.VID:
		case ours == 0:
			// Our discard.
			if err := s.cl.discard(ctx, v.VID, idx); err != nil {
				return err
			}
			v.slots[i].Store(0)
		case ours == old.VID:
			// The first bytes are written over themselves, as a request without
			// payload is nothing that the daemon has been seen to take.
			var head [512]byte
			if err := s.cl.readObject(ctx, wire.DataOID(old.VID, idx), head[:], 0); err != nil {
				return err
			}
			// The slot is wrong and must not be taken for the base: the object is.
			base := &volume{Inode: v.Inode, slots: newSlots(idx + 1)}
			base.slots[i].Store(old.VID)
			if err := s.createObject(ctx, base, idx, 0, head[:]); err != nil {
				return err
			}
			v.slots[i].Store(v.VID)
		}
	}
	return nil
}
