package server

import (
	"context"
	"errors"
	"sync"

	"blockgate/backing"
	"blockgate/internal/bufpool"
	"blockgate/nbd"
)

// StoreOptions say how ForStore serves a store. The zero value is a nameless
// export of everything that the store can do.
type StoreOptions struct {
	Name, Description string
	ReadOnly          bool
	// BlockSize is the minimum block size in bytes; 0: 1.
	BlockSize int
	// Workers bounds the calls inside the store at one time; 0: 64.
	Workers int
	// Fail, if not nil, is told each error of the store and what it was about, and
	// chooses what the client is told. Otherwise it is ErrnoOf.
	Fail func(r *nbd.Request, err error) (e nbd.Errno, message string)
}

// ForStore makes an export of a backing store, with nothing between: no
// reservations, no task set. It is what a plugin process serves. The store stays
// the caller's, who closes it when the server is closed.
func ForStore(store backing.Store, o StoreOptions) Export {
	e := &storeExport{o: o, store: store, prompt: backing.IsPrompt(store)}
	if e.o.BlockSize <= 0 {
		e.o.BlockSize = 1
	}
	if e.o.Workers <= 0 {
		e.o.Workers = 64
	}
	e.o.ReadOnly = o.ReadOnly || backing.InfoOf(store).ReadOnly
	e.tryReader, _ = backing.As[backing.TryReader](store)
	e.tryWriter, _ = backing.As[backing.TryWriter](store)
	e.fua, _ = backing.As[backing.FUAWriter](store)
	e.discarder, _ = backing.As[backing.Discarder](store)
	e.zeroWriter, _ = backing.As[backing.ZeroWriter](store)
	e.extenter, _ = backing.As[backing.Extenter](store)
	return e
}

// ErrnoOf is how an error of a backing store is told to an NBD client.
func ErrnoOf(err error) nbd.Errno {
	switch {
	case errors.Is(err, backing.ErrNoSpace):
		return nbd.ENOSPC
	case errors.Is(err, backing.ErrReadOnly):
		return nbd.EPERM
	case errors.Is(err, backing.ErrOutOfRange):
		return nbd.EINVAL
	case errors.Is(err, backing.ErrClosed):
		return nbd.ESHUTDOWN
	case errors.Is(err, backing.ErrNotSupported):
		return nbd.EINVAL
	}
	return nbd.ErrnoOf(err)
}

type storeExport struct {
	o      StoreOptions
	store  backing.Store
	prompt bool

	tryReader  backing.TryReader
	tryWriter  backing.TryWriter
	fua        backing.FUAWriter
	discarder  backing.Discarder
	zeroWriter backing.ZeroWriter
	extenter   backing.Extenter

	mu      sync.Mutex // the queue of what may wait, and those who run it
	head    *storeTask
	tail    *storeTask
	workers int
}

// Info implements Export.
func (e *storeExport) Info() Info {
	si := backing.InfoOf(e.store)
	i := Info{
		Name: e.o.Name, Description: e.o.Description, Size: uint64(e.store.Size()), BlockSize: nbd.DefaultBlockSize(),
		Flags: nbd.SendFlush | nbd.SendFUA | nbd.SendCache | nbd.CanMultiConn, Allocation: true,
	}
	i.BlockSize.Min = uint32(e.o.BlockSize)
	i.BlockSize.Preferred = max(i.BlockSize.Preferred, i.BlockSize.Min)
	if p := si.PhysicalBlock; p&(p-1) == 0 && p <= nbd.DefaultMaxPayload {
		i.BlockSize.Preferred = max(i.BlockSize.Preferred, uint32(p))
	}
	if si.Rotational {
		i.Flags |= nbd.Rotational
	}
	if e.o.ReadOnly {
		i.Flags |= nbd.ReadOnly
		return i
	}
	i.Flags |= nbd.SendWriteZeroes | nbd.SendFastZero
	if e.discarder != nil {
		i.Flags |= nbd.SendTrim
	}
	return i
}

