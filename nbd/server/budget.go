package server

import (
	"sync"
	"sync/atomic"

	"blockgate/internal/bufpool"
)

// payload is the buffer of a WRITE's data.
type payload = *bufpool.Buf

// budget bounds the payload memory of all connections of a server, in bytes. A
// connection that finds it used up stops reading until there is some again.
type budget struct {
	limit int64
	used  atomic.Int64
	// whole is what this is a part of; nil: of nothing. Then it also has who waits.
	whole *budget

	nwaiting atomic.Int32
	mu       sync.Mutex
	waiting  map[*machine]struct{}
}

func newBudget(limit int64) *budget {
	return &budget{limit: limit, waiting: make(map[*machine]struct{})}
}

// part makes the budget of those who may have half of b together.
func (b *budget) part() *budget { return &budget{limit: b.limit / 2, whole: b} }

// take reserves n bytes or nothing. A request may always run when nothing else
// holds memory, whatever its size.
func (b *budget) take(n int64) bool {
	if u := b.used.Add(n); u > b.limit && u != n || b.whole != nil && !b.whole.take(n) {
		b.used.Add(-n)
		return false
	}
	return true
}

// fits reports whether take would succeed now.
func (b *budget) fits(n int64) bool {
	u := b.used.Load()
	return (u == 0 || u+n <= b.limit) && (b.whole == nil || b.whole.fits(n))
}

// give returns n bytes and wakes who waits. No machine's mutex may be held.
func (b *budget) give(n int64) {
	if n == 0 {
		return
	}
	b.used.Add(-n)
	if b.whole != nil {
		b.whole.give(n)
		return
	}
	if b.nwaiting.Load() == 0 {
		return
	}
	b.mu.Lock()
	l := make([]*machine, 0, len(b.waiting))
	for m := range b.waiting {
		l = append(l, m)
	}
	b.mu.Unlock()
	for _, m := range l {
		m.mu.Lock()
		m.room.Broadcast()
		m.mu.Unlock()
	}
}

// wait makes m one that give wakes, or not any more.
func (b *budget) wait(m *machine, on bool) {
	if b.whole != nil {
		b.whole.wait(m, on)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if on {
		b.waiting[m] = struct{}{}
	} else {
		delete(b.waiting, m)
	}
	b.nwaiting.Store(int32(len(b.waiting)))
}
