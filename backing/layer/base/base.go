// Package base is what layers are made of: a store that forwards everything to
// the store below and claims exactly the capabilities which that one has. A
// layer embeds *Store, overrides what it changes and names what it takes away.
package base

import (
	"context"
	"time"

	"blockgate/backing"
)

// Op is a kind of call; kinds are bits, so that they form sets.
type Op uint16

// The kinds of calls that a layer sees. A CompareAndWrite that the store below
// makes is one call, as is a CopyRange.
const (
	Read Op = 1 << iota
	Write
	Flush
	Discard
	Zero
	Copy
	CompareAndWrite
	Extents
	Resize
	Refresh

	opEnd
)

// AnyOp is every kind of call.
const AnyOp = opEnd - 1

// Call is one call on its way down.
type Call struct {
	Op       Op
	Off, Len int64 // of a Copy the destination; zero for Flush and Refresh; Len is the new size of a Resize
	FUA      bool  // a Write that is to be durable
}

// Options say how a layer differs from the store below.
type Options struct {
	// Drop takes capabilities away.
	Drop backing.Caps
	// Before, if not nil, runs before each call except TryReadAt, TryWriteAt
	// and Size. It may wait as long as ctx allows; its error is the call's and
	// the store below is not called. A layer whose Before waits or fails must
	// drop the Try capabilities of the calls concerned. It also runs before a
	// call whose capability is missing, which then fails with ErrNotSupported.
	Before func(ctx context.Context, c Call) error
	// NotPrompt says that calls may wait even if the store below is prompt.
	NotPrompt bool
}

// Store is the store below, seen through a layer.
type Store struct {
	lower  backing.Store
	caps   backing.Caps
	prompt bool
	before func(context.Context, Call) error

	// nil if the store below has no such capability or it was dropped.
	tryR    backing.TryReader
	tryW    backing.TryWriter
	discard backing.Discarder
	zero    backing.ZeroWriter
	extents backing.Extenter
	resize  backing.Resizer
	refresh backing.Refresher
	fua     backing.FUAWriter
	copyR   backing.CopyRanger
	caw     backing.CompareAndWriter
	atomic  backing.AtomicWriter
	usage   backing.Usager
	snap    backing.Snapshotter
}

// New makes a layer over lower, which belongs to the layer from now on: Close
// closes it. The capabilities of lower are looked up here, once.
func New(lower backing.Store, o Options) *Store {
	s := &Store{
		lower:  lower,
		caps:   backing.CapsOf(lower) &^ o.Drop,
		prompt: backing.IsPrompt(lower) && !o.NotPrompt,
		before: o.Before,
	}
	s.tryR = pick[backing.TryReader](s, backing.CapTryRead)
	s.tryW = pick[backing.TryWriter](s, backing.CapTryWrite)
	s.discard = pick[backing.Discarder](s, backing.CapDiscard)
	s.zero = pick[backing.ZeroWriter](s, backing.CapWriteZeroes)
	s.extents = pick[backing.Extenter](s, backing.CapExtents)
	s.resize = pick[backing.Resizer](s, backing.CapResize)
	s.refresh = pick[backing.Refresher](s, backing.CapRefresh)
	s.fua = pick[backing.FUAWriter](s, backing.CapWriteFUA)
	s.copyR = pick[backing.CopyRanger](s, backing.CapCopyRange)
	s.caw = pick[backing.CompareAndWriter](s, backing.CapCompareAndWrite)
	s.atomic = pick[backing.AtomicWriter](s, backing.CapWriteAtomic)
	s.usage = pick[backing.Usager](s, backing.CapUsage)
	s.snap = pick[backing.Snapshotter](s, backing.CapSnapshot)
	return s
}

func pick[T any](s *Store, bit backing.Caps) T {
	var t T
	if s.caps&bit != 0 {
		t, _ = backing.As[T](s.lower)
	}
	return t
}

func (s *Store) call(ctx context.Context, c Call) error {
	if s.before == nil {
		return nil
	}
	return s.before(ctx, c)
}

// Capabilities is what the store below has, less what the layer drops.
func (s *Store) Capabilities() backing.Caps { return s.caps }

// Prompt is as below, unless the layer may wait.
func (s *Store) Prompt() bool { return s.prompt }

// Info is as below.
func (s *Store) Info() backing.Info { return backing.InfoOf(s.lower) }

// Health is as below.
func (s *Store) Health() backing.Health { return backing.HealthOf(s.lower) }

// Notify forwards.
func (s *Store) Notify(fn func(backing.Change)) (stop func()) { return backing.NotifyOf(s.lower, fn) }

// SetStall forwards; a store below that has no such limit ignores it.
func (s *Store) SetStall(limit time.Duration) { backing.SetStall(s.lower, limit) }

// Size is as below.
func (s *Store) Size() int64 { return s.lower.Size() }

// Close closes the store below.
func (s *Store) Close() error { return s.lower.Close() }

// ReadAt forwards.
func (s *Store) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := s.call(ctx, Call{Op: Read, Off: off, Len: int64(len(p))}); err != nil {
		return err
	}
	return s.lower.ReadAt(ctx, p, off)
}

// WriteAt forwards.
func (s *Store) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := s.call(ctx, Call{Op: Write, Off: off, Len: int64(len(p))}); err != nil {
		return err
	}
	return s.lower.WriteAt(ctx, p, off)
}

// Flush forwards.
func (s *Store) Flush(ctx context.Context) error {
	if err := s.call(ctx, Call{Op: Flush}); err != nil {
		return err
	}
	return s.lower.Flush(ctx)
}

