// Package rangelock locks ranges of bytes: it is what orders requests that overlap
// where the engine does not.
package rangelock

import (
	"context"
	"errors"
	"math"
	"sync"
)

// Everything is the end of a range that begins at 0 and is the whole store.
const Everything = math.MaxInt64

// ErrStopped: the wait for a range ended because of stop.
var ErrStopped = errors.New("stopped waiting for a range")

// Lock locks ranges of bytes, shared or alone, in the order of arrival: who
// waits lets nobody that he conflicts with overtake. The zero value is free.
type Lock struct {
	mu         sync.Mutex
	head, tail *Hold
}

// Hold is a range that is locked or waited for. It may be used again afterwards.
type Hold struct {
	off, end int64
	alone    bool
	blockers int           // earlier ones that conflict
	ready    chan struct{} // of one who waits

	prev, next *Hold
}

func (h *Hold) conflicts(o *Hold) bool {
	return (h.alone || o.alone) && h.off < o.end && o.off < h.end
}

// Lock locks [off, end), shared or alone. It fails only if ctx ends before, with its
// cause, or stop is closed, with ErrStopped; nil never is.
func (l *Lock) Lock(ctx context.Context, stop <-chan struct{}, h *Hold, off, end int64, alone bool) error {
	*h = Hold{off: off, end: end, alone: alone}
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
	var err error
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-stop:
		err = ErrStopped
	}
	l.Unlock(h)
	return err
}

// Unlock gives a range back, from any goroutine, and lets those go that waited for
// nothing else.
func (l *Lock) Unlock(h *Hold) {
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
