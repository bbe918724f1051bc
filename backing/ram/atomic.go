package ram

import (
	"context"
	"fmt"

	"blockgate/backing"
)

// maxAtomic is the longest atomic write; it meets two chunks at most.
const maxAtomic = chunkSize

// AtomicLimits: anything up to a mebibyte.
func (s *Store) AtomicLimits() backing.AtomicLimits {
	return backing.AtomicLimits{Max: maxAtomic, Granularity: 1, Alignment: 1}
}

// WriteAtomic writes with all chunks of the range locked. What could fail, to
// find memory, comes before; and what ends the process or the power takes the
// whole store with it, so that nobody is left to see a half.
func (s *Store) WriteAtomic(_ context.Context, p []byte, off int64) error {
	if len(p) > maxAtomic {
		return fmt.Errorf("ram: atomic write of %d bytes: %w", len(p), backing.ErrNotSupported)
	}
	if err := s.check(off, int64(len(p)), true); err != nil {
		return err
	}
	chunks, err := s.lockRange(off, int64(len(p)))
	if err != nil {
		return err
	}
	putRange(chunks, p, off)
	unlockRange(chunks)
	return nil
}

// lockRange finds and locks the chunks of a range, in ascending order. It finds
// them before it locks the first: finding may take Store.mu. Without an error
// unlockRange must follow.
func (s *Store) lockRange(off, n int64) ([]*chunk, error) {
	chunks := make([]*chunk, 0, 2)
	for n > 0 {
		c, _, m, err := s.ensure(off, n)
		if err != nil {
			return nil, err
		}
		chunks = append(chunks, c)
		off, n = off+m, n-m
	}
	for i, c := range chunks {
		c.mu.Lock()
		if c.closed {
			unlockRange(chunks[:i+1])
			return nil, backing.ErrClosed
		}
	}
	return chunks, nil
}

func unlockRange(chunks []*chunk) {
	for _, c := range chunks {
		c.mu.Unlock()
	}
}

// putRange writes p at off into the chunks that lockRange gave.
func putRange(chunks []*chunk, p []byte, off int64) {
	at := off & (chunkSize - 1)
	for _, c := range chunks {
		n := min(int64(len(p)), chunkSize-at)
		c.put(p[:n], at)
		p, at = p[n:], 0
	}
}
