package sheepdog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"blockgate/backing/sheepdog/internal/wire"
)

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
	t := &truth{slots: make(map[uint32]uint32), vids: []uint32{from.VID}}
	for i := range from.slots {
		if idx := uint32(i); from.wasTouched(idx) {
			t.slots[idx] = from.slots[i].Load()
		}
	}
	last := from.VID
	for try := 0; ; try++ {
		v, err := s.working(ctx)
		if err != nil {
			return err
		}
		if v.VID == from.VID {
			// What we know of it is newer than what we could read.
			return nil
		}
		if v.VID != last {
			if err := s.own.moved(ctx, last, v.VID); err != nil {
				return err
			}
			last = v.VID
		}
		err = s.repair(ctx, t, v)
		if stale(err) && try < maxReloads {
			continue // one more snapshot
		}
		if err != nil {
			return err
		}
		s.vol.Store(v)
		s.resized(int64(v.Size))
		return nil
	}
}

// truth is what we have made of the index, and the index of a working VDI that was
// just made may lack.
type truth struct {
	slots map[uint32]uint32
	vids  []uint32 // VDIs that were the working one while the store was open
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
		if time.Since(begin) > min(s.cl.timeout(), 10*time.Second) {
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

// repair puts into v, the working VDI, what we did to those before it, and what
// reached their index only after the daemon had copied it.
//
// The objects are copied: were the slot of v to name that of an old one, the
// daemons would not count the reference, and would free the object with the
// snapshot.
func (s *Store) repair(ctx context.Context, t *truth, v *volume) error {
	if !slices.Contains(t.vids, v.VID) {
		t.vids = append(t.vids, v.VID)
	}
	for idx, ours := range t.slots {
		if int(idx) >= len(v.slots) {
			continue
		}
		theirs := v.slots[idx].Load()
		switch {
		case ours == theirs:
		case ours == 0:
			if err := s.cl.stillWorking(ctx, v.VID); err != nil {
				return err
			}
			if err := s.cl.discard(ctx, v.VID, idx); err != nil {
				return err
			}
			v.set(idx, 0)
		case theirs == v.VID:
			// Copied by an earlier attempt that did not get to know it.
			t.slots[idx] = v.VID
		case slices.Contains(t.vids, ours):
			// The first bytes are written over themselves, as a request without
			// payload is nothing that the daemon has been seen to take.
			var head [512]byte
			if err := s.cl.readObject(ctx, wire.DataOID(ours, idx), head[:], 0, effort{owned: true}); err != nil {
				return err
			}
			v.slots[idx].Store(ours) // the base of the copy
			err := s.createObject(ctx, v, idx, 0, head[:])
			if v.slots[idx].Load() == v.VID {
				t.slots[idx] = v.VID
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}
