package ram

import "blockgate/backing"

var _ backing.Lender = (*Store)(nil)

// Lend implements backing.Lender: a loan holds the chunks of the range for
// reading, so that a read which is lent is as atomic as one that is copied. What
// crosses a segment is not lent. Where nothing has been written in a whole
// segment there is nothing to lock, and the zeroes are everybody's.
func (s *Store) Lend(off, n int64) []byte {
	if n <= 0 || s.check(off, n, false) != nil || (off+n-1)>>segmentShift != off>>segmentShift {
		return nil
	}
	seg := (*s.dir.Load())[off>>segmentShift].Load()
	if seg == nil {
		if n > chunkSize {
			return nil
		}
		return zeroes[:n:n]
	}
	at := off & (segmentSize - 1)
	first, last := at>>chunkShift, (at+n-1)>>chunkShift
	for i := first; i <= last; i++ {
		c := &seg.chunks[i]
		if !c.mu.TryRLock() {
			seg.unlend(first, i)
			return nil
		}
		// Chunks that found memory of their own do not follow each other.
		if c.closed || c.mem == nil || seg.mem == nil && last > first {
			seg.unlend(first, i+1)
			return nil
		}
	}
	if seg.mem == nil {
		at &= chunkSize - 1
		return seg.chunks[first].mem[at : at+n : at+n]
	}
	return seg.mem[at : at+n : at+n]
}

// Return implements backing.Lender.
func (s *Store) Return(p []byte, off int64) {
	if &p[0] == &zeroes[0] {
		return
	}
	seg := (*s.dir.Load())[off>>segmentShift].Load()
	at := off & (segmentSize - 1)
	seg.unlend(at>>chunkShift, (at+int64(len(p))-1)>>chunkShift+1)
}

// unlend lets go of the chunks [from, to).
func (seg *segment) unlend(from, to int64) {
	for i := from; i < to; i++ {
		seg.chunks[i].mu.RUnlock()
	}
}
