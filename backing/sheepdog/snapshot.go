package sheepdog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"sync"
	"time"

	"blockgate/backing"
	"blockgate/backing/sheepdog/internal/wire"
)

// CreateSnapshot makes a snapshot with the tag name, which is not a number. The
// VDI goes on under another id, with what it had before as its parent.
func (s *Store) CreateSnapshot(ctx context.Context, name string) (backing.Snapshot, error) {
	fail := func(err error) (backing.Snapshot, error) {
		return backing.Snapshot{}, fmt.Errorf("sheepdog %s: snapshot %q: %w", s.loc, name, storeError(err))
	}
	if err := s.check(0, 0, true); err != nil {
		return fail(err)
	}
	if _, err := strconv.ParseUint(name, 10, 64); err == nil || name == "" || wire.CheckName(name) != nil {
		return fail(errors.New("want a name of 1 to 255 bytes that is not a number, which would be a snapshot id"))
	}
	for {
		if err := s.own.enter(ctx); err != nil {
			return fail(err)
		}
		switch _, err := s.cl.lookup(ctx, s.loc.Name, name, 0); {
		case err == nil:
			return fail(backing.ErrExist)
		case !errors.Is(err, wire.NoTag):
			return fail(err)
		}
		begin := time.Now()
		if err := s.gate.lock(ctx); err != nil {
			return fail(err)
		}
		if !s.own.is() {
			s.gate.unlock()
			continue
		}
		snap, err := s.snapshot(ctx, name)
		s.gate.unlock()
		if err != nil {
			return fail(err)
		}
		snap.Pause = time.Since(begin)
		return snap, nil
	}
}

// snapshot makes a snapshot with the gate held alone, so that nothing is under
// way. Every write that had returned is durable already.
func (s *Store) snapshot(ctx context.Context, tag string) (backing.Snapshot, error) {
	v := s.vol.Load()
	err := s.cl.stillWorking(ctx, v.VID)
	if stale(err) {
		if err = s.follow(ctx, v); err == nil {
			v = s.vol.Load()
		}
	}
	if err != nil {
		return backing.Snapshot{}, err
	}
	if err := s.cl.changeInode(ctx, v.VID, wire.PutNames("", tag)[wire.MaxNameLen:], wire.OffTag); err != nil {
		return backing.Snapshot{}, err
	}
	// From here on it is finished, whatever becomes of the caller.
	ctx = context.WithoutCancel(ctx)
	_, err = s.cl.newVDI(ctx, s.loc.Name, &v.Inode, v.VID, true)
	if errors.Is(err, errLost) {
		// The connection went before the answer came; the inode tells. A daemon
		// that is still at it makes us follow at the next write.
		if err2 := s.cl.stillWorking(ctx, v.VID); stale(err2) {
			err = nil
		}
	}
	if err != nil {
		return backing.Snapshot{}, errors.Join(err, s.cl.changeInode(ctx, v.VID, make([]byte, wire.MaxTagLen), wire.OffTag))
	}
	if err := s.follow(ctx, v); err != nil {
		return backing.Snapshot{}, fmt.Errorf("it was taken, but the VDI's new id cannot be read: %w", err)
	}
	n, err := s.cl.header(ctx, v.VID)
	if err != nil {
		return backing.Snapshot{}, err
	}
	return snapshotOf(&n), nil
}

func snapshotOf(n *wire.Inode) backing.Snapshot {
	id := strconv.FormatUint(uint64(n.SnapID), 10)
	return backing.Snapshot{Name: cmp.Or(n.Tag, id), ID: id, Created: wire.Time(n.SnapCtime), Size: int64(n.Size)}
}

// Snapshots lists the VDI's snapshots. One without a tag has its id as its name.
// It reads every inode of the cluster, a few hundred bytes of each.
func (s *Store) Snapshots(ctx context.Context) ([]backing.Snapshot, error) {
	if err := s.check(0, 0, false); err != nil {
		return nil, err
	}
	inodes, err := s.cl.inodes(ctx, func(n *wire.Inode) bool { return n.Name == s.loc.Name && n.Snapshot() })
	if err != nil {
		return nil, fmt.Errorf("sheepdog %s: snapshots: %w", s.loc, storeError(err))
	}
	slices.SortFunc(inodes, func(a, b wire.Inode) int { return cmp.Compare(a.SnapID, b.SnapID) })
	list := make([]backing.Snapshot, len(inodes))
	for i := range inodes {
		list[i] = snapshotOf(&inodes[i])
	}
	return list, nil
}

