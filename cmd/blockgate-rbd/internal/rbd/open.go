// Package rbd is a store in an image of a Ceph cluster, through librbd.
//
// One image is open at a time, by one cluster client; both end with the process,
// which is how the plugin's gateway makes sure that nothing of an earlier time is
// still done by it. What reaches the cluster after that is kept out by the
// exclusive lock: whoever takes it over from a client that is gone has the cluster
// blocklist that client first.
package rbd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"blockgate/backing"
	"blockgate/backing/plugin/side"
	"blockgate/cmd/blockgate-rbd/internal/ceph"
)

// Engine opens images. It is for one process, which loads the library once.
type Engine struct {
	lib *ceph.Lib
}

// Load loads librbd and tells its version.
func (e *Engine) Load() (string, error) {
	lib, err := ceph.Load()
	if err != nil {
		return "", err
	}
	e.lib = lib
	var a, b, c, ra, rb, rc int32
	lib.Version(&a, &b, &c)
	lib.RadosVersion(&ra, &rb, &rc)
	return fmt.Sprintf("librbd %d.%d.%d, librados %d.%d.%d", a, b, c, ra, rb, rc), nil
}

// Store is an open image. See package backing for its methods.
type Store struct {
	lib      *ceph.Lib
	location Location
	spec     string
	readOnly bool
	object   int64 // bytes of an object, or of a stripe unit if that is smaller
	fastDiff bool
	owner    bool // the exclusive lock is taken

	cluster, io, image uintptr
	unwatch            func()
	size               atomic.Int64
	watched            sync.WaitGroup
	changes            chan struct{} // has one while the header is to be read again
	quit               chan struct{}

	straddle sync.RWMutex // see compareAcross

	telling sync.Mutex // one notice at a time
	mu      sync.Mutex
	health  backing.Health
	fns     map[int]func(backing.Change)
	fn      int
	restart func(reason string)
	asked   bool // restart has been called
	lost    string
	closed  bool
}

// Open opens an image for a plugin.
func (e *Engine) Open(ctx context.Context, location string, o side.Options) (backing.Store, error) {
	l, err := ParseLocation(location)
	if err != nil {
		return nil, err
	}
	s := &Store{
		lib: e.lib, location: l, spec: l.Spec(), readOnly: o.ReadOnly || l.Snap != "",
		changes: make(chan struct{}, 1), quit: make(chan struct{}), fns: make(map[int]func(backing.Change)),
	}
	if s.cluster, s.io, err = connect(e.lib, &l, o.Stall); err != nil {
		return nil, err
	}
	if err := s.open(o); err != nil {
		s.release()
		return nil, err
	}
	return s, nil
}

func (s *Store) open(o side.Options) error {
	if o.Create && !s.readOnly {
		if err := s.create(o.CreateSize); err != nil {
			return err
		}
	}
	open := s.lib.Open
	if s.readOnly {
		open = s.lib.OpenReadOnly
	}
	if err := ceph.Errno(open(s.io, s.location.Image, &s.image, ceph.CString(s.location.Snap))); err != nil {
		s.image = 0
		return s.wrap("open", err)
	}
	if err := s.inspect(); err != nil {
		return err
	}
	if o.CreateSize != 0 && o.Create && s.Size() != o.CreateSize {
		return fmt.Errorf("rbd: %s is there already and has %d bytes, not %d", s.spec, s.Size(), o.CreateSize)
	}
	if o.Exclusive && !s.readOnly && !s.location.NoLock {
		if err := s.lock(o.Again); err != nil {
			return err
		}
	}
	if s.location.Snap == "" {
		return s.watch()
	}
	return nil
}

// create makes the image unless it is there.
func (s *Store) create(size int64) error {
	if size <= 0 {
		return nil // it has to be there
	}
	var opts uintptr
	s.lib.ImageOptionsCreate(&opts)
	defer s.lib.ImageOptionsFree(opts)
	err := s.wrap("creation", ceph.Errno(s.lib.Create4(s.io, s.location.Image, uint64(size), opts)))
	if errors.Is(err, backing.ErrExist) {
		return nil
	}
	return err
}

