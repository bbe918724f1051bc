// Package backing defines what a backing store is: the bytes behind a logical
// unit, without any notion of SCSI. A store implements the small Store
// interface; everything else it can do is an optional capability, found once by
// type assertion when the store is attached. Limits, VPD pages and mode pages of
// a logical unit are derived from what is found here and from nothing else.
package backing

import (
	"context"
	"errors"
	"io"
)

// Errors that stores return, wrapped with the object and the reason.
var (
	// ErrReadOnly: a write, discard or resize reached a store opened read-only.
	ErrReadOnly = errors.New("store is read-only")
	// ErrOutOfRange: an offset or length is negative or ends beyond Size.
	ErrOutOfRange = errors.New("range is outside the store")
	// ErrNoSpace: the medium behind the store is full (ENOSPC, EDQUOT). The
	// range of the failed write has unspecified content; the rest is intact.
	ErrNoSpace = errors.New("no space left behind the store")
	// ErrClosed: the call came after Close.
	ErrClosed = errors.New("store is closed")
	// ErrFailed: an earlier Flush failed, so what had been written before it may
	// be lost. It is sticky: every later write and flush fails until reopened.
	ErrFailed = errors.New("store failed to make earlier writes durable")
	// ErrNotSupported: the operation is known but this store, or the file system
	// below it, cannot do it for this range.
	ErrNotSupported = errors.New("not supported by the store")
	// ErrNotExist, ErrBusy: for Open.
	ErrNotExist = errors.New("store does not exist")
	ErrBusy     = errors.New("store is in use")
)

// Store is the core every engine implements.
//
// All methods are safe for concurrent use, Close excepted. Offsets and lengths
// are bytes; a caller never asks for a range that ends beyond Size. A call does
// not keep p after it returns and does not touch p after it returns, also when
// ctx ends early: a store that cannot abandon the buffer waits for the engine.
// Overlapping calls that run at the same time are not ordered.
type Store interface {
	// ReadAt fills p from off. It fills all of p or returns an error, in which
	// case p's content is unspecified. Ranges never written read as zeroes.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// WriteAt writes all of p at off, or returns an error and leaves the range
	// in an unspecified state. When it returns, later reads see the data;
	// durable it is only after a Flush that began later has returned.
	// The store does not modify p.
	WriteAt(ctx context.Context, p []byte, off int64) error
	// Flush makes every write, discard and zeroing that had returned before
	// Flush was called durable (fdatasync or the engine's own commit).
	Flush(ctx context.Context) error
	// Size is the current size in bytes. It does not block.
	Size() int64
	io.Closer
}

// Info is what a store knows about itself; it is fixed while the store is open
// unless stated otherwise.
type Info struct {
	Engine        string // registry scheme: "file", "ram", …
	Location      string // what the user named: a path, host and export; never a secret
	ReadOnly      bool
	PhysicalBlock int  // bytes, power of two ≥ 512; 0 if unknown
	OptimalIO     int  // bytes; 0 if unknown
	Rotational    bool // spinning medium
	Thin          bool // unallocated ranges cost no space
	// DirectIO is how a store that was opened with Direct waits for its medium:
	// "aio", or "threads" and why. Empty for others. It changes when the kernel turns
	// out to be unable.
	DirectIO string
	// LockedBy is who has the engine's lock on the store, in words: "this gateway",
	// another one's address. Empty if nobody is known to, or the engine keeps no
	// locks. It changes while the store is open.
	LockedBy string
	// DiscardGranularity and DiscardAlignment are bytes; meaningful only when
	// the store is a Discarder. 0 means the block size.
	DiscardGranularity, DiscardAlignment int
}

// Informer is implemented by every store of this repository.
type Informer interface{ Info() Info }

// Prompt is implemented by stores whose calls wait for nothing but memory, so
// that a caller may run them where it stands. Layers forward it truthfully.
type Prompt interface{ Prompt() bool }

// TryReader reads without waiting for a medium. done is false when the data is
// not at hand (p's content is then unspecified); the caller falls back to
// ReadAt on a goroutine that may block.
type TryReader interface {
	TryReadAt(p []byte, off int64) (done bool, err error)
}

