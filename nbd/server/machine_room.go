package server

import (
	"blockgate/internal/budget"
	"blockgate/internal/bufpool"
)

// room is the reader's own account of what may begin, so that a request takes no
// mutex and touches no memory that others write. Feed opens it and EndFeed closes
// it.
type room struct {
	free *Request // taken over from machine.free

	// What the machine's inflight and held were, which since can only have become
	// less, and what has begun since then, which they lack.
	inflight, begun int
	held, begunHeld int64
	ahead           int64 // taken of the budget for requests to come
	requests        uint64
	received        uint64 // bytes
	reads, writes   uint64 // bytes asked for
}

// aheadBytes is how much is taken of the budget at once: what one round of short
// requests needs.
const aheadBytes = round * 4096

func (o *room) fits(cost int64) bool {
	held := o.held + o.begunHeld
	return o.inflight+o.begun < maxInflight && (cost == 0 || held == 0 || held+cost <= maxHeld)
}

// openRoomLocked brings the reader's account up to date.
func (m *machine) openRoomLocked() {
	o := &m.rx.room
	m.closeRoomLocked()
	o.inflight, o.held = m.inflight, m.held
	if o.free == nil {
		o.free, m.free = m.free, nil
	}
}

// closeRoomLocked adds what has begun to the machine's own account.
func (m *machine) closeRoomLocked() {
	o := &m.rx.room
	m.inflight += o.begun
	m.held += o.begunHeld
	o.begun, o.begunHeld = 0, 0
}

// count adds what was received to the connection's counters.
func (o *room) count(m *machine) {
	if o.requests > 0 {
		m.Requests.Add(o.requests)
	}
	if o.reads > 0 {
		m.ReadBytes.Add(o.reads)
	}
	if o.writes > 0 {
		m.WrittenBytes.Add(o.writes)
	}
	if o.received > 0 {
		m.RxBytes.Add(o.received)
	}
	o.requests, o.reads, o.writes, o.received = 0, 0, 0, 0
}

// get makes a request that holds cost bytes, or nil if there is no room for it now.
// Reader only.
func (m *machine) get(cost int64) *Request {
	o := &m.rx.room
	if o.free == nil || !o.fits(cost) {
		m.mu.Lock()
		m.openRoomLocked()
		m.mu.Unlock()
		if !o.fits(cost) {
			return nil
		}
	}
	counted := false
	switch {
	case cost <= o.ahead:
		o.ahead -= cost
	case cost < aheadBytes && m.Budget.Quick(aheadBytes):
		o.ahead += aheadBytes - cost
	default:
		ok := false
		if ok, counted = m.Budget.Reserve(m.Share, cost); !ok {
			return nil
		}
	}
	o.begun++
	o.begunHeld += cost
	r := o.free
	if r != nil {
		o.free, r.next = r.next, nil
	} else {
		r = &Request{m: m}
	}
	r.cost, r.counted = cost, counted
	return r
}

// giveMemory gives the memory of a request back, and returns what is to be taken
// off held.
func (r *Request) giveMemory() (cost int64) {
	cost, r.cost = r.cost, 0
	if r.counted {
		r.m.Budget.Leave(r.m.Share, cost)
		r.counted = false
	}
	return cost
}

// WaitRoom implements conndrive.Machine.
func (m *machine) WaitRoom() {
	x := &m.rx
	if !x.again {
		return
	}
	waits := false
	m.mu.Lock()
	defer m.mu.Unlock()
	for !m.closed && !m.dropped.Load() {
		ok := true
		switch {
		case x.state == rxBye:
			ok = m.inflight == 0
		case x.want >= 0 && !m.fitsLocked(x.want):
			ok = false
		case x.want > 0:
			if !waits && !m.Budget.Fits(m.Share, x.want) {
				// Looked at again once it is sure that we are told.
				waits = true
				m.Budget.Wait(m, true)
				continue
			}
			ok = m.Budget.Fits(m.Share, x.want)
		case m.sending:
			ok = m.queued <= maxQueued
		}
		if ok {
			break
		}
		m.room.Wait()
	}
	if waits {
		m.Budget.Wait(m, false)
	}
}

// fitsLocked: get with that cost may succeed.
func (m *machine) fitsLocked(cost int64) bool {
	return m.inflight < maxInflight && (cost == 0 || m.held == 0 || m.held+cost <= maxHeld)
}

// Freed implements budget.Waiter.
func (m *machine) Freed() {
	m.mu.Lock()
	m.room.Broadcast()
	m.mu.Unlock()
}

var _ budget.Waiter = (*machine)(nil)

// bygone is a batch of requests whose life is over.
type bygone struct {
	head, tail *Request
	n          int
	cost       int64
}

// end ends the life of a request whose reply is sent or will not be.
func (l *bygone) end(r *Request) {
	if r.reply {
		return
	}
	r.m.Session.Release(r)
	r.answered = false
	r.In, r.Lent, r.Extents, r.message, r.batched = nil, false, r.Extents[:0], "", false
	l.add(r)
}

func (l *bygone) add(r *Request) {
	l.cost += r.giveMemory()
	l.n++
	r.next = l.head
	if l.head = r; l.tail == nil {
		l.tail = r
	}
}

// recycle makes room of those whose life is over.
func (m *machine) recycle(l bygone) {
	if l.n == 0 {
		return
	}
	m.mu.Lock()
	m.inflight -= l.n
	m.held -= l.cost
	if !m.closed {
		l.tail.next, m.free = m.free, l.head
	}
	m.room.Broadcast()
	m.mu.Unlock()
	m.Budget.Give(l.cost)
}

// release ends the life of one request.
func (m *machine) release(r *Request) {
	var l bygone
	l.end(r)
	m.recycle(l)
}

// unsubmitted ends a WRITE whose data did not come.
func (m *machine) unsubmitted(r *Request) {
	bufpool.Put(r.buf)
	r.buf, r.Data = nil, nil
	var l bygone
	l.add(r)
	m.recycle(l)
}
