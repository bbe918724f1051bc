// Package glfs is a store in a file of a GlusterFS volume, reached by GlusterFS'
// own client library.
//
// Writes are on the bricks when they return, though not on their media: a volume
// that writes behind is not opened unless told. While bricks are away, calls are
// made again until the stall limit; that they may be carried out twice does no
// harm, as nothing that overlaps was answered in between. A flush that fails in
// the end fails the store.
package glfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"blockgate/backing"
	"blockgate/cmd/blockgate-gluster/internal/gfapi"
)

// Store is an open file. All methods are safe for concurrent use, Close excepted.
//
// A call that modifies goes on when its context ends until the bricks have answered
// or the stall limit is over. After that one the bricks may still carry it out, so
// what modifies next waits until that is known to be past.
type Store struct {
	loc        Location
	opt        Options
	stall      atomic.Int64 // a time.Duration
	vol        volume
	caps       backing.Caps
	shards     bool     // the volume divides files
	replicates []string // the volume's translators that replicate
	size       atomic.Int64

	life     context.Context // ends with Close
	end      context.CancelFunc
	gate     sync.RWMutex // held for reading by each call, for writing by Close
	closed   bool
	watching sync.WaitGroup

	writing sync.RWMutex // held for reading by what modifies
	reach   reach
	health  health
	flush   flusher
	failed  atomic.Pointer[failure]

	mu  sync.Mutex
	cur *handle
}

// failure is why nothing can be written any more.
type failure struct{ err error }

// Info describes the store.
func (s *Store) Info() backing.Info {
	i := backing.Info{
		Engine: "gluster", Location: s.loc.String(), ReadOnly: s.opt.ReadOnly,
		Thin: s.caps&backing.CapDiscard != 0,
	}
	if i.Thin {
		i.DiscardGranularity = brickBlock
	}
	return i
}

// brickBlock is what the file systems below bricks have for a block; GlusterFS
// does not tell.
const brickBlock = 4096

// Capabilities are those that were found at Open.
func (s *Store) Capabilities() backing.Caps { return s.caps }

// Size is the size in bytes as of Open, Resize or the last Refresh.
func (s *Store) Size() int64 { return s.size.Load() }

// SetStall changes how long calls wait for bricks that are away; it holds for those
// that begin later.
func (s *Store) SetStall(limit time.Duration) {
	switch {
	case limit == 0:
		limit = DefaultStall
	case limit < 0:
		limit = math.MaxInt64
	}
	s.stall.Store(int64(limit))
}

func (s *Store) limit() time.Duration { return time.Duration(s.stall.Load()) }

// Durable reports whether what was answered outlives this process without a flush.
func (s *Store) Durable() bool { return s.loc.WriteBehind != Accept }

// Close closes the file. Calls under way end with backing.ErrClosed.
func (s *Store) Close() error {
	s.end()
	s.gate.Lock()
	defer s.gate.Unlock()
	if s.closed {
		return backing.ErrClosed
	}
	s.closed = true
	s.watching.Wait()
	var err error
	if !s.Durable() && !s.opt.ReadOnly && s.failed.Load() == nil {
		// What is behind would go with the process.
		ctx, cancel := context.WithTimeout(context.Background(), closeTime)
		defer cancel()
		err = s.cur.f.Datasync(ctx)
	}
	// The library does not survive the loss of a file that it is at.
	if s.reach.idle() {
		if cerr := s.cur.f.Close(); err == nil && cerr != nil && !away(cerr) {
			err = cerr
		}
		s.vol.Detach()
	}
	if err != nil {
		return s.fail("close", -1, err)
	}
	return nil
}

// closeTime bounds the last flush of a volume that writes behind.
const closeTime = 4 * time.Second

// enter begins a call; leave has to follow if it returns nil.
func (s *Store) enter(off, n int64, modify bool) error {
	s.gate.RLock()
	err := s.check(off, n, modify)
	if err != nil {
		s.gate.RUnlock()
	}
	return err
}

func (s *Store) leave() { s.gate.RUnlock() }

