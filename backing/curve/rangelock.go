package curve

import (
	"context"
	"math"
	"sync"
)

// everything is the range of a lock of the whole volume.
const everything = math.MaxInt64

// rangeLock locks ranges of bytes, shared or alone, in the order of arrival: who
// waits lets nobody that he conflicts with overtake. The zero value is free.
type rangeLock struct {
	mu         sync.Mutex
	head, tail *hold
}

// hold is a range that is locked or waited for. It may be used again afterwards.
type hold struct {
	off, end int64
	alone    bool
	blockers int           // earlier ones that conflict
	ready    chan struct{} // of one who waits

	prev, next *hold
}

func (h *hold) conflicts(o *hold) bool {
	return (h.alone || o.alone) && h.off < o.end && o.off < h.end
}

// lock locks [off, end); it fails only if ctx ends before.
func (l *rangeLock) lock(ctx context.Context, h *hold, off, end int64, alone bool) error {
	*h = hold{off: off, end: end, alone: alone}
	l.mu.Lock()
	for o := l.head; o != nil; o = o.next {
		if h.conflicts(o) {
			h.blockers++
		}
	}
	h.prev = l.tail
	if l.tail != nil {
		l.tail.next = h
	} else {
		l.head = h
	}
	l.tail = h
	if h.blockers == 0 {
		l.mu.Unlock()
		return nil
	}
	h.ready = make(chan struct{})
	ready := h.ready
	l.mu.Unlock()
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		l.unlock(h)
		return context.Cause(ctx)
	}
}

func (l *rangeLock) unlock(h *hold) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for o := h.next; o != nil; o = o.next {
		if h.conflicts(o) {
			o.blockers--
			if o.blockers == 0 {
				close(o.ready)
			}
		}
	}
	if h.prev != nil {
		h.prev.next = h.next
	} else {
		l.head = h.next
	}
	if h.next != nil {
		h.next.prev = h.prev
	} else {
		l.tail = h.prev
	}
	h.prev, h.next = nil, nil
}
