package backing

import "strings"

// Caps is a set of optional capabilities.
type Caps uint32

// One bit for each capability interface a store can have and lack.
const (
	CapTryRead Caps = 1 << iota
	CapTryWrite
	CapDiscard
	CapWriteZeroes
	CapExtents
	CapResize
	CapRefresh
	CapWriteFUA
	CapCopyRange
	CapCompareAndWrite
	CapWriteAtomic
	CapUsage
	CapSnapshot
	CapCopyFrom

	capEnd
)

// CapsAll is every capability there is; CapsModify is those that change the
// medium or its size, which a read-only store does not have.
const (
	CapsAll    = capEnd - 1
	CapsModify = CapTryWrite | CapDiscard | CapWriteZeroes | CapResize | CapWriteFUA | CapCopyRange | CapCompareAndWrite | CapWriteAtomic | CapCopyFrom
)

// Selective is implemented by a store whose type has the methods of more
// capabilities than this very store has: a layer, which has them all and the
// ones of the store below in truth, or a file on a file system that cannot punch
// holes. The set is fixed while the store is open.
type Selective interface {
	Capabilities() Caps
}

// As finds a capability of a store: T is one of this package's capability
// interfaces. It is to be used in place of a type assertion, which would see
// the methods of a layer and not whether the store below has them. What is
// returned is the store itself seen as T, never the store below a layer, so a
// call through it passes through every layer.
//
// It is meant to be called once per capability, when the store is attached.
func As[T any](s Store) (T, bool) {
	t, ok := s.(T)
	if !ok {
		return t, false
	}
	if sel, is := s.(Selective); is {
		if bit := capOf[T](); bit != 0 && sel.Capabilities()&bit == 0 {
			var none T
			return none, false
		}
	}
	return t, true
}

// CapsOf is the set of capabilities that As finds.
func CapsOf(s Store) Caps {
	var c Caps
	set := func(bit Caps, ok bool) {
		if ok {
			c |= bit
		}
	}
	set(CapTryRead, is[TryReader](s))
	set(CapTryWrite, is[TryWriter](s))
	set(CapDiscard, is[Discarder](s))
	set(CapWriteZeroes, is[ZeroWriter](s))
	set(CapExtents, is[Extenter](s))
	set(CapResize, is[Resizer](s))
	set(CapRefresh, is[Refresher](s))
	set(CapWriteFUA, is[FUAWriter](s))
	set(CapCopyRange, is[CopyRanger](s))
	set(CapCompareAndWrite, is[CompareAndWriter](s))
	set(CapWriteAtomic, is[AtomicWriter](s))
	set(CapUsage, is[Usager](s))
	set(CapSnapshot, is[Snapshotter](s))
	set(CapCopyFrom, is[CopierFrom](s))
	return c
}

// IsPrompt reports whether the store's calls wait for nothing but memory.
func IsPrompt(s Store) bool {
	p, ok := s.(Prompt)
	return ok && p.Prompt()
}

// InfoOf is the store's Info, or the zero Info of a store that tells nothing.
func InfoOf(s Store) Info {
	if i, ok := s.(Informer); ok {
		return i.Info()
	}
	return Info{}
}

func is[T any](s Store) bool {
	_, ok := As[T](s)
	return ok
}

// capOf is the bit of a capability interface, 0 for any other type.
func capOf[T any]() Caps {
	switch any((*T)(nil)).(type) {
	case *TryReader:
		return CapTryRead
	case *TryWriter:
		return CapTryWrite
	case *Discarder:
		return CapDiscard
	case *ZeroWriter:
		return CapWriteZeroes
	case *Extenter:
		return CapExtents
	case *Resizer:
		return CapResize
	case *Refresher:
		return CapRefresh
	case *FUAWriter:
		return CapWriteFUA
	case *CopyRanger:
		return CapCopyRange
	case *CompareAndWriter:
		return CapCompareAndWrite
	case *AtomicWriter:
		return CapWriteAtomic
	case *Usager:
		return CapUsage
	case *Snapshotter:
		return CapSnapshot
	case *CopierFrom:
		return CapCopyFrom
	}
	return 0
}

// String lists the capabilities: "discard,extents".
func (c Caps) String() string {
	names := [...]string{"try-read", "try-write", "discard", "write-zeroes", "extents",
		"resize", "refresh", "write-fua", "copy-range", "compare-and-write",
		"write-atomic", "usage", "snapshot", "copy-from"}
	var b strings.Builder
	for i, n := range names {
		if c&(1<<i) == 0 {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(n)
	}
	return b.String()
}
