package conndrive

import (
	"runtime"
	"sync/atomic"
)

// Turn is what the connections of a server share so that one at a time waits for
// its peer in place.
//
// A peer that sends one request and waits for its answer finds the reader asleep
// each time. To sleep in Go's poller means that another thread, or the same by way
// of the scheduler, is woken, finds the goroutine and runs it: most of the time
// that such a request takes. A reader with such a peer sleeps in poll(2) instead,
// on its own thread, for a moment: the kernel wakes it directly. It burns no
// CPU. It holds a thread, and for a while a P, so only one reader does it at a
// time, never with GOMAXPROCS 1, and it goes back to the poller when the
// moment has passed in vain. The zero value is ready.
type Turn struct{ taken atomic.Bool }

const (
	// loneAfter is after how many inputs in a row that came one by one a
	// peer counts as one that waits for its answers.
	loneAfter = 4
	// turnMillis bounds a wait in place, in milliseconds: what else might need the P
	// waits no longer, nor does the end of the connection.
	turnMillis = 1
)

// Share lets the connection take turns with others. It comes before Run.
func (c *Conn) Share(t *Turn) {
	if canPoll && runtime.GOMAXPROCS(0) > 1 {
		c.in.lone.turn = t
	}
}

// lone notices a peer that waits for its answers.
type lone struct {
	turn  *Turn // nil: never wait in place
	reads int   // that found something since one found nothing
	row   int   // how often that was one read
}

// await is called when a read found nothing. True means that there is input now.
func (l *lone) await(fd uintptr) bool {
	if l.turn == nil {
		return false
	}
	one := l.reads == 1
	l.reads = 0
	if l.row++; !one {
		l.row = 0
	}
	if l.row < loneAfter || !l.turn.taken.CompareAndSwap(false, true) {
		return false
	}
	// Who was made ready by the last request runs first: this P may be lost to
	// them for the moment.
	runtime.Gosched()
	found := pollIn(fd, turnMillis)
	l.turn.taken.Store(false)
	if !found {
		l.row = 0
	}
	return found
}
