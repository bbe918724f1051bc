package file

import (
	"fmt"
	"math/bits"
	"sync"
	"unsafe"

	"blockgate/backing"
	"blockgate/internal/bufpool"
)

// maxBounce bounds the copy of one step through an aligned buffer, in bytes.
const maxBounce = 1 << 20

// direct is what O_DIRECT wants of buffers, offsets and lengths.
type direct struct {
	mem, off int64 // bytes, powers of two
	// edges keeps a write that must read the rest of its first or last block
	// apart from all other writes: one into the rest would be undone.
	edges sync.RWMutex
}

func newDirect(g geometry, path string, size int64) (*direct, error) {
	if g.dioOff == 0 || bits.OnesCount(uint(g.dioOff)) != 1 || bits.OnesCount(uint(g.dioMem)) != 1 || g.dioOff > maxBounce {
		return nil, fmt.Errorf("%s: O_DIRECT is %w on this file system; open it without direct", path, backing.ErrNotSupported)
	}
	d := &direct{mem: int64(g.dioMem), off: int64(g.dioOff)}
	if size%d.off != 0 {
		return nil, fmt.Errorf("%s: O_DIRECT wants a size that is a multiple of %d, it has %d bytes: %w", path, d.off, size, backing.ErrNotSupported)
	}
	return d, nil
}

func (d *direct) aligned(p []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))%uintptr(d.mem) == 0
}

func (d *direct) wholeBlocks(off, n int64) bool { return (off|n)%d.off == 0 }

// lock keeps the range's blocks from the read-modify-write of others.
func (s *Store) lockEdges(off, n int64) (unlock func()) {
	switch d := s.direct; {
	case d == nil:
		return func() {}
	case d.wholeBlocks(off, n):
		d.edges.RLock()
		return d.edges.RUnlock
	default:
		d.edges.Lock()
		return d.edges.Unlock
	}
}

// buffer is an aligned buffer of n bytes; b goes back to the pool.
func (d *direct) buffer(n int64) (p []byte, b *bufpool.Buf) {
	b = bufpool.Get(int(n + d.mem))
	skip := int64(-uintptr(unsafe.Pointer(unsafe.SliceData(b.B))) % uintptr(d.mem))
	return b.B[skip:][:n], b
}

// piece is the aligned range that holds [off, off+n), cut to maxBounce, and how
// many of the n bytes it holds.
func (d *direct) piece(off, n int64) (lo, length, held int64) {
	lo = off &^ (d.off - 1)
	length = min((off+n+d.off-1)&^(d.off-1)-lo, maxBounce)
	return lo, length, min(n, lo+length-off)
}

func (s *Store) directRead(p []byte, off int64) error {
	d := s.direct
	if d.wholeBlocks(off, int64(len(p))) && d.aligned(p) {
		return s.read(p, off)
	}
	for len(p) > 0 {
		lo, length, n := d.piece(off, int64(len(p)))
		q, b := d.buffer(length)
		err := s.read(q, lo)
		if err == nil {
			copy(p[:n], q[off-lo:])
		}
		bufpool.Put(b)
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (s *Store) directWrite(p []byte, off int64, durable bool) error {
	d := s.direct
	if !d.wholeBlocks(off, int64(len(p))) {
		d.edges.Lock()
		defer d.edges.Unlock()
	} else {
		d.edges.RLock()
		defer d.edges.RUnlock()
		if d.aligned(p) {
			return s.write(p, off, durable)
		}
	}
	for len(p) > 0 {
		lo, length, n := d.piece(off, int64(len(p)))
		if err := s.directPiece(p[:n], off, lo, length, durable); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// directPiece writes p at off by the aligned range [lo, lo+length), whose rest
// it reads first.
func (s *Store) directPiece(p []byte, off, lo, length int64, durable bool) error {
	d := s.direct
	q, b := d.buffer(length)
	defer bufpool.Put(b)
	last := length - d.off
	if off > lo {
		if err := s.read(q[:d.off], lo); err != nil {
			return err
		}
	}
	if off+int64(len(p)) < lo+length && (last > 0 || off == lo) {
		if err := s.read(q[last:], lo+last); err != nil {
			return err
		}
	}
	copy(q[off-lo:], p)
	return s.write(q, lo, durable)
}
