// Package file is a store in a regular file or on a block device.
//
// It goes through the page cache unless opened with Direct, is sparse where the
// file system can be, and becomes durable by fdatasync. What the file system
// cannot do it does not claim: a store's capabilities are probed at Open.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"blockgate/backing"
)

// Store is a file or a block device. All methods, Close too, are safe for
// concurrent use.
//
// The calls are system calls that nothing can interrupt: ctx is looked at
// between the steps of long work and not while the kernel waits for a medium.
type Store struct {
	f    *os.File
	h    handle
	path string
	gate gate
	size atomic.Int64
	geo  geometry
	info backing.Info
	caps backing.Caps
	opt  backing.OpenOptions

	direct  *direct  // nil: through the page cache
	starter *starter // of direct stores, where there is AIO

	lending *lending  // nil: it does not lend
	locks   *loanLock // of what is on loan; nil then too

	resizing sync.Mutex
	flush    flusher
	failed   atomic.Pointer[failure]

	// Set once the kernel has said that it cannot do the thing here.
	noTryRead, noTryWrite, noDSync, noPunch, noZeroRange, noCopy atomic.Bool
}

// geometry is what the operating system tells about an open file.
type geometry struct {
	device         bool // a block device
	physical       int  // bytes, 0: unknown
	optimal        int
	rotational     bool
	granularity    int // of discards
	alignment      int
	unit           int64 // what offsets and lengths of fallocate must be multiples of
	punch          bool  // discarded ranges read as zeroes
	thin           bool  // by BLKDISCARD of whole granules, not by a hole
	inMemory       bool  // tmpfs: a write waits for nothing but memory
	dioMem, dioOff int   // what O_DIRECT wants; 0: it is not possible
}

// Open opens the file or block device at the path rest.
//
// Errors: ErrNotExist without Create, ErrBusy if Exclusive and somebody else has
// it (another gateway, a mounted file system, QEMU), ErrReadOnly for writing on
// a read-only file system, ErrNotSupported for Direct where the file system has
// no such thing, ErrSizeMismatch and ErrNoSpace on creation, and the system's
// own. A file that Open made and could not finish is removed again.
func Open(ctx context.Context, rest string, o backing.OpenOptions) (backing.Store, error) {
	if rest == "" {
		return nil, errors.New("file: no path")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, created, err := openOrCreate(rest, o)
	if err != nil {
		return nil, err
	}
	s, err := attach(f, rest, o, created)
	if err != nil {
		f.Close()
		// Busy is a file that somebody else took between our making it and
		// our locking it.
		if created && !errors.Is(err, backing.ErrBusy) {
			os.Remove(rest)
		}
		return nil, err
	}
	return s, nil
}

func openOrCreate(path string, o backing.OpenOptions) (f *os.File, created bool, err error) {
	// What is there may change between the look and the open: another gateway
	// may create the same file. Then one more look decides.
	for try := 0; ; try++ {
		fi, err := os.Stat(path)
		switch {
		case err == nil:
			f, err = openExisting(path, fi, o)
			if errors.Is(err, os.ErrNotExist) && o.Create && try == 0 {
				continue
			}
			return f, false, openError(err)
		case !errors.Is(err, os.ErrNotExist) || !o.Create:
			return nil, false, openError(err)
		}
		f, err = createFile(path, o)
		if errors.Is(err, os.ErrExist) && try == 0 {
			continue
		}
		return f, err == nil, openError(err)
	}
}

func openExisting(path string, fi os.FileInfo, o backing.OpenOptions) (*os.File, error) {
	mode := fi.Mode()
	device := mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0
	switch {
	case mode.IsDir():
		return nil, fmt.Errorf("%s is a directory, want a file or a block device", path)
	case !mode.IsRegular() && !device:
		// Opening a FIFO would wait for its other end.
		return nil, fmt.Errorf("%s is neither a file nor a block device (%s)", path, mode.Type())
	}
	flags := os.O_RDWR
	if o.ReadOnly {
		flags = os.O_RDONLY
	}
	return os.OpenFile(path, flags|openFlags(o, device), 0)
}

func createFile(path string, o backing.OpenOptions) (*os.File, error) {
	if o.ReadOnly {
		return nil, fmt.Errorf("create %s: %w", path, backing.ErrReadOnly)
	}
	if o.CreateSize <= 0 {
		return nil, fmt.Errorf("create %s: a size is needed", path)
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|openFlags(o, false), 0o600)
}

func attach(f *os.File, path string, o backing.OpenOptions, created bool) (*Store, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, openError(err)
	}
	device := !fi.Mode().IsRegular()
	if o.Exclusive {
		if err := lockFile(f, !o.ReadOnly); err != nil {
			return nil, err
		}
	}
	if created || o.Create && o.CreateSize > 0 && leftEmpty(f, o) {
		if err := initFile(f, path, o.CreateSize); err != nil {
			return nil, openError(err)
		}
	}
	size, err := sizeOf(f, device)
	if err != nil {
		return nil, openError(err)
	}
	if o.Create && o.CreateSize != 0 && o.CreateSize != size {
		return nil, fmt.Errorf("%w: %s has %d bytes, %d asked for", backing.ErrSizeMismatch, path, size, o.CreateSize)
	}
	s := &Store{f: f, h: handleOf(f), path: path, opt: o, geo: probe(f, fi, o)}
	s.gate.release = s.release
	directIO := ""
	s.size.Store(size)
	if o.Direct {
		if s.direct, err = newDirect(s.geo, path, size); err != nil {
			return nil, err
		}
		directIO = s.startDirect()
	}
	s.caps = s.capabilities()
	s.info = backing.Info{
		Engine: "file", Location: path, ReadOnly: o.ReadOnly,
		PhysicalBlock: s.geo.physical, OptimalIO: s.geo.optimal, Rotational: s.geo.rotational,
		Thin: !device && s.geo.punch, DirectIO: directIO,
		DiscardGranularity: s.geo.granularity, DiscardAlignment: s.geo.alignment,
	}
	return s, nil
}

