// Package sendq sends the requests of many goroutines over one connection in
// batches: what is ready at the same time goes out with one system call. It is
// the sending half of the clients that pipeline (Sheepdog, brpc).
package sendq

import (
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// CopyLimit is up to where a payload is copied into the buffer that is sent, and
// not named in a vector: copying is cheaper than another iovec. In bytes.
const CopyLimit = 16 << 10

// keepArena is how large a buffer may be, in bytes, that is kept for the next batch.
const keepArena = 1 << 20

// Request is what a Queue sends.
type Request interface {
	// AppendHead appends what goes before the payload. It is called once, by Send,
	// and must not call the Queue.
	AppendHead(b []byte) []byte
	// Payload is sent in place if it is long: it must not change until the
	// Request's Ticket has ended.
	Payload() []byte
	// Leave is Ticket.Leave.
	Leave()
}

// Ticket tells when nothing touches a request's memory any more. Its holders are
// who waits for the answer on the request's behalf and, while the payload is sent
// in place, the Queue. The zero value is ready; it may be used again once Wait
// has returned.
type Ticket struct {
	holders atomic.Int32
	done    chan struct{} // one element
}

// Begin makes the ticket one of a request with this payload, to be given to Send.
func (t *Ticket) Begin(payload []byte) {
	if t.done == nil {
		t.done = make(chan struct{}, 1)
	}
	t.holders.Store(1)
	if len(payload) > CopyLimit {
		t.holders.Store(2)
	}
}

// Refuse ends a ticket that was begun and whose request is not given to Send.
func (t *Ticket) Refuse() {
	t.holders.Store(1)
	t.Leave()
}

// Leave says that one holder is done with the request; the last one ends it.
func (t *Ticket) Leave() {
	if t.holders.Add(-1) == 0 {
		t.done <- struct{}{}
	}
}

// Wait waits until every holder has left.
func (t *Ticket) Wait() { <-t.done }

// Done is what Wait receives from, once for each Begin, for a select: who has
// received must not Wait.
func (t *Ticket) Done() <-chan struct{} { return t.done }

// Queue sends requests in the order of the calls of Send. It is safe for
// concurrent use.
type Queue struct {
	nc      net.Conn
	timeout time.Duration
	fail    func(error)

	mu      sync.Mutex
	next    batch
	spare   batch
	sending bool
}

// batch is what is sent with one system call.
type batch struct {
	arena []byte      // heads and copied payloads
	cuts  []cut       // payloads that go between them
	vec   net.Buffers // made when sent
}

type cut struct {
	at int // in the arena
	r  Request
}

// New makes a queue that writes to nc. timeout bounds the time that one batch may
// take, 0: none but the end of nc. fail is told of an error of nc, outside of any
// lock of the queue and perhaps more than once; it has to close nc.
func New(nc net.Conn, timeout time.Duration, fail func(error)) *Queue {
	return &Queue{nc: nc, timeout: timeout, fail: fail}
}

// Send queues a request whose Ticket has begun, and sends what is queued unless
// another goroutine is about to. It blocks as long as the peer does not read.
func (q *Queue) Send(r Request) {
	p := r.Payload()
	q.mu.Lock()
	b := &q.next
	b.arena = r.AppendHead(b.arena)
	if len(p) > CopyLimit {
		b.cuts = append(b.cuts, cut{len(b.arena), r})
	} else {
		b.arena = append(b.arena, p...)
	}
	if q.sending {
		q.mu.Unlock()
		return
	}
	q.sending = true
	q.mu.Unlock()
	// Whoever is about to send as well gets the chance to come along.
	runtime.Gosched()
	q.drain()
}

// drain sends until there is no more.
func (q *Queue) drain() {
	q.mu.Lock()
	for len(q.next.arena) > 0 {
		b := q.next
		q.next, q.spare = q.spare, batch{}
		q.mu.Unlock()
		if err := q.write(&b); err != nil {
			q.fail(err)
		}
		for i := range b.cuts {
			b.cuts[i].r.Leave()
			b.cuts[i].r = nil
		}
		b.arena, b.cuts = b.arena[:0], b.cuts[:0]
		if cap(b.arena) > keepArena {
			b.arena = nil
		}
		q.mu.Lock()
		q.spare = b
	}
	q.sending = false
	q.mu.Unlock()
}

func (q *Queue) write(b *batch) error {
	if q.timeout > 0 {
		if err := q.nc.SetWriteDeadline(time.Now().Add(q.timeout)); err != nil {
			return err
		}
	}
	if len(b.cuts) == 0 {
		_, err := q.nc.Write(b.arena)
		return err
	}
	b.vec = b.vec[:0]
	at := 0
	for _, k := range b.cuts {
		b.vec = append(b.vec, b.arena[at:k.at], k.r.Payload())
		at = k.at
	}
	if at < len(b.arena) {
		b.vec = append(b.vec, b.arena[at:])
	}
	vec := b.vec // WriteTo eats it
	_, err := vec.WriteTo(q.nc)
	clear(b.vec)
	return err
}
