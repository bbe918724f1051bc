package glfs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"blockgate/backing"
	"blockgate/cmd/blockgate-gluster/internal/gfapi"
)

// DefaultStall is how long a call waits for bricks that are away if nothing else
// is said.
const DefaultStall = 30 * time.Second

var errNoVolume = fmt.Errorf("volume: %w", backing.ErrNotExist)

// Options says how a file is opened.
type Options struct {
	backing.OpenOptions
	// Again says that a former process had it open which was killed: its lock may
	// outlive it, until the bricks see that its connection has ended.
	Again bool
}

// lockTime is how long a lock is waited for whose owner may just have ended.
const lockTime = 3 * time.Second

// Open opens the file that ParseLocation reads from rest.
//
// Exclusive takes a lock that keeps other gateways away; only those who ask, unless
// the location has lock=yes, which needs a volume that enforces locks. Direct is asked of the bricks. A volume that writes
// behind is refused unless the location says what to do about it, or the file is
// opened Direct and the volume respects that (performance.strict-o-direct).
func Open(ctx context.Context, lib *gfapi.Library, rest string, o Options) (*Store, error) {
	l, err := ParseLocation(rest)
	if err != nil {
		return nil, err
	}
	return open(ctx, func() (volume, error) { return attach(lib, l) }, l, o)
}

func open(ctx context.Context, attach func() (volume, error), l Location, o Options) (*Store, error) {
	s := &Store{loc: l, opt: o}
	s.SetStall(o.Stall)
	s.flush.turn, s.reach.repair = make(chan struct{}, 1), make(chan struct{}, 1)
	// The library knows nothing of contexts. What hangs is left alone.
	done := make(chan error)
	go func() {
		vol, err := attach()
		if err == nil {
			s.vol = vol
			if err = s.begin(ctx); err != nil {
				vol.Detach()
			}
		}
		select {
		case done <- err:
		case <-ctx.Done():
			if err == nil {
				s.cur.f.Close()
				vol.Detach()
			}
		}
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = fmt.Errorf("no answer: %w", ctx.Err())
	}
	if err != nil {
		return nil, fmt.Errorf("gluster %s: %w", l.name(), err)
	}
	s.life, s.end = context.WithCancel(context.Background())
	s.watching.Add(2)
	go s.watch()
	go s.tend()
	if len(s.replicates) > 0 {
		s.watching.Add(1)
		go s.watchReplicas()
	}
	return s, nil
}

// begin makes sure that the volume is fit, and opens the file.
func (s *Store) begin(ctx context.Context) error {
	if !s.opt.ReadOnly {
		if err := s.checkVolume(); err != nil {
			return err
		}
	}
	f, err := s.openFile()
	if err != nil {
		return err
	}
	if err := s.accept(ctx, f); err != nil {
		f.Close()
		return err
	}
	s.cur = &handle{f: f}
	return nil
}

// checkVolume refuses a volume that would answer writes which no brick has seen, and
// makes sure that one that is to be bypassed is.
func (s *Store) checkVolume() error {
	text, err := s.vol.Volfile()
	var all []translator
	if err == nil {
		all, err = parseVolfile(text)
	}
	if err != nil {
		return fmt.Errorf("read the description of the volume: %w", err)
	}
	s.shards = slices.ContainsFunc(all, func(t translator) bool { return t.kind == "features/shard" })
	for _, t := range all {
		if t.kind == "cluster/replicate" {
			s.replicates = append(s.replicates, t.name)
		}
	}
	if s.loc.WriteBehind == Accept {
		return nil
	}
	for _, t := range writeBehinds(all, s.opt.Direct) {
		if s.loc.WriteBehind == Refuse {
			return fmt.Errorf("the volume has performance.write-behind on, by which writes are lost when bricks go away: "+
				"gluster volume set %s performance.write-behind off, or open with ?write-behind=off, which keeps it out of the way here, or =on, which accepts that: %w",
				s.loc.Volume, backing.ErrNotSupported)
		}
		if v, err := s.vol.Meta("graphs/active/" + t.name + "/options/pass-through"); err != nil || !isTrue(v) {
			return fmt.Errorf("this version of GlusterFS does not keep write-behind out of the way (%s: pass-through is %q, %v): "+
				"gluster volume set %s performance.write-behind off: %w", t.name, v, err, s.loc.Volume, backing.ErrNotSupported)
		}
	}
	return nil
}