// TryWriter writes without waiting for a medium; done false means that nothing
// can be said about p's range until WriteAt has been called for all of it.
type TryWriter interface {
	TryWriteAt(p []byte, off int64) (done bool, err error)
}

// Discarder gives space back. Discarded ranges read as zeroes afterwards.
// Parts smaller than the granularity are zeroed instead of ignored.
type Discarder interface {
	Discard(ctx context.Context, off, n int64) error
}

// ZeroWriter makes a range read as zeroes without a payload. If mayUnmap the
// store may deallocate, otherwise the range stays (or becomes) allocated.
type ZeroWriter interface {
	WriteZeroes(ctx context.Context, off, n int64, mayUnmap bool) error
}

// Extent is a run of bytes with one allocation state.
type Extent struct {
	Off, Len  int64
	Allocated bool // false: a hole, reads as zeroes, costs no space
}

// Extenter tells which parts are allocated. fn is called in ascending order with
// runs that cover [off, off+n) without gaps, until fn returns false.
type Extenter interface {
	Extents(ctx context.Context, off, n int64, fn func(Extent) bool) error
}

// Resizer changes the store's size. Shrinking is refused with ErrNotSupported
// unless the engine says otherwise.
type Resizer interface {
	Resize(ctx context.Context, size int64) error
}

// Refresher re-reads the size from below (a file that grew, a volume extended
// by its owner) and returns it; Size follows.
type Refresher interface {
	Refresh(ctx context.Context) (size int64, err error)
}

// FUAWriter writes p durably: when it returns, the range survives power loss.
// Without it a caller uses WriteAt and Flush.
type FUAWriter interface {
	WriteFUA(ctx context.Context, p []byte, off int64) error
}

// CopyRanger copies inside one store (reflink, copy_file_range, server side).
type CopyRanger interface {
	CopyRange(ctx context.Context, dst, src, n int64) error
}

// CopierFrom copies from another store by means that both have in common (two
// files of one file system: reflink, copy_file_range).
type CopierFrom interface {
	// CopyFrom copies n bytes at srcOff of src to dst of this store; src must stay
	// open meanwhile. What is a hole there becomes a hole if it mayUnmap, and
	// allocated zeroes otherwise. ErrNotSupported says that the two have nothing
	// in common; src is then to be read and this store written, as also after any
	// other error, which leaves the range in an unspecified state.
	CopyFrom(ctx context.Context, src Store, dst, srcOff, n int64, mayUnmap bool) error
}

// CompareAndWriter compares the range with old and, if equal, writes new in one
// atomic step against every other client of the engine. miscompare is the byte
// offset of the first difference, or -1 when it wrote.
type CompareAndWriter interface {
	CompareAndWrite(ctx context.Context, old, new []byte, off int64) (miscompare int, err error)
}

// AtomicLimits are what AtomicWriter.WriteAtomic asks of a write, in bytes.
type AtomicLimits struct {
	Max         int64 // the longest write
	Granularity int64 // lengths are multiples of it; 1: any
	Alignment   int64 // offsets are multiples of it; 1: any
}

// AtomicWriter writes a range all or not at all: concurrent calls, an error that
// WriteAtomic returns, the end of the process and a loss of power find either
// everything old or everything new there. Durable it is only by a Flush, as
// after WriteAt. A store that cannot say so of every case does not have this.
type AtomicWriter interface {
	// AtomicLimits are fixed while the store is open.
	AtomicLimits() AtomicLimits
	// WriteAtomic writes p at off. Outside the limits it is ErrNotSupported.
	WriteAtomic(ctx context.Context, p []byte, off int64) error
}

// Usage is the space behind a store, in bytes.
type Usage struct {
	Used      int64 // taken by this store
	Available int64 // what it could take beyond that, perhaps in competition with others
}

// Usager tells how much space a store takes and how much there still is. The
// answer is true when it is given and may be old when it arrives.
type Usager interface {
	Usage(ctx context.Context) (Usage, error)
}