// inodes reads the headers of all VDIs and returns those that are wanted.
func (c *client) inodes(ctx context.Context, want func(*wire.Inode) bool) ([]wire.Inode, error) {
	bitmap := make([]byte, wire.VDIBitmapSize)
	_, n, err := c.do(ctx, &wire.Request{Op: wire.OpReadVDIs}, nil, bitmap, effort{})
	if err != nil {
		return nil, err
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		list  []wire.Inode
		first error
		slots = make(chan struct{}, maxParallel)
	)
	for i, b := range bitmap[:n] {
		for ; b != 0; b &= b - 1 {
			vid := uint32(i*8 + bits.TrailingZeros8(b))
			if vid == 0 {
				continue
			}
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				// All that matters is at the beginning.
				b := make([]byte, wire.InodeHeaderSize)
				err := c.readObject(ctx, wire.InodeOID(vid), b[:572], 0, effort{missing: true})
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					// One that is just made or just gone has no inode.
					if first == nil && !errors.Is(err, wire.NoObject) {
						first = err
					}
					return
				}
				if n, err := wire.ParseInode(b); err == nil && n.Name != "" && want(&n) {
					list = append(list, n)
				}
			})
		}
	}
	wg.Wait()
	return list, first
}

// find is the id of a snapshot of the VDI by tag or number.
func (s *Store) find(ctx context.Context, snapshot string) (tag string, id, vid uint32, err error) {
	tag = snapshot
	if n, err := strconv.ParseUint(snapshot, 10, 32); err == nil && n != 0 {
		tag, id = "", uint32(n)
	}
	if tag == "" && id == 0 || wire.CheckName(tag) != nil {
		return "", 0, 0, backing.ErrNotExist
	}
	vid, err = s.cl.lookup(ctx, s.loc.Name, tag, id)
	return tag, id, vid, err
}

// clearSlots is how many slots of an index one request clears. The daemon gives
// the objects back before it answers.
const clearSlots = 128

// DeleteSnapshot deletes a snapshot by its tag or number. Objects that other VDIs
// have from it stay, as the daemons count.
func (s *Store) DeleteSnapshot(ctx context.Context, name string) error {
	if err := s.check(0, 0, true); err != nil {
		return err
	}
	if err := s.deleteSnapshot(ctx, name); err != nil {
		return fmt.Errorf("sheepdog %s: delete snapshot %q: %w", s.loc, name, storeError(err))
	}
	return nil
}

func (s *Store) deleteSnapshot(ctx context.Context, name string) error {
	tag, id, vid, err := s.find(ctx, name)
	if err != nil {
		return err
	}
	v, err := s.cl.load(ctx, vid)
	if err != nil {
		return err
	}
	if !v.Snapshot() || v.Name != s.loc.Name {
		return fmt.Errorf("VDI %#x is no snapshot of it", vid)
	}
	// The slots first: a VDI that is deleted with its slots set keeps its objects
	// for ever.
	none := make([]byte, 4*clearSlots)
	for i := 0; i < len(v.slots); i += clearSlots {
		k := min(clearSlots, len(v.slots)-i)
		used := false
		for j := range k {
			used = used || v.slots[i+j].Load() != 0
		}
		if !used {
			continue
		}
		req := wire.Request{Op: wire.OpWrite, Flags: wire.FlagWrite, OID: wire.InodeOID(vid), Offset: wire.IndexOffset(uint32(i))}
		if _, _, err := s.cl.do(ctx, &req, none[:4*k], nil, effort{patient: true}); err != nil {
			return err
		}
	}
	req := wire.Request{Op: wire.OpDelVDI, Flags: wire.FlagWrite, SnapID: id}
	_, _, err = s.cl.do(ctx, &req, wire.PutNames(s.loc.Name, tag), nil, effort{patient: true, once: true})
	if errors.Is(err, errLost) {
		// Once more would delete another one of that tag, if there is; look instead.
		if _, _, again, err2 := s.find(ctx, name); err2 != nil || again != vid {
			return nil
		}
	}
	return err
}

// Clone makes a VDI from a snapshot of this one, by its tag or number. The
// location has the gateways and options of this store.
func (s *Store) Clone(ctx context.Context, snapshot, name string) (string, error) {
	if err := s.check(0, 0, true); err != nil {
		return "", err
	}
	l := s.loc
	l.Name, l.Tag, l.SnapID = name, "", 0
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("sheepdog %s: clone of snapshot %q as %q: %w", s.loc, snapshot, name, storeError(err))
	}
	location := l.String()
	if back, err := ParseLocation(location); err != nil || back.Name != name || back.Snapshot() {
		return fail(errors.New("a VDI cannot have this name here"))
	}
	_, _, vid, err := s.find(ctx, snapshot)
	if err != nil {
		return fail(err)
	}
	n, err := s.cl.header(ctx, vid)
	if err != nil {
		return fail(err)
	}
	if !n.Snapshot() {
		return fail(fmt.Errorf("VDI %#x is no snapshot", vid))
	}
	_, err = s.cl.newVDI(ctx, name, &n, vid, false)
	switch {
	case errors.Is(err, wire.VDIExists):
		return fail(backing.ErrExist)
	case errors.Is(err, errLost):
		// It may have been made all the same.
		if made, err2 := s.cl.lookup(ctx, name, "", 0); err2 == nil {
			if c, err2 := s.cl.header(ctx, made); err2 == nil && c.Parent == vid {
				return location, nil
			}
		}
		return fail(err)
	case err != nil:
		return fail(err)
	}
	return location, nil
}

var _ backing.Snapshotter = (*Store)(nil)