// leftEmpty tells whether a file is what a creation left that was killed before
// it gave the file its size: the next attempt finishes it. Whoever creates it at
// this moment has it locked.
func leftEmpty(f *os.File, o backing.OpenOptions) bool {
	fi, err := f.Stat()
	return err == nil && o.Exclusive && !o.ReadOnly && fi.Mode().IsRegular() && fi.Size() == 0
}

// initFile gives a new file its size, and makes size and name durable: a volume
// whose creation was reported must be there after a crash.
func initFile(f *os.File, path string, size int64) error {
	if err := f.Truncate(size); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return syncParent(path)
}

// Capabilities is what the platform, the file system and the options allow.
func (s *Store) Capabilities() backing.Caps { return s.caps }

func (s *Store) capabilities() backing.Caps {
	c := backing.CapRefresh | backing.CapWriteZeroes | backing.CapWriteFUA | platformCaps
	if s.geo.device {
		c &^= backing.CapExtents | backing.CapCopyRange | backing.CapCopyFrom | backing.CapUsage
	} else {
		c |= backing.CapResize
	}
	if !s.geo.punch {
		c &^= backing.CapDiscard
	}
	if s.direct != nil {
		// RWF_NOWAIT does not wait to submit, yet a direct call waits for the
		// medium to complete.
		c &^= backing.CapTryRead | backing.CapTryWrite
	}
	if s.opt.Sync {
		c &^= backing.CapTryWrite
	}
	if s.opt.ReadOnly {
		c &^= backing.CapsModify
	}
	return c
}

// Info describes the store.
func (s *Store) Info() backing.Info {
	i := s.info
	if s.starter != nil {
		i.DirectIO = s.starter.state()
	}
	return i
}

// Size is the size in bytes as of Open, Resize or the last Refresh.
func (s *Store) Size() int64 { return s.size.Load() }

// Resize grows a file, sparse, and makes its new size durable. A block device
// and a smaller size are ErrNotSupported.
func (s *Store) Resize(ctx context.Context, size int64) error {
	if err := s.enter(0, 0, true); err != nil {
		return err
	}
	defer s.gate.leave()
	// What is on loan keeps its bytes, so there is nothing to wait for.
	s.lending.holing()
	defer s.lending.holing()
	s.resizing.Lock()
	defer s.resizing.Unlock()
	now, err := sizeOf(s.f, s.geo.device)
	switch {
	case err != nil:
		return s.ioError("resize", 0, err)
	case s.geo.device:
		return fmt.Errorf("resize %s: a block device is resized by its owner: %w", s.path, backing.ErrNotSupported)
	case size < now:
		return fmt.Errorf("resize %s from %d to %d bytes: shrinking is %w", s.path, now, size, backing.ErrNotSupported)
	case s.direct != nil && size%s.direct.off != 0:
		return fmt.Errorf("resize %s to %d bytes: O_DIRECT wants a multiple of %d: %w", s.path, size, s.direct.off, backing.ErrNotSupported)
	case size > now:
		if err := s.f.Truncate(size); err != nil {
			return s.ioError("resize", size, err)
		}
	}
	if err := s.sync(ctx); err != nil {
		return err
	}
	s.size.Store(size)
	return nil
}

// Refresh reads the size anew. It may have become smaller.
func (s *Store) Refresh(context.Context) (int64, error) {
	if err := s.enter(0, 0, false); err != nil {
		return s.Size(), err
	}
	defer s.gate.leave()
	s.resizing.Lock()
	defer s.resizing.Unlock()
	size, err := sizeOf(s.f, s.geo.device)
	if err != nil {
		return s.Size(), s.ioError("size of", 0, err)
	}
	if s.direct != nil {
		size -= size % s.direct.off
	}
	if size != s.Size() {
		// What has grown may have holes.
		s.lending.holing()
		defer s.lending.holing()
	}
	s.size.Store(size)
	return size, nil
}

// Close closes the file and gives up its lock. If calls are still in the kernel
// the last of them does so when it returns, and what is on loan is such a call;
// Close does not wait for it. It makes nothing durable.
func (s *Store) Close() error { return s.gate.close() }

// release gives up what the calls have used, when the last of them has left.
func (s *Store) release() error {
	if s.starter != nil {
		s.starter.q.Close()
	}
	return s.f.Close()
}

// enter begins a call; the caller leaves the gate if there is no error.
func (s *Store) enter(off, n int64, modify bool) error {
	if modify {
		if s.opt.ReadOnly {
			return backing.ErrReadOnly
		}
		if f := s.failed.Load(); f != nil {
			return f.err
		}
	}
	if err := backing.CheckRange(off, n, s.size.Load()); err != nil {
		return err
	}
	if !s.gate.enter() {
		return backing.ErrClosed
	}
	return nil
}

// sizeOf is the size of a file or a block device, in bytes.
func sizeOf(f *os.File, device bool) (int64, error) {
	if device {
		// The position is nobody's: all reads and writes name their offset.
		return f.Seek(0, io.SeekEnd)
	}
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}
