package ram

import (
	"math/bits"
	"sync"

	"blockgate/backing"
)

const (
	chunkShift = 20
	chunkSize  = 1 << chunkShift
	unitShift  = 9 // allocation is known by units of 512 bytes, the smallest logical block
	unitSize   = 1 << unitShift
	pageSize   = 4096 // memory is given back by pages
)

// zeroes is the payload of WriteZeroes; never written to.
var zeroes [chunkSize]byte

// chunk is one aligned mebibyte with a lock of its own, so that calls on
// different chunks never meet.
type chunk struct {
	mu     sync.RWMutex
	closed bool
	mem    []byte // chunkSize bytes, or nil: reads as zeroes
	used   [chunkSize / unitSize / 64]uint64
}

func (c *chunk) read(p []byte, at int64) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	switch {
	case c.closed:
		return backing.ErrClosed
	case c.mem == nil:
		clear(p)
	default:
		copy(p, c.mem[at:])
	}
	return nil
}

func (c *chunk) write(p []byte, at int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return backing.ErrClosed
	}
	c.put(p, at)
	return nil
}

// put writes; c.mu is held and the chunk is open.
func (c *chunk) put(p []byte, at int64) {
	if c.mem == nil {
		c.mem = make([]byte, chunkSize)
	}
	copy(c.mem[at:], p)
	c.mark(at>>unitShift, (at+int64(len(p))+unitSize-1)>>unitShift, true)
}

// discard zeroes [at, at+n) and gives back the pages in it that hold nothing
// any more.
func (c *chunk) discard(at, n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return backing.ErrClosed
	}
	if c.mem == nil {
		return nil
	}
	// Units that are covered in part keep their state, unless nothing else
	// was in them; to know that would mean to read them.
	c.mark((at+unitSize-1)>>unitShift, (at+n)>>unitShift, false)

	end := at + n
	first, last := at&^(pageSize-1), (end+pageSize-1)&^(pageSize-1)
	if !c.empty(first) {
		first += pageSize
	}
	if last > first && !c.empty(last-pageSize) {
		last -= pageSize
	}
	if first >= last {
		clear(c.mem[at:end])
		return nil
	}
	if first > at {
		clear(c.mem[at:first])
	}
	if last < end {
		clear(c.mem[last:end])
	}
	if last-first == chunkSize && releaseChunk(c.mem) {
		c.mem = nil
		return nil
	}
	releasePages(c.mem[first:last])
	return nil
}

// empty reports whether no unit of the page at is in use.
func (c *chunk) empty(at int64) bool {
	u := at >> unitShift
	return c.used[u/64]>>(u%64)&(1<<(pageSize/unitSize)-1) == 0
}

// mark sets the state of the units [from, to).
func (c *chunk) mark(from, to int64, used bool) {
	for from < to {
		w, b := from/64, from%64
		n := min(64-b, to-from)
		mask := ^uint64(0) >> (64 - n) << b
		if used {
			c.used[w] |= mask
		} else {
			c.used[w] &^= mask
		}
		from += n
	}
}

// extent is the run of one state that begins at at, at most n bytes long.
func (c *chunk) extent(at, n int64) (length int64, allocated bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	u := at >> unitShift
	allocated = c.used[u/64]>>(u%64)&1 != 0
	end := (at + n + unitSize - 1) >> unitShift
	for u < end {
		w := c.used[u/64]
		if allocated {
			w = ^w
		}
		// The first unit in the word, from u on, whose state differs.
		if w >>= u % 64; w != 0 {
			u += int64(bits.TrailingZeros64(w))
			break
		}
		u = (u/64 + 1) * 64
	}
	return min(u<<unitShift-at, n), allocated
}

// compareAndWrite holds all chunks of the range while it compares and writes.
func (s *Store) compareAndWrite(old, new []byte, off int64) (int, error) {
	chunks, err := s.lockRange(off, int64(len(new)))
	if err != nil {
		return 0, err
	}
	defer unlockRange(chunks)
	p, at := old, off&(chunkSize-1)
	for _, c := range chunks {
		n := min(int64(len(p)), chunkSize-at)
		if i := c.differ(p[:n], at); i >= 0 {
			return len(old) - len(p) + i, nil
		}
		p, at = p[n:], 0
	}
	putRange(chunks, new, off)
	return -1, nil
}

// differ is the index of the first byte of p that is not in the chunk at at, or
// -1; c.mu is held.
func (c *chunk) differ(p []byte, at int64) int {
	mem := zeroes[:]
	if c.mem != nil {
		mem = c.mem
	}
	for i, b := range mem[at:][:len(p)] {
		if b != p[i] {
			return i
		}
	}
	return -1
}
