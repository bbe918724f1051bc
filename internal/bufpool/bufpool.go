// Package bufpool hands out byte buffers of fixed size classes. A pool that
// mixed sizes would pin the largest ones for the smallest requests, so each
// class has a pool of its own and odd capacities never enter one.
package bufpool

import (
	"math/bits"
	"sync"
)

const (
	minShift = 9  // 512 B
	maxShift = 24 // 16 MiB
)

var classes [maxShift - minShift + 1]sync.Pool

// Buf is one buffer. B has the length asked for; its content is unspecified.
// Whoever holds a Buf owns it until Put, which must be called at most once.
type Buf struct {
	B     []byte
	whole []byte
	class int8 // -1: larger than every class, left to the garbage collector
}

// Get returns a buffer of n bytes. n must not be negative. Larger than 16 MiB
// is served by a plain allocation.
func Get(n int) *Buf {
	c := classOf(n)
	if c < 0 {
		b := make([]byte, n)
		return &Buf{B: b, whole: b, class: -1}
	}
	if v := classes[c].Get(); v != nil {
		b := v.(*Buf)
		b.B = b.whole[:n]
		return b
	}
	w := make([]byte, 1<<(c+minShift))
	return &Buf{B: w[:n], whole: w, class: int8(c)}
}

// Put gives the buffer back. The caller must not touch it afterwards. A nil Buf
// is ignored.
func Put(b *Buf) {
	if b == nil || b.class < 0 {
		return
	}
	b.B = nil
	classes[b.class].Put(b)
}

// Size is how many bytes Get(n) really takes, for memory budgets.
func Size(n int) int {
	if c := classOf(n); c >= 0 {
		return 1 << (c + minShift)
	}
	return n
}

func classOf(n int) int {
	if n <= 1<<minShift {
		return 0
	}
	s := bits.Len(uint(n - 1))
	if s > maxShift {
		return -1
	}
	return s - minShift
}
