package file

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"blockgate/backing"
	"blockgate/internal/aio"
)

// starter begins the reads and writes of a direct store by Linux AIO. What AIO
// cannot do without waiting is done by goroutines that wait: unaligned pieces,
// writes that allocate, what the medium's queue has no room for.
type starter struct {
	s        *Store
	q        *aio.Queue
	requests sync.Pool

	// What the kernel has said it cannot begin without waiting, and is not asked for
	// again: some mapped devices and RAIDs do not know of it, which a file system
	// above them finds out with each request.
	noReads, noWrites atomic.Bool

	mu      sync.Mutex
	waiting chain // for a goroutine
	waiters int
	run     func() // waiter

	// Writes to a file are begun by a goroutine of their own: while its file system
	// is frozen that waits, and the caller must not.
	writes     chain
	submitting bool
	submit     func() // submitWrites
}

// chain is requests one behind the other.
type chain struct{ head, tail *request }

func (c *chain) add(r *request) {
	r.next = nil
	if c.tail != nil {
		c.tail.next = r
	} else {
		c.head = r
	}
	c.tail = r
}

func (c *chain) take() *request {
	r := c.head
	if r != nil {
		if c.head = r.next; c.head == nil {
			c.tail = nil
		}
		r.next = nil
	}
	return r
}

// maxWaiters bounds the goroutines that wait for the medium, as package scsi's.
const maxWaiters = 64

// request is one IO on its way.
type request struct {
	op   aio.Op
	io   *backing.IO
	next *request
	got  int  // bytes that AIO has read
	held bool // it has the read lock of direct.edges
}

// startDirect readies AIO for a direct store, and says for Info what came of it.
func (s *Store) startDirect() string {
	if s.opt.NoAIO {
		return "threads"
	}
	a, err := newStarter(s)
	if err != nil {
		return fmt.Sprintf("threads (%v)", err)
	}
	s.starter = a
	return a.state()
}

// newStarter returns nil and why if there is no AIO for the file.
func newStarter(s *Store) (*starter, error) {
	a := &starter{s: s}
	a.run, a.submit = a.waiter, a.submitWrites
	a.requests.New = func() any {
		r := new(request)
		r.op.Owner = r
		return r
	}
	var err error
	if a.q, err = aio.New(int(s.f.Fd()), a.ended); err != nil {
		return nil, err
	}
	return a, nil
}

// Starter is there for direct stores where the kernel has AIO.
func (s *Store) Starter() backing.Starter {
	if s.starter == nil {
		return nil
	}
	return s.starter
}

// Start implements backing.Starter.
func (a *starter) Start(ios []*backing.IO) {
	s := a.s
	var ops [64]*aio.Op
	n := 0
	var writes chain
	for _, io := range ios {
		r := a.begin(io)
		if r == nil {
			continue
		}
		if len(ios) == 1 && s.gate.n.Load() == 1 {
			// Nothing else is under way: a goroutine that waits in the call itself is
			// woken by the medium at once, and not by way of the poller.
			a.wait(r)
			return
		}
		if io.Write && !s.geo.device {
			writes.add(r)
			continue
		}
		ops[n] = &r.op
		if n++; n == len(ops) {
			a.q.Submit(ops[:n])
			n = 0
		}
	}
	if n > 0 {
		a.q.Submit(ops[:n])
	}
	if writes.head != nil {
		a.leave(writes)
	}
}

// leave leaves writes to the goroutine that begins them.
func (a *starter) leave(c chain) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.writes.tail != nil {
		a.writes.tail.next = c.head
	} else {
		a.writes.head = c.head
	}
	a.writes.tail = c.tail
	if !a.submitting {
		a.submitting = true
		go a.submit()
	}
}

// submitWrites begins writes until there are none.
func (a *starter) submitWrites() {
	var ops [64]*aio.Op
	for {
		n := 0
		a.mu.Lock()
		for ; n < len(ops); n++ {
			r := a.writes.take()
			if r == nil {
				break
			}
			ops[n] = &r.op
		}
		a.submitting = n > 0
		a.mu.Unlock()
		if n == 0 {
			return
		}
		keep := ops[:0]
		for _, op := range ops[:n] {
			r := op.Owner.(*request)
			if ctx := r.io.Ctx; ctx != nil && ctx.Err() != nil { // aborted while it waited here
				a.end(r, ctx.Err())
				continue
			}
			keep = append(keep, op)
		}
		a.q.Submit(keep)
	}
}