func (s *Store) flags() int {
	flags := syscall.O_RDWR
	if s.opt.ReadOnly {
		flags = syscall.O_RDONLY
	}
	if s.opt.Direct {
		flags |= syscall.O_DIRECT
	}
	return flags
}

// openFile opens the file, or makes it if that is wanted and it is not there.
func (s *Store) openFile() (file, error) {
	f, err := s.vol.Open(s.loc.Path, s.flags())
	create := s.opt.Create && !s.opt.ReadOnly
	if create && errors.Is(err, syscall.ENOENT) {
		f, err = s.vol.Create(s.loc.Path, s.flags()|syscall.O_CREAT|syscall.O_EXCL, 0o600)
		switch {
		case errors.Is(err, syscall.EEXIST): // somebody was faster
			f, err = s.vol.Open(s.loc.Path, s.flags())
		case errors.Is(err, syscall.ENOENT):
			return nil, fmt.Errorf("its directory is not there: %w", backing.ErrNotExist)
		}
	}
	switch {
	case errors.Is(err, syscall.ENOENT):
		return nil, fmt.Errorf("file %s: %w", s.loc.Path, backing.ErrNotExist)
	case errors.Is(err, syscall.EISDIR):
		return nil, fmt.Errorf("%s is a directory", s.loc.Path)
	case err != nil:
		return nil, fmt.Errorf("open: %w", err)
	}
	return f, nil
}

// accept takes over what the file is: its lock, its size, what it can do.
func (s *Store) accept(ctx context.Context, f file) error {
	if err := s.firstLock(ctx, f); err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return errors.New("it is not a regular file")
	}
	size := st.Size
	want := int64(0)
	if s.opt.Create {
		want = s.opt.CreateSize
	}
	if size == 0 && want > 0 && !s.opt.ReadOnly {
		// New, or what a creation left that was killed half-way: there is nothing
		// in it that could be lost.
		if err := f.Truncate(want); err != nil {
			return fmt.Errorf("give it %d bytes: %w", want, translate(err))
		}
		size = want
	}
	switch {
	case size == 0:
		return errors.New("it is empty: a store needs at least one block")
	case want != 0 && want != size:
		return fmt.Errorf("%w: it has %d bytes, %d asked for", backing.ErrSizeMismatch, size, want)
	}
	s.size.Store(size)
	return s.probe(ctx, f)
}

// firstLock waits a moment for a lock that may be a dead process's.
func (s *Store) firstLock(ctx context.Context, f file) error {
	if !s.locks() {
		return nil
	}
	limit := lockTime
	if s.opt.Again {
		limit = max(limit, min(s.limit(), time.Minute))
	}
	deadline := time.Now().Add(limit)
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := s.takeLock(f, s.loc.Steal && !s.opt.Again)
		switch {
		case err == nil:
			return nil
		case s.loc.Lock && errors.Is(err, syscall.EINVAL):
			return fmt.Errorf("lock=yes needs a volume that enforces locks: gluster volume set %[1]s locks.mandatory-locking optimal, "+
				"gluster volume set %[1]s features.enforce-mandatory-lock on, and stop and start it: %[2]w", s.loc.Volume, backing.ErrNotSupported)
		case !taken(err):
			return fmt.Errorf("lock: %w", err)
		case time.Now().After(deadline):
			return fmt.Errorf("another client has it locked: %w", backing.ErrBusy)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// probe finds out what the bricks can do for this file, without changing it.
func (s *Store) probe(ctx context.Context, f file) error {
	s.caps = backing.CapWriteZeroes | backing.CapResize | backing.CapRefresh | backing.CapWriteFUA | backing.CapUsage
	switch _, err := f.Seek(0, gfapi.SeekHole); {
	case err == nil:
		s.caps |= backing.CapExtents
	case !unsupported(err):
		return fmt.Errorf("look for holes: %w", err)
	}
	if s.opt.ReadOnly {
		s.caps &^= backing.CapsModify
		return nil
	}
	if s.shards {
		// All versions can, but a discard behind the end would move that.
		s.caps |= backing.CapDiscard
		return nil
	}
	// Behind the end there is nothing to lose.
	end := (s.size.Load() + 1<<20) &^ (1<<20 - 1)
	switch err := f.Discard(ctx, end, 1<<20); {
	case err == nil:
		s.caps |= backing.CapDiscard
	case taken(err):
		return fmt.Errorf("another client has locked it, and the volume enforces that: %w", backing.ErrBusy)
	case !unsupported(err):
		return fmt.Errorf("see whether space can be given back: %w", err)
	}
	return nil
}
