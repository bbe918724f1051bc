package ram

import (
	"fmt"
	"sync/atomic"

	"blockgate/backing"
)

// Memory is mapped by segments of 64 chunks, so that a large store needs few
// mappings (Linux allows 65530 by default) and a small directory.
const (
	segmentShift = 26
	segmentSize  = 1 << segmentShift
)

type segment struct {
	chunks [segmentSize / chunkSize]chunk
	mem    []byte // nil where chunks take memory each for themselves
}

// grow sets the size and makes the directory long enough for it. s.mu is held,
// or the store is not yet shared.
func (s *Store) grow(size int64) {
	need := int((size + segmentSize - 1) >> segmentShift)
	old := s.dir.Load()
	if old == nil || len(*old) < need {
		dir := make([]atomic.Pointer[segment], need)
		if old != nil {
			for i := range *old {
				dir[i].Store((*old)[i].Load())
			}
		}
		s.dir.Store(&dir)
	}
	s.size.Store(size)
}

// at finds the chunk that holds off, the offset within it and how many of n
// bytes it holds. The chunk is nil if nothing in its segment has been written.
func (s *Store) at(off, n int64) (c *chunk, at, m int64) {
	at = off & (chunkSize - 1)
	m = min(n, chunkSize-at)
	if seg := (*s.dir.Load())[off>>segmentShift].Load(); seg != nil {
		c = &seg.chunks[off&(segmentSize-1)>>chunkShift]
	}
	return c, at, m
}

// ensure is at, but makes the segment if it is missing.
func (s *Store) ensure(off, n int64) (c *chunk, at, m int64, err error) {
	if c, at, m = s.at(off, n); c != nil {
		return c, at, m, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	slot := &(*s.dir.Load())[off>>segmentShift]
	if slot.Load() == nil {
		if s.closed.Load() {
			return nil, 0, 0, backing.ErrClosed
		}
		seg, err := newSegment(s.huge)
		if err != nil {
			return nil, 0, 0, fmt.Errorf("%w: %w", backing.ErrNoSpace, err)
		}
		slot.Store(seg)
	}
	c, at, m = s.at(off, n)
	return c, at, m, nil
}

// hole is the number of bytes from off to the next segment that exists, or to
// end. The segment of off does not exist.
func (s *Store) hole(off, end int64) int64 {
	dir := *s.dir.Load()
	for next := (off>>segmentShift + 1) << segmentShift; next < end; next += segmentSize {
		if dir[next>>segmentShift].Load() != nil {
			return next - off
		}
	}
	return end - off
}

func newSegment(huge bool) (*segment, error) {
	mem, err := mapMemory(segmentSize, huge)
	if err != nil {
		return nil, err
	}
	seg := &segment{mem: mem}
	if mem != nil {
		for i := range seg.chunks {
			seg.chunks[i].mem = mem[i*chunkSize:][:chunkSize:chunkSize]
		}
	}
	return seg, nil
}

// close takes the memory from the chunks, each under its lock, so that nobody
// is in it when it goes.
func (seg *segment) close() {
	for i := range seg.chunks {
		c := &seg.chunks[i]
		c.mu.Lock()
		c.mem, c.closed = nil, true
		c.mu.Unlock()
	}
	unmapMemory(seg.mem)
	seg.mem = nil
}
