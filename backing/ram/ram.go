// Package ram is a store in memory. It takes memory only for what has been
// written, outside the garbage collector's heap where the system allows, and
// gives it back on discard. Its content is gone when it is closed.
package ram

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"blockgate/backing"
)

// maxSize bounds the directory of segments to 128 MiB.
const maxSize = 1 << 50

// Store is sparse memory. All methods, Close too, are safe for concurrent use.
//
// A write is atomic within each aligned mebibyte (a chunk): a concurrent read
// sees of it all or nothing there. CompareAndWrite is atomic as a whole against
// every call that lies within one chunk and against every CompareAndWrite.
//
// Lock order: Store.mu, then chunk.mu in ascending order of offset.
type Store struct {
	size     atomic.Int64
	closed   atomic.Bool
	readOnly bool
	huge     bool // by huge pages, see Open
	name     string

	// dir has one entry for each segment of the size; an entry is nil until
	// something in the segment is written. mu orders changes of dir and of its
	// entries, which are read without it.
	dir atomic.Pointer[[]atomic.Pointer[segment]]
	mu  sync.Mutex
}

// Open makes an empty store of the size in rest, "SIZE[,OPTION…]": "1G",
// "512M,name=scratch". Without a size the one of a creation is taken; two that
// differ are an error. Options:
//
//	name=LABEL        is only shown in Info
//	pages=huge|small  how memory is taken and given back: by 2 MiB, which makes
//	                  small random I/Os up to a fifth cheaper, or by 4 KiB
//
// Without pages= a store takes huge pages if it has at least 64 MiB and even all
// of it would fill no more than half of the memory that is available. Where the
// system has no huge page to give it takes small ones. A discard within a huge page
// gives memory back when the system runs short of it, not at once.
func Open(_ context.Context, rest string, o backing.OpenOptions) (backing.Store, error) {
	size, options, some := strings.Cut(rest, ",")
	pages := ""
	for option := ""; some; {
		option, options, some = strings.Cut(options, ",")
		switch k, v, _ := strings.Cut(option, "="); {
		case k == "name" && v != "":
		case k == "pages" && (v == "huge" || v == "small"):
			pages = v
		default:
			return nil, fmt.Errorf("ram: unknown option %q, want name=LABEL, pages=huge or pages=small", option)
		}
	}
	n, err := backing.SizeFromURL(size, o)
	if err != nil {
		return nil, fmt.Errorf("ram: %w", err)
	}
	if n > maxSize {
		return nil, fmt.Errorf("ram: %d bytes is more than the largest size, 1P: %w", n, backing.ErrOutOfRange)
	}
	s := &Store{readOnly: o.ReadOnly, name: rest, huge: pages == "huge"}
	if pages == "" && n >= segmentSize {
		free, ok := availableMemory()
		s.huge = ok && n <= free/2
	}
	s.grow(n)
	return s, nil
}

// New makes an empty store of size bytes, at most 1 PiB.
func New(size int64) (*Store, error) {
	s, err := Open(context.Background(), fmt.Sprint(size), backing.OpenOptions{})
	if err != nil {
		return nil, err
	}
	return s.(*Store), nil
}

