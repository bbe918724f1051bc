package client

import (
	"context"
	"sync"
)

// rangeLock locks ranges of bytes, each alone, in the order of arrival: who waits
// lets nobody overtake whose range overlaps his. The zero value is free.
//
// It is what orders writes that overlap: on the wire they have no order, a lost
// connection sends some of them again, and a part of a block is written by
// writing all of it.
type rangeLock struct {
	mu         sync.Mutex
	head, tail *hold
}

// hold is a range that is locked or waited for. It may be used again afterwards.
type hold struct {
	off, end int64
	blockers int           // earlier ones that overlap
	ready    chan struct{} // of one who waits

	prev, next *hold
}

func (h *hold) overlaps(o *hold) bool { return h.off < o.end && o.off < h.end }

// lock locks [off, end); it fails only if ctx ends or closed is closed before.
func (l *rangeLock) lock(ctx context.Context, closed <-chan struct{}, h *hold, off, end int64) error {
	*h = hold{off: off, end: end}
	l.mu.Lock()
	for o := l.head; o != nil; o = o.next {
		if h.overlaps(o) {
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
	ready := make(chan struct{})
	h.ready = ready
	l.mu.Unlock()
	var err error
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-closed:
		err = ErrClosed
	}
	l.unlock(h)
	return err
}

func (l *rangeLock) unlock(h *hold) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for o := h.next; o != nil; o = o.next {
		if h.overlaps(o) {
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
