package backing

import "context"

// IO is one read or write that a Starter carries out. It belongs to the store,
// with the memory of P, from Start until Done.IODone is called, and must not
// be touched meanwhile; then it is the caller's again and may be started anew.
type IO struct {
	// Ctx is the context of the call, as for ReadAt; nil: it never ends.
	Ctx   context.Context
	P     []byte // read into, or written and not modified
	Off   int64  // bytes
	Write bool
	Done  Completer
}

// Completer is told the end of an IO.
type Completer interface {
	// IODone is called exactly once for each IO that was started, on any
	// goroutine, perhaps before Start returns. err is what ReadAt or WriteAt
	// would have returned, and means the same. It must not wait: others' ends are
	// told by the same goroutine.
	IODone(io *IO, err error)
}

// Starter begins reads and writes without waiting for them, and tells their
// ends: the way for a store that is asynchronous by itself, where ReadAt and
// WriteAt would cost a goroutine, and perhaps a thread, for each call.
//
// The rules of Store hold for each IO: any number at the same time, in no order;
// durable is a write only after a Flush that began after IODone. When Ctx ends
// the store may give up early, but calls IODone only when it does not touch P
// any more. Close does not wait for what was started: its end is told all
// the same, with ErrClosed or as if nothing had happened.
//
// Layers do not forward it: who wants to see each call is given ReadAt and WriteAt.
type Starter interface {
	// Start begins all of ios, together if the store can. It does not wait for a
	// medium or for a peer, also if they are more than Depth: the rest waits in the
	// store. The slice is the caller's when it returns.
	Start(ios []*IO)
	// Depth is how many the store has under way at the same time; it is fixed.
	// More than that are better kept where they can still be taken back.
	Depth() int
}

// StarterOf is the store's Starter, or nil if it begins nothing by itself, which
// may differ between stores of one type.
func StarterOf(s Store) Starter {
	if o, ok := s.(interface{ Starter() Starter }); ok {
		return o.Starter()
	}
	return nil
}
