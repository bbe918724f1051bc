// Package curve is a store in a volume of Curve (OpenCurve's CurveBS). It speaks
// to the nebd-server of this host over its unix socket, as QEMU's driver does,
// and needs no library; snapshots and clones go to Curve's snapshot and clone
// service over HTTP.
//
// Writes are durable when they return: the chunk servers have them in their logs.
// nebd-server gets whole blocks only, since it does not survive others; what is
// smaller is read, changed and written back under a lock of its range.
//
// A request that is lost may still be carried out as long as nebd-server lives,
// and libcurve tries for a day. So before anything is sent again the volume is
// closed and opened: a close waits for all that was under way.
package curve

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"blockgate/backing"
	"blockgate/internal/rangelock"
)

// Store is an open volume. All methods are safe for concurrent use, Close
// included.
//
// A call that is under way when its context ends returns when nebd-server has
// answered it or is given up (Location.Timeout).
type Store struct {
	cl       *client
	loc      Location
	readOnly bool
	lock     *fileLock
	snaps    *snapshotService // nil: no service is named

	block int64 // bytes
	size  atomic.Int64

	// ranges are held by what changes data: shared by whole blocks, alone by
	// what reads before it writes, and all of it alone while a snapshot is made.
	ranges  rangelock.Lock
	closing sync.Once
}

// Open opens the volume that ParseLocation reads from rest. Volumes are made by
// Curve's own tools: with Create, one that is not there is an error.
//
// Exclusive takes the lock that nebd's other clients on this host take as well,
// and waits until what an earlier client had under way is done. It keeps nobody
// on other hosts away. Direct and Sync are always so.
func Open(ctx context.Context, rest string, o backing.OpenOptions) (backing.Store, error) {
	l, err := ParseLocation(rest)
	if err != nil {
		return nil, err
	}
	s, err := OpenAt(ctx, l, o, Config{})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// OpenAt is Open with the location in parts and a configuration.
func OpenAt(ctx context.Context, l Location, o backing.OpenOptions, cfg Config) (*Store, error) {
	if l.Volume == "" {
		return nil, errors.New("curve: a location needs a volume")
	}
	if err := l.complete(cfg.ClientConf); err != nil {
		return nil, err
	}
	s := &Store{loc: l, readOnly: o.ReadOnly}
	fail := func(err error) (*Store, error) {
		return nil, fmt.Errorf("curve %s: %w", l, err)
	}
	alone := o.Exclusive && !o.ReadOnly
	if alone && !l.NoLock {
		var err error
		if s.lock, err = lockFile(l.lockDir, l.Name()); err != nil {
			return fail(err)
		}
	}
	if len(l.Snapshots) > 0 {
		s.snaps = newSnapshotService(l, cfg)
	}
	s.cl = newClient(cfg.withDefaults(), &s.loc, alone, o.Stall)
	info, err := s.cl.open(ctx)
	if err == nil {
		err = s.accept(info, o)
	}
	if err != nil {
		s.cl.close()
		s.lock.release()
		if o.Create && errors.As(err, new(refusal)) {
			err = fmt.Errorf("%w (if there is no such volume: nebd-server makes none, Curve's own tools do: curve create)", err)
		}
		return fail(err)
	}
	return s, nil
}

// accept takes over what the volume is.
func (s *Store) accept(info volumeInfo, o backing.OpenOptions) error {
	if o.Create && o.CreateSize != 0 && o.CreateSize != info.size {
		return fmt.Errorf("%w: it has %d bytes, %d asked for", backing.ErrSizeMismatch, info.size, o.CreateSize)
	}
	s.block = info.block
	s.size.Store(info.size)
	return nil
}

// Info describes the store.
func (s *Store) Info() backing.Info {
	i := backing.Info{Engine: "curve", Location: s.loc.String(), ReadOnly: s.readOnly, PhysicalBlock: int(s.block), Thin: s.loc.Discard}
	if s.lock != nil {
		i.LockedBy = "this gateway"
	}
	if s.loc.Discard {
		i.DiscardGranularity = int(s.block)
	}
	return i
}

// Capabilities leaves out what modifies if the store is read-only, discards
// unless they were asked for, and snapshots if no service is named.
func (s *Store) Capabilities() backing.Caps {
	c := backing.CapWriteZeroes | backing.CapResize | backing.CapRefresh | backing.CapWriteFUA
	if s.loc.Discard {
		c |= backing.CapDiscard
	}
	if s.snaps != nil {
		c |= backing.CapSnapshot
	}
	if s.readOnly {
		c &^= backing.CapsModify | backing.CapSnapshot
	}
	return c
}

// Size is the size in bytes as of Open, Resize or the last Refresh.
func (s *Store) Size() int64 { return s.size.Load() }

// Flush asks nebd-server to flush. It answers at once, as every write was durable
// when it returned.
func (s *Store) Flush(ctx context.Context) error {
	if err := s.check(0, 0, false); err != nil {
		return err
	}
	if s.readOnly {
		return ctx.Err()
	}
	if err := s.cl.flush(ctx); err != nil {
		return s.fail("flush", 0, err)
	}
	return nil
}

// Refresh asks for the size of the volume, which others may have extended.
func (s *Store) Refresh(ctx context.Context) (int64, error) {
	if err := s.check(0, 0, false); err != nil {
		return 0, err
	}
	info, err := s.cl.info(ctx)
	if err != nil {
		return 0, fmt.Errorf("curve %s: size: %w", s.loc, err)
	}
	s.size.Store(info.size)
	return info.size, nil
}

// Resize extends the volume. Curve extends by whole segments of 1 GiB and refuses
// other sizes; shrinking is ErrNotSupported.
func (s *Store) Resize(ctx context.Context, size int64) error {
	if err := s.check(0, 0, true); err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("curve %s: resize to %d bytes: %w", s.loc, size, err) }
	switch now, err := s.Refresh(ctx); {
	case err != nil:
		return err
	case size == now:
		return nil
	case size < now:
		return fail(fmt.Errorf("%w: it has %d", backing.ErrNotSupported, now))
	case size%s.block != 0:
		return fail(fmt.Errorf("%w: it is not a multiple of %d", backing.ErrNotSupported, s.block))
	}
	err := s.cl.resize(ctx, size)
	// If the first attempt was lost the second one finds it done.
	now, err2 := s.Refresh(ctx)
	switch {
	case err2 == nil && now >= size:
		return nil
	case err != nil:
		return fail(err)
	case err2 != nil:
		return err2
	}
	return fail(fmt.Errorf("it has %d bytes afterwards", now))
}

