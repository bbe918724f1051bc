package file

import (
	"sync/atomic"

	"blockgate/backing"
)

// gate counts the calls that use the file descriptor, so that it is closed when
// the last one has left and its number cannot come to mean another file under a
// call that still runs. os.File does the same, but keeps the number to itself.
type gate struct {
	n       atomic.Int64 // calls inside, plus shut once closed
	release func() error
}

const shut = 1 << 62

// enter reports whether the file is open; if so leave must follow.
func (g *gate) enter() bool {
	if g.n.Add(1) < shut {
		return true
	}
	g.leave()
	return false
}

func (g *gate) leave() {
	if g.n.Add(-1) == shut {
		// os.File closes once, however often the count comes by here.
		_ = g.release()
	}
}

func (g *gate) close() error {
	for {
		n := g.n.Load()
		if n >= shut {
			return backing.ErrClosed
		}
		if g.n.CompareAndSwap(n, n+shut) {
			if n == 0 {
				return g.release()
			}
			return nil
		}
	}
}