// Open implements Export.
func (e *storeExport) Open(*Client) (Session, error) {
	s := &storeSession{e: e}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// storeSession is one connection to a store.
type storeSession struct {
	e      *storeExport
	ctx    context.Context
	cancel context.CancelFunc
}

// storeTask is a request to a store; it stays with the Request.
type storeTask struct {
	s    *storeSession
	r    *Request
	buf  *bufpool.Buf
	next *storeTask
}

// Size implements Session.
func (s *storeSession) Size() uint64 { return uint64(s.e.store.Size()) }

// EndLoan implements Session; a store session lends nothing.
func (s *storeSession) EndLoan(*Request, bool) error { return nil }

// CopyLent implements Session.
func (s *storeSession) CopyLent(_ *Request, dst, v []byte) error {
	copy(dst, v)
	return nil
}

// Distrust implements Session.
func (s *storeSession) Distrust(*Request) {}

// Release implements Session.
func (s *storeSession) Release(r *Request) {
	if t, ok := r.State.(*storeTask); ok {
		bufpool.Put(t.buf)
		t.buf = nil
	}
}

// Close implements Session.
func (s *storeSession) Close() { s.cancel() }

// Submit implements Session.
func (s *storeSession) Submit(r *Request) {
	t, _ := r.State.(*storeTask)
	if t == nil {
		t = &storeTask{s: s}
		r.State = t
	}
	t.r = r
	if !t.try() {
		s.e.queue(t)
	}
}

// try runs the request if that waits for nothing.
func (t *storeTask) try() bool {
	r, e := t.r, t.s.e
	switch {
	case r.Type == nbd.CmdRead && e.tryReader != nil:
		t.alloc()
		if done, err := e.tryReader.TryReadAt(r.In, int64(r.Offset)); done {
			t.done(err)
			return true
		}
	case r.Type == nbd.CmdWrite && r.Flags&nbd.FlagFUA == 0 && e.tryWriter != nil:
		if done, err := e.tryWriter.TryWriteAt(r.Data, int64(r.Offset)); done {
			t.done(err)
			return true
		}
	}
	if !e.prompt || r.Type == nbd.CmdFlush || r.Flags&nbd.FlagFUA != 0 {
		return false
	}
	t.run()
	return true
}

func (t *storeTask) alloc() {
	if t.buf == nil {
		t.buf = bufpool.Get(int(t.r.Length))
	}
	t.r.In = t.buf.B
}

func (t *storeTask) done(err error) {
	r := t.r
	if err == nil {
		r.Done(nbd.None, "")
		return
	}
	r.In = nil
	fail := t.s.e.o.Fail
	if fail == nil {
		r.Done(ErrnoOf(err), "")
		return
	}
	r.Done(fail(&r.Request, err))
}

// queue has a worker run the task. Workers come when there is work and go when
// there is none.
func (e *storeExport) queue(t *storeTask) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t.next = nil
	if e.tail != nil {
		e.tail.next = t
	} else {
		e.head = t
	}
	e.tail = t
	if e.workers < e.o.Workers {
		e.workers++
		go e.work()
	}
}

func (e *storeExport) work() {
	e.mu.Lock()
	for {
		t := e.head
		if t == nil {
			e.workers--
			e.mu.Unlock()
			return
		}
		if e.head = t.next; e.head == nil {
			e.tail = nil
		}
		e.mu.Unlock()
		t.run()
		e.mu.Lock()
	}
}

// run calls the store, which may take its time.
func (t *storeTask) run() {
	r, e, ctx := t.r, t.s.e, t.s.ctx
	off, n := int64(r.Offset), int64(r.Length)
	var err error
	flush := r.Flags&nbd.FlagFUA != 0
	if err = ctx.Err(); err != nil {
		t.r.Done(nbd.ESHUTDOWN, "the connection is being closed")
		return
	}
	switch r.Type {
	case nbd.CmdRead:
		t.alloc()
		err, flush = e.store.ReadAt(ctx, r.In, off), false
	case nbd.CmdWrite:
		if flush && e.fua != nil {
			err, flush = e.fua.WriteFUA(ctx, r.Data, off), false
		} else {
			err = e.store.WriteAt(ctx, r.Data, off)
		}
	case nbd.CmdFlush:
		flush = true
	case nbd.CmdTrim:
		// A hint: what cannot be discarded stays.
		if err = e.discarder.Discard(ctx, off, n); errors.Is(err, backing.ErrNotSupported) {
			err = nil
		}
	case nbd.CmdWriteZeroes:
		err = e.zero(ctx, r, off, n)
	case nbd.CmdBlockStatus:
		err, flush = t.status(ctx, off, n), false
	case nbd.CmdCache:
		flush = false // nothing between the store and its engine's own cache
	}
	if err == nil && flush {
		err = e.store.Flush(ctx)
	}
	t.done(err)
}

// zero is WRITE_ZEROES.
func (e *storeExport) zero(ctx context.Context, r *Request, off, n int64) error {
	fast := r.Flags&nbd.FlagFastZero != 0
	if e.zeroWriter != nil {
		err := e.zeroWriter.WriteZeroes(ctx, off, n, r.Flags&nbd.FlagNoHole == 0)
		if !errors.Is(err, backing.ErrNotSupported) {
			return err
		}
	}
	if fast {
		return nbd.ENOTSUP
	}
	const piece = 1 << 20
	b := bufpool.Get(int(min(n, piece)))
	defer bufpool.Put(b)
	clear(b.B)
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := min(n, int64(len(b.B)))
		if err := e.store.WriteAt(ctx, b.B[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// status is BLOCK_STATUS. A store that does not know its extents tells nothing,
// which is the status of what is allocated.
func (t *storeTask) status(ctx context.Context, off, n int64) error {
	e, r := t.s.e, t.r
	if e.extenter == nil {
		return nil
	}
	err := e.extenter.Extents(ctx, off, n, func(x backing.Extent) bool {
		flags := uint64(nbd.StateHole | nbd.StateZero)
		if x.Allocated {
			flags = 0
		}
		r.Extents = append(r.Extents, nbd.Extent{Length: uint64(x.Len), Flags: flags})
		return len(r.Extents) < statusExtents && r.Flags&nbd.FlagReqOne == 0
	})
	if errors.Is(err, backing.ErrNotSupported) {
		r.Extents, err = r.Extents[:0], nil
	}
	return err
}