// refuses says of which requests the kernel has said that it cannot begin them
// without waiting.
func (a *starter) refuses(write bool) *atomic.Bool {
	if write {
		return &a.noWrites
	}
	return &a.noReads
}

// state is Info.DirectIO.
func (a *starter) state() string {
	switch r, w := a.noReads.Load(), a.noWrites.Load(); {
	case r && w:
		return "threads (the device cannot begin a request without waiting)"
	case r:
		return "aio for writes, threads for reads"
	case w:
		return "aio for reads, threads for writes"
	}
	return "aio"
}

// Depth implements backing.Starter.
func (a *starter) Depth() int { return aio.Depth }

// begin lets an IO in. It returns a request for AIO, or nil if the IO has ended
// or goes another way.
func (a *starter) begin(io *backing.IO) *request {
	s := a.s
	var err error
	if io.Ctx != nil {
		err = io.Ctx.Err()
	}
	if err == nil {
		err = s.enter(io.Off, int64(len(io.P)), io.Write)
	}
	if err != nil {
		io.Done.IODone(io, err)
		return nil
	}
	r := a.requests.Get().(*request)
	r.io = io
	d := s.direct
	switch {
	case len(io.P) == 0:
		a.end(r, nil)
		return nil
	case !d.wholeBlocks(io.Off, int64(len(io.P))) || !d.aligned(io.P) || a.refuses(io.Write).Load(),
		io.Write && (s.opt.Sync || !d.edges.TryRLock()):
		a.wait(r)
		return nil
	}
	r.held = io.Write
	r.op.Buf, r.op.Off, r.op.Write = io.P, io.Off, io.Write
	return r
}

// ended sees to what AIO is done with.
func (a *starter) ended(ops []*aio.Op) {
	for _, op := range ops {
		r := op.Owner.(*request)
		if op.Err != 0 && unsupported(op.Err) {
			a.refuses(op.Write).Store(true)
		}
		switch {
		case op.Err == 0 && op.N == len(op.Buf):
			a.end(r, nil)
		case op.Err == 0 || noFault(op.Err):
			// A part, or nothing: a call that waits does the rest, and finds out why.
			if !op.Write {
				r.got = op.N
			}
			a.wait(r)
		case op.Write:
			a.end(r, a.s.ioError("write", op.Off, op.Err))
		default:
			a.end(r, a.s.ioError("read", op.Off, op.Err))
		}
	}
}

// noFault: the error says how the request was made, and nothing of the medium.
func noFault(err syscall.Errno) bool {
	switch err {
	case syscall.EAGAIN, syscall.EINTR, syscall.EINVAL, syscall.ENOMEM, syscall.EPERM:
		return true
	}
	return unsupported(err)
}

// end tells the end of an IO.
func (a *starter) end(r *request, err error) {
	io := r.io
	a.unlock(r)
	r.io, r.got, r.op.Buf = nil, 0, nil
	a.requests.Put(r)
	a.s.gate.leave()
	io.Done.IODone(io, err)
}

func (a *starter) unlock(r *request) {
	if r.held {
		r.held = false
		a.s.direct.edges.RUnlock()
	}
}

// wait has a goroutine carry the request out.
func (a *starter) wait(r *request) {
	// The whole of it is written again, which takes the lock.
	a.unlock(r)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting.add(r)
	if a.waiters < maxWaiters {
		a.waiters++
		go a.run()
	}
}

// waiter carries requests out until there are none.
func (a *starter) waiter() {
	for {
		a.mu.Lock()
		r := a.waiting.take()
		if r == nil {
			a.waiters--
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
		a.end(r, a.carryOut(r))
	}
}

func (a *starter) carryOut(r *request) error {
	io := r.io
	if io.Ctx != nil {
		if err := io.Ctx.Err(); err != nil {
			return err
		}
	}
	if io.Write {
		return a.s.put(io.P, io.Off, false)
	}
	return a.s.directRead(io.P[r.got:], io.Off+int64(r.got))
}
