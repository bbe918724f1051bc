// Package sheepdog is a store in a volume (VDI) of a Sheepdog cluster. It speaks
// the cluster's own protocol to one sheep, its gateway, over a unix socket or
// TCP, and needs no library.
//
// Writes are durable when they return, as the daemons write through. What is
// written to a part that has no object yet, or one that belongs to a snapshot,
// makes a new object first and then names it in the VDI's index; only after both
// is it acknowledged.
package sheepdog

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"blockgate/backing"
	"blockgate/backing/internal/vitals"
	"blockgate/backing/sheepdog/internal/wire"
)

// Store is an open VDI. All methods, Close too, are safe for concurrent use.
//
// A call that is under way when its context ends returns when the sheep has
// answered it or is given up (Config.AnswerTimeout): what has been sent may still
// be carried out, and the caller must not write the same range again before.
type Store struct {
	cl       *client
	loc      Location
	readOnly bool
	own      owner

	size atomic.Int64
	vol  atomic.Pointer[volume]

	// gate is held shared by what changes data, and alone by what replaces vol.
	gate rwLock
	// stripes are held shared by writes into an object and alone by what creates
	// or removes it. Order: gate, then one stripe.
	stripes [512]rwLock
}

// Open opens the VDI or snapshot that ParseLocation reads from rest.
//
// A snapshot is read-only. Exclusive takes the VDI's lock, which clusters keep
// only if they were formatted with it; see Location for what gateways that share
// a VDI do. Direct and Sync are always so.
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
	if len(l.Gateways) == 0 || l.Name == "" {
		return nil, errors.New("sheepdog: a location needs a gateway and a name")
	}
	s := &Store{loc: l, readOnly: o.ReadOnly || l.Snapshot()}
	s.cl = newClient(cfg.withDefaults(), l.Gateways, vitals.Limit(l.Timeout, o.Stall, DefaultTimeout))
	if err := s.open(ctx, o); err != nil {
		s.cl.close()
		return nil, fmt.Errorf("sheepdog %s: %w", l, storeError(err))
	}
	s.cl.watch(func(ctx context.Context) error {
		var t [8]byte
		return s.cl.readInode(ctx, s.vol.Load().VID, t[:], wire.OffSnapCtime)
	})
	return s, nil
}

func (s *Store) open(ctx context.Context, o backing.OpenOptions) error {
	// That no sheep is there is an error at once; if it goes away later it is
	// waited for.
	if _, err := s.cl.conn(ctx); err != nil {
		return err
	}
	vid, err := s.cl.lookup(ctx, s.loc.Name, s.loc.Tag, s.loc.SnapID)
	if errors.Is(err, wire.NoVDI) && o.Create && !s.readOnly {
		if o.CreateSize <= 0 {
			return errors.New("a new VDI needs a size")
		}
		if err := s.cl.create(ctx, s.loc.Name, o.CreateSize); err != nil {
			return err
		}
		vid, err = s.cl.lookup(ctx, s.loc.Name, "", 0)
	}
	if err != nil {
		return err
	}
	v, err := s.cl.load(ctx, vid)
	if err != nil {
		return err
	}
	if o.Create && o.CreateSize != 0 && o.CreateSize != int64(v.Size) {
		return fmt.Errorf("%w: it has %d bytes, %d asked for", backing.ErrSizeMismatch, v.Size, o.CreateSize)
	}
	if v.Snapshot() != s.loc.Snapshot() {
		return fmt.Errorf("the inode of VDI %#x does not know whether it is a snapshot", vid)
	}
	s.vol.Store(v)
	s.size.Store(int64(v.Size))
	return s.own.init(ctx, s, o)
}

// Info describes the store.
func (s *Store) Info() backing.Info {
	v := s.vol.Load()
	return backing.Info{
		Engine: "sheepdog", Location: s.loc.String(), ReadOnly: s.readOnly, Thin: true,
		DiscardGranularity: int(v.ObjectSize()), OptimalIO: int(v.ObjectSize()),
		PhysicalBlock: s.physicalBlock(v), LockedBy: s.own.lockedBy(),
	}
}

// physicalBlock is what the cluster does not have to read before it writes:
// erasure coded objects are made of stripes of 512 bytes for each data strip.
func (s *Store) physicalBlock(v *volume) int {
	if v.CopyPolicy == 0 {
		return 512
	}
	b := 512
	for b < int(v.CopyPolicy>>4)*2*512 {
		b *= 2
	}
	return b
}

// Capabilities leaves out what modifies if the store is read-only.
func (s *Store) Capabilities() backing.Caps {
	c := backing.CapDiscard | backing.CapWriteZeroes | backing.CapExtents | backing.CapResize | backing.CapRefresh | backing.CapWriteFUA |
		backing.CapSnapshot
	if s.readOnly {
		c &^= backing.CapsModify | backing.CapSnapshot
	}
	return c
}

// Size is the size in bytes as of Open, Resize or the last Refresh.
func (s *Store) Size() int64 { return s.size.Load() }

// Health is Stalled while no sheep answers or the cluster is halted, and Failed
// while another gateway has the VDI that this one is to have alone.
func (s *Store) Health() backing.Health { return s.cl.vitals.Health() }

// Notify tells of changes of Health, and of the size if another client resized
// the VDI.
func (s *Store) Notify(fn func(backing.Change)) (stop func()) { return s.cl.vitals.Notify(fn) }

// resized takes over a size that somebody else may have changed.
func (s *Store) resized(size int64) {
	if s.size.Swap(size) != size {
		s.cl.vitals.Tell(backing.SizeChanged)
	}
}

// SetStall is how long calls wait for the cluster, unless the location says it.
func (s *Store) SetStall(limit time.Duration) {
	s.cl.limit.Store(int64(vitals.Limit(s.loc.Timeout, limit, DefaultTimeout)))
}

// Flush has nothing to do, as every write was durable when it returned. What
// the daemons keep back because they were told to (sheep -n) nobody can flush.
func (s *Store) Flush(ctx context.Context) error {
	if err := s.check(0, 0, false); err != nil {
		return err
	}
	return ctx.Err()
}

// Close gives up the VDI's lock, if the cluster can be reached, and ends the
// connections. Calls that are under way end with backing.ErrClosed.
func (s *Store) Close() error {
	if !s.own.close() {
		return backing.ErrClosed
	}
	s.cl.close()
	return nil
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