// TryReadAt forwards; without the capability it reports done false.
func (s *Store) TryReadAt(p []byte, off int64) (bool, error) {
	if s.tryR == nil {
		return false, nil
	}
	return s.tryR.TryReadAt(p, off)
}

// TryWriteAt forwards; without the capability it reports done false.
func (s *Store) TryWriteAt(p []byte, off int64) (bool, error) {
	if s.tryW == nil {
		return false, nil
	}
	return s.tryW.TryWriteAt(p, off)
}

// Discard forwards. Like the other calls below it is ErrNotSupported without
// the capability.
func (s *Store) Discard(ctx context.Context, off, n int64) error {
	if err := s.call(ctx, Call{Op: Discard, Off: off, Len: n}); err != nil {
		return err
	}
	if s.discard == nil {
		return backing.ErrNotSupported
	}
	return s.discard.Discard(ctx, off, n)
}

// WriteZeroes forwards.
func (s *Store) WriteZeroes(ctx context.Context, off, n int64, mayUnmap bool) error {
	if err := s.call(ctx, Call{Op: Zero, Off: off, Len: n}); err != nil {
		return err
	}
	if s.zero == nil {
		return backing.ErrNotSupported
	}
	return s.zero.WriteZeroes(ctx, off, n, mayUnmap)
}

// Extents forwards.
func (s *Store) Extents(ctx context.Context, off, n int64, fn func(backing.Extent) bool) error {
	if err := s.call(ctx, Call{Op: Extents, Off: off, Len: n}); err != nil {
		return err
	}
	if s.extents == nil {
		return backing.ErrNotSupported
	}
	return s.extents.Extents(ctx, off, n, fn)
}

// Resize forwards.
func (s *Store) Resize(ctx context.Context, size int64) error {
	if err := s.call(ctx, Call{Op: Resize, Len: size}); err != nil {
		return err
	}
	if s.resize == nil {
		return backing.ErrNotSupported
	}
	return s.resize.Resize(ctx, size)
}

// Refresh forwards.
func (s *Store) Refresh(ctx context.Context) (int64, error) {
	if err := s.call(ctx, Call{Op: Refresh}); err != nil {
		return s.Size(), err
	}
	if s.refresh == nil {
		return s.Size(), backing.ErrNotSupported
	}
	return s.refresh.Refresh(ctx)
}

// WriteFUA forwards.
func (s *Store) WriteFUA(ctx context.Context, p []byte, off int64) error {
	if err := s.call(ctx, Call{Op: Write, Off: off, Len: int64(len(p)), FUA: true}); err != nil {
		return err
	}
	if s.fua == nil {
		return backing.ErrNotSupported
	}
	return s.fua.WriteFUA(ctx, p, off)
}

// CopyRange forwards.
func (s *Store) CopyRange(ctx context.Context, dst, src, n int64) error {
	if err := s.call(ctx, Call{Op: Copy, Off: dst, Len: n}); err != nil {
		return err
	}
	if s.copyR == nil {
		return backing.ErrNotSupported
	}
	return s.copyR.CopyRange(ctx, dst, src, n)
}

// CompareAndWrite forwards.
func (s *Store) CompareAndWrite(ctx context.Context, old, new []byte, off int64) (int, error) {
	if err := s.call(ctx, Call{Op: CompareAndWrite, Off: off, Len: int64(len(new))}); err != nil {
		return 0, err
	}
	if s.caw == nil {
		return 0, backing.ErrNotSupported
	}
	return s.caw.CompareAndWrite(ctx, old, new, off)
}

// AtomicLimits are those below.
func (s *Store) AtomicLimits() backing.AtomicLimits {
	if s.atomic == nil {
		return backing.AtomicLimits{}
	}
	return s.atomic.AtomicLimits()
}

// WriteAtomic forwards.
func (s *Store) WriteAtomic(ctx context.Context, p []byte, off int64) error {
	if err := s.call(ctx, Call{Op: Write, Off: off, Len: int64(len(p))}); err != nil {
		return err
	}
	if s.atomic == nil {
		return backing.ErrNotSupported
	}
	return s.atomic.WriteAtomic(ctx, p, off)
}

// Usage forwards; Before is not asked.
func (s *Store) Usage(ctx context.Context) (backing.Usage, error) {
	if s.usage == nil {
		return backing.Usage{}, backing.ErrNotSupported
	}
	return s.usage.Usage(ctx)
}

// CreateSnapshot forwards; Before is not asked, of this and the calls below. What
// a layer holds back it must write before.
func (s *Store) CreateSnapshot(ctx context.Context, name string) (backing.Snapshot, error) {
	if s.snap == nil {
		return backing.Snapshot{}, backing.ErrNotSupported
	}
	return s.snap.CreateSnapshot(ctx, name)
}

// Snapshots forwards.
func (s *Store) Snapshots(ctx context.Context) ([]backing.Snapshot, error) {
	if s.snap == nil {
		return nil, backing.ErrNotSupported
	}
	return s.snap.Snapshots(ctx)
}

// DeleteSnapshot forwards.
func (s *Store) DeleteSnapshot(ctx context.Context, name string) error {
	if s.snap == nil {
		return backing.ErrNotSupported
	}
	return s.snap.DeleteSnapshot(ctx, name)
}

// Clone forwards.
func (s *Store) Clone(ctx context.Context, snapshot, name string) (string, error) {
	if s.snap == nil {
		return "", backing.ErrNotSupported
	}
	return s.snap.Clone(ctx, snapshot, name)
}
