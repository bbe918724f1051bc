package ram

import (
	"context"
	"math/bits"

	"blockgate/backing"
)

// Usage counts what is written and not discarded. Available is what the system
// could still give to anyone; a limit on the process alone is not seen.
func (s *Store) Usage(ctx context.Context) (backing.Usage, error) {
	if err := s.check(0, 0, false); err != nil {
		return backing.Usage{}, err
	}
	free, ok := availableMemory()
	if !ok {
		return backing.Usage{}, backing.ErrNotSupported
	}
	u := backing.Usage{Available: free}
	dir := *s.dir.Load()
	for i := range dir {
		seg := dir[i].Load()
		if seg == nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return backing.Usage{}, err
		}
		for k := range seg.chunks {
			u.Used += seg.chunks[k].inUse()
		}
	}
	return u, nil
}

// inUse is the number of bytes that were written and not discarded.
func (c *chunk) inUse() int64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	n := 0
	for _, w := range c.used {
		n += bits.OnesCount64(w)
	}
	return int64(n) << unitShift
}