// Status is nil while the volume is in service; otherwise it says why it is not:
// nebd-server is not reached, or has left a write unanswered, and then every call
// fails at once until that is known to be over.
func (s *Store) Status() error { return s.cl.status() }

// Health is Stalled while nebd-server is not reached, and while the volume is
// suspended (see Status).
func (s *Store) Health() backing.Health { return s.cl.vitals.Health() }

// Notify tells of changes of Health.
func (s *Store) Notify(fn func(backing.Change)) (stop func()) { return s.cl.vitals.Notify(fn) }

// SetStall is how long calls wait for nebd-server while it is not there, unless the
// location says it. How long it may take for an answer stays as it is.
func (s *Store) SetStall(limit time.Duration) { s.cl.setStall(limit) }

// Close closes the volume if it was opened Exclusive, within a time limit, and
// ends the connection. Calls that are under way end with backing.ErrClosed.
func (s *Store) Close() error {
	err := backing.ErrClosed
	s.closing.Do(func() {
		err = nil
		s.cl.close()
		s.lock.release()
	})
	return err
}

func (s *Store) check(off, n int64, modify bool) error {
	if s.cl.isClosed() {
		return backing.ErrClosed
	}
	if modify && s.readOnly {
		return backing.ErrReadOnly
	}
	return backing.CheckRange(off, n, s.size.Load())
}

// fail names the object of an error, without hiding its kind.
func (s *Store) fail(what string, off int64, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, backing.ErrClosed) {
		return err
	}
	return fmt.Errorf("curve %s: %s at %d: %w", s.loc, what, off, err)
}