// inspect reads what the image is.
func (s *Store) inspect() error {
	var st ceph.Stat
	if err := ceph.Errno(s.lib.Stat(s.image, &st, statSize)); err != nil {
		return s.wrap("stat", err)
	}
	s.size.Store(int64(st.Size))
	s.object = int64(st.ObjSize)
	var unit, features uint64
	if ceph.Errno(s.lib.GetStripeUnit(s.image, &unit)) == nil && unit > 0 {
		s.object = min(s.object, int64(unit))
	}
	if err := ceph.Errno(s.lib.GetFeatures(s.image, &features)); err != nil {
		return s.wrap("features", err)
	}
	s.fastDiff = features&ceph.FeatureFastDiff != 0
	if features&ceph.FeatureExclusiveLock == 0 && !s.location.NoLock && !s.readOnly {
		return fmt.Errorf("rbd: %s has no exclusive lock, so another client could write to it at the same time: "+
			"rbd feature enable %s exclusive-lock, or open it with ?lock=no", s.spec, s.spec)
	}
	return nil
}

// statSize is the length of ceph.Stat in C.
const statSize = 160

// release gives up what open has got so far.
func (s *Store) release() {
	if s.unwatch != nil {
		s.unwatch()
		close(s.quit)
		s.watched.Wait()
	}
	if s.image != 0 {
		s.lib.Close(s.image)
	}
	s.lib.RadosIoctxDestroy(s.io)
	s.lib.RadosShutdown(s.cluster)
}

// Close flushes, gives the lock back and closes the image.
func (s *Store) Close() error {
	s.mu.Lock()
	closed, lost := s.closed, s.lost
	s.closed = true
	s.mu.Unlock()
	if closed {
		return backing.ErrClosed
	}
	var err error
	if lost == "" && !s.readOnly {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		err = s.wrap("flush", s.lib.Flush(ctx, s.image))
		cancel()
	}
	s.lib.Drain()
	if s.owner && lost == "" {
		s.lib.LockRelease(s.image)
	}
	// What follows only lets go. It waits for every client that watches the image,
	// also for one that has died, and this process ends anyway.
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.release()
	}()
	select {
	case <-done:
	case <-time.After(releaseTime):
	}
	return err
}

// releaseTime is how long the library may take to let go of an image.
const releaseTime = 2 * time.Second

// Info tells what the image is.
func (s *Store) Info() backing.Info {
	i := backing.Info{
		Engine: "rbd", Location: s.spec, ReadOnly: s.readOnly, PhysicalBlock: 4096, OptimalIO: int(s.object), Thin: true,
		DiscardGranularity: discardUnit,
	}
	if s.owner {
		i.LockedBy = "this gateway"
	}
	return i
}

// discardUnit is what an OSD gives back at least, in bytes (bluestore's largest
// min_alloc_size by default).
const discardUnit = 64 << 10

// Capabilities: a snapshot changes no more.
func (s *Store) Capabilities() backing.Caps {
	c := backing.CapDiscard | backing.CapWriteZeroes | backing.CapExtents | backing.CapResize | backing.CapRefresh |
		backing.CapSnapshot
	if !s.location.Cache {
		c |= backing.CapWriteFUA | backing.CapCompareAndWrite
	}
	if !s.fastDiff {
		c &^= backing.CapExtents
	}
	if s.readOnly {
		c &^= backing.CapsModify
	}
	if s.location.Snap != "" {
		c &^= backing.CapSnapshot
	}
	return c
}

// Size is the image's size, as it was last read.
func (s *Store) Size() int64 { return s.size.Load() }

// Durable: without the cache a write is on the OSDs when it is acknowledged.
func (s *Store) Durable() bool { return !s.location.Cache }