// ReadAt fills p; what was never written, or was discarded, reads as zeroes.
func (s *Store) ReadAt(_ context.Context, p []byte, off int64) error {
	if err := s.check(off, int64(len(p)), false); err != nil {
		return err
	}
	for len(p) > 0 {
		c, at, n := s.at(off, int64(len(p)))
		if c == nil {
			clear(p[:n])
		} else if err := c.read(p[:n], at); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// WriteAt writes p. It returns ErrNoSpace when the system has no memory left to
// map.
func (s *Store) WriteAt(_ context.Context, p []byte, off int64) error {
	if err := s.check(off, int64(len(p)), true); err != nil {
		return err
	}
	for len(p) > 0 {
		c, at, n, err := s.ensure(off, int64(len(p)))
		if err == nil {
			err = c.write(p[:n], at)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// WriteFUA is WriteAt: memory has no state that is more durable.
func (s *Store) WriteFUA(ctx context.Context, p []byte, off int64) error {
	return s.WriteAt(ctx, p, off)
}

// Flush has nothing to do.
func (s *Store) Flush(context.Context) error { return s.check(0, 0, false) }

// Discard makes the range read as zeroes and gives its whole pages back.
func (s *Store) Discard(ctx context.Context, off, n int64) error {
	if err := s.check(off, n, true); err != nil {
		return err
	}
	for n > 0 {
		c, at, m := s.at(off, n)
		if c != nil {
			if err := c.discard(at, m); err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		off, n = off+m, n-m
	}
	return nil
}

// WriteZeroes makes the range read as zeroes. Without mayUnmap it takes the
// memory, as a write would.
func (s *Store) WriteZeroes(ctx context.Context, off, n int64, mayUnmap bool) error {
	if mayUnmap {
		return s.Discard(ctx, off, n)
	}
	if err := s.check(off, n, true); err != nil {
		return err
	}
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		c, at, m, err := s.ensure(off, n)
		if err == nil {
			err = c.write(zeroes[:m], at)
		}
		if err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}

// Extents reports what was written and not discarded, in units of 512 bytes.
func (s *Store) Extents(ctx context.Context, off, n int64, fn func(backing.Extent) bool) error {
	if err := s.check(off, n, false); err != nil {
		return err
	}
	runs := backing.JoinExtents(off, fn)
	for end := off + n; off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		length, allocated := int64(0), false
		if c, at, m := s.at(off, end-off); c == nil {
			length = s.hole(off, end)
		} else {
			length, allocated = c.extent(at, m)
		}
		if !runs.Add(length, allocated) {
			return nil
		}
		off += length
	}
	runs.End()
	return nil
}

// CompareAndWrite compares and writes in one step; old and new have the same
// length.
func (s *Store) CompareAndWrite(_ context.Context, old, new []byte, off int64) (int, error) {
	if len(old) != len(new) {
		return 0, fmt.Errorf("compare and write of %d and %d bytes: %w", len(old), len(new), backing.ErrOutOfRange)
	}
	if err := s.check(off, int64(len(new)), true); err != nil {
		return 0, err
	}
	return s.compareAndWrite(old, new, off)
}

// Resize grows the store; shrinking is ErrNotSupported.
func (s *Store) Resize(_ context.Context, size int64) error {
	if err := s.check(0, 0, true); err != nil {
		return err
	}
	if size > maxSize {
		return fmt.Errorf("ram: %d bytes is more than the largest size, 1P: %w", size, backing.ErrOutOfRange)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.size.Load(); size < now {
		return fmt.Errorf("ram: shrink from %d to %d bytes: %w", now, size, backing.ErrNotSupported)
	}
	s.grow(size)
	return nil
}

// Size is the size in bytes.
func (s *Store) Size() int64 { return s.size.Load() }

// Prompt is true.
func (s *Store) Prompt() bool { return true }

// Capabilities leaves out the Try calls, since every call is prompt, and what
// modifies if the store is read-only.
func (s *Store) Capabilities() backing.Caps {
	c := backing.CapsAll &^ (backing.CapTryRead | backing.CapTryWrite | backing.CapRefresh)
	if s.readOnly {
		c &^= backing.CapsModify
	}
	if _, ok := availableMemory(); !ok {
		c &^= backing.CapUsage
	}
	return c
}

// Info describes the store.
func (s *Store) Info() backing.Info {
	return backing.Info{
		Engine: "ram", Location: s.name, ReadOnly: s.readOnly,
		PhysicalBlock: unitSize, Thin: true, DiscardGranularity: pageSize,
	}
}

// Close gives the memory back. Calls that are under way end with ErrClosed or as
// if they had come before.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return backing.ErrClosed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	dir := *s.dir.Load()
	for i := range dir {
		if seg := dir[i].Load(); seg != nil {
			seg.close()
		}
	}
	return nil
}

func (s *Store) check(off, n int64, modify bool) error {
	if s.closed.Load() {
		return backing.ErrClosed
	}
	if modify && s.readOnly {
		return backing.ErrReadOnly
	}
	return backing.CheckRange(off, n, s.size.Load())
}