func (s *Store) check(off, n int64, modify bool) error {
	if s.closed || s.life.Err() != nil {
		return backing.ErrClosed
	}
	if modify {
		if s.opt.ReadOnly {
			return backing.ErrReadOnly
		}
		if f := s.failed.Load(); f != nil {
			return f.err
		}
	}
	return backing.CheckRange(off, n, s.size.Load())
}

// giveUp makes the store fail for good.
func (s *Store) giveUp(why error) error {
	f := &failure{fmt.Errorf("gluster %s: %w: %w", s.loc.name(), backing.ErrFailed, why)}
	if !s.failed.CompareAndSwap(nil, f) {
		return s.failed.Load().err
	}
	s.health.set(backing.Failed, why.Error())
	return f.err
}

// fail names the object of an error, without hiding its kind.
func (s *Store) fail(what string, off int64, err error) error {
	switch {
	case errors.Is(err, backing.ErrFailed), errors.Is(err, backing.ErrClosed):
		return err
	case err == context.Canceled, err == context.DeadlineExceeded:
		return err
	}
	if off >= 0 {
		what = fmt.Sprintf("%s at %d", what, off)
	}
	return fmt.Errorf("gluster %s: %s: %w", s.loc.name(), what, translate(err))
}

// translate adds what package backing calls an error.
func translate(err error) error {
	kind := error(nil)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		kind = backing.ErrNoSpace
	case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOSYS):
		kind = backing.ErrNotSupported
	case errors.Is(err, syscall.ENOENT):
		kind = backing.ErrNotExist
	}
	if kind == nil || errors.Is(err, kind) {
		return err
	}
	return fmt.Errorf("%w: %w", kind, err)
}

// unsupported tells whether an error of a call that not every brick can carry out
// says so.
func unsupported(err error) bool {
	return errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EINVAL)
}

// ReadAt reads from the bricks, or from what the volume's translators in this
// process have kept.
func (s *Store) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := s.enter(off, int64(len(p)), false); err != nil {
		return err
	}
	defer s.leave()
	if len(p) == 0 {
		return ctx.Err()
	}
	err := s.try(ctx, false, func(ctx context.Context, f file) error {
		for done := 0; done < len(p); {
			n, err := f.ReadAt(ctx, p[done:min(len(p), done+gfapi.MaxIO)], off+int64(done))
			if err != nil {
				return err
			}
			if n == 0 {
				return fmt.Errorf("the file has become shorter than %d bytes: %w", s.size.Load(), io.ErrUnexpectedEOF)
			}
			done += n
		}
		return nil
	})
	if err != nil {
		return s.fail("read", off, err)
	}
	return nil
}

// WriteAt writes to the bricks.
func (s *Store) WriteAt(ctx context.Context, p []byte, off int64) error {
	return s.write(ctx, p, off, s.opt.Sync)
}

// WriteFUA writes with O_DSYNC, at which bricks sync the file before they answer.
func (s *Store) WriteFUA(ctx context.Context, p []byte, off int64) error {
	return s.write(ctx, p, off, true)
}

func (s *Store) write(ctx context.Context, p []byte, off int64, durable bool) error {
	if err := s.enter(off, int64(len(p)), true); err != nil {
		return err
	}
	defer s.leave()
	if len(p) == 0 {
		return ctx.Err()
	}
	err := s.try(ctx, true, func(ctx context.Context, f file) error { return writeAll(ctx, f, p, off, durable) })
	if err == nil {
		return nil
	}
	if durable && lossy(err) {
		// Of writes before this one too the bricks have told the loss now, once.
		return s.giveUp(fmt.Errorf("a durable write failed: %w", err))
	}
	return s.fail("write", off, err)
}

func writeAll(ctx context.Context, f file, p []byte, off int64, durable bool) error {
	for len(p) > 0 {
		n, err := f.WriteAt(ctx, p[:min(len(p), gfapi.MaxIO)], off, durable)
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// lossy tells whether an error of a sync may stand for data that is lost, and not
// for a call that did not take place.
func lossy(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && errno != syscall.ENOSPC && errno != syscall.EDQUOT && !away(err)
}
