// Package budget bounds the payload memory of a whole server, whatever protocols
// it speaks, and shares it out: a client that reads slowly and a store that hangs
// keep what they hold for long, and must leave room for everybody else.
//
// # Shares
//
// While no more than a quarter of the memory is used nothing else counts. Beyond
// that what is held for one thing (an export, a logical unit) may be no more than
// what is left free, and what one peer (a connection, a session) holds of that no
// more than the thing might still get. That is the dynamic threshold of shared
// switch buffers (Choudhury and Hahne, 1998): the first holder gets half or a third
// of what there is, each further one a part of the rest, so that there always is a
// rest, and nobody has to know how many there are. A request that is alone in the
// server may run whatever its size.
package budget

import (
	"sync"
	"sync/atomic"
)

// Budget is the memory of a server, in bytes. Safe for concurrent use.
type Budget struct {
	limit int64
	used  atomic.Int64

	mu     sync.Mutex
	shares map[Share]int64 // what was counted; of a thing as a whole: with no peer

	nwaiting atomic.Int32
	wmu      sync.Mutex
	waiting  map[Waiter]struct{}
}

// Share says for whom memory is taken.
type Share struct {
	Peer  any // a connection or session
	Thing any // an export or logical unit
}

// Waiter is told when memory has come back.
type Waiter interface {
	// Freed is called by any goroutine, with nothing of the Budget locked. It must
	// not block.
	Freed()
}

// New makes a budget of limit bytes.
func New(limit int64) *Budget {
	return &Budget{limit: limit, shares: make(map[Share]int64), waiting: make(map[Waiter]struct{})}
}

// Used is the number of bytes that are taken now.
func (b *Budget) Used() int64 { return b.used.Load() }

// Limit is the bound, in bytes.
func (b *Budget) Limit() int64 { return b.limit }

// firstPart: the first request of a peer is not held against its thing if it is no
// more than this part of the memory, and leaves as much free as it takes. So who
// uses what others hold all of still comes through, one by one.
const firstPart = 64

// calm is how much may be used before shares count.
func (b *Budget) calm() int64 { return b.limit / 4 }

// Quick takes n bytes if so little is used that shares do not count, and else
// reports false.
func (b *Budget) Quick(n int64) bool { return b.take(n, b.calm()) }

// Take takes n bytes for whom is not known yet: Enter follows. Else it takes
// nothing and reports false.
func (b *Budget) Take(n int64) bool {
	// What has no share leaves as much as it takes.
	return n == 0 || b.take(n, b.limit-n) || b.used.CompareAndSwap(0, n)
}

// take takes n bytes if then no more than bound are used.
func (b *Budget) take(n, bound int64) bool {
	for {
		u := b.used.Load()
		if u+n > bound {
			return false
		}
		if b.used.CompareAndSwap(u, u+n) {
			return true
		}
	}
}

// Reserve is Take and Enter at once.
func (b *Budget) Reserve(s Share, n int64) (ok, counted bool) {
	if n == 0 || b.Quick(n) {
		return true, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.allows(s, n, b.used.Load()+n) {
		return false, false
	}
	b.used.Add(n)
	b.count(s, n)
	return true, true
}

// Fits reports whether Reserve would succeed now.
func (b *Budget) Fits(s Share, n int64) bool {
	if n == 0 || b.used.Load()+n <= b.calm() {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.allows(s, n, b.used.Load()+n)
}

// Enter asks whether n bytes that were taken may be kept for s. counted says that
// Leave is to be called, before they are given back.
func (b *Budget) Enter(s Share, n int64) (ok, counted bool) {
	if n == 0 || b.used.Load() <= b.calm() {
		return true, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.allows(s, n, b.used.Load()) {
		return false, false
	}
	b.count(s, n)
	return true, true
}

// Leave takes back what Enter or Reserve has counted.
func (b *Budget) Leave(s Share, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count(s, -n)
}

// allows: n bytes more for s, with which used bytes are taken. Caller holds mu.
func (b *Budget) allows(s Share, n, used int64) bool {
	left := b.limit - used
	has := b.shares[s]
	if used == n || has == 0 && n <= b.limit/firstPart && n <= left {
		return true
	}
	rest := left - b.shares[Share{Thing: s.Thing}] - n
	return rest >= 0 && (has == 0 || has+n <= rest)
}

// count adds n to the shares. Caller holds mu.
func (b *Budget) count(s Share, n int64) {
	for _, k := range [...]Share{s, {Thing: s.Thing}} {
		if b.shares[k] += n; b.shares[k] == 0 {
			delete(b.shares, k)
		}
	}
}

// Give returns n bytes, and tells who waits.
func (b *Budget) Give(n int64) {
	if n == 0 {
		return
	}
	b.used.Add(-n)
	if b.nwaiting.Load() == 0 {
		return
	}
	b.wmu.Lock()
	l := make([]Waiter, 0, len(b.waiting))
	for w := range b.waiting {
		l = append(l, w)
	}
	b.wmu.Unlock()
	for _, w := range l {
		w.Freed()
	}
}

// Wait makes w one that Give tells, or not any more. Who begins to wait has to
// look once more whether it Fits.
func (b *Budget) Wait(w Waiter, on bool) {
	b.wmu.Lock()
	defer b.wmu.Unlock()
	if on {
		b.waiting[w] = struct{}{}
	} else {
		delete(b.waiting, w)
	}
	b.nwaiting.Store(int32(len(b.waiting)))
}
