package ceph

import (
	"math/bits"
	"sync"
	"syscall"
	"unsafe"
)

// Buffer is memory that the library may keep while Go's collector runs: it is not
// of Go's heap.
type Buffer struct {
	B   []byte
	mem []byte // of a whole class
}

func (b *Buffer) addr() uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b.mem))) }

// Classes are powers of two from a page to 4 MiB. Of each some are kept.
const (
	minClass = 12
	maxClass = 22
)

// pool is what is kept for the next use: at most 48 MiB.
type pool struct {
	mu   sync.Mutex
	free [maxClass + 1][]*Buffer
}

// Get is a buffer of n bytes, with unspecified content.
func (p *pool) Get(n int) (*Buffer, error) {
	class := max(minClass, bits.Len(uint(max(n, 1)-1)))
	if class <= maxClass {
		p.mu.Lock()
		if l := p.free[class]; len(l) > 0 {
			b := l[len(l)-1]
			p.free[class] = l[:len(l)-1]
			p.mu.Unlock()
			b.B = b.mem[:n]
			return b, nil
		}
		p.mu.Unlock()
	}
	mem, err := syscall.Mmap(-1, 0, 1<<class, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return nil, err
	}
	return &Buffer{B: mem[:n], mem: mem}, nil
}

// Put gives the buffer back; the library must not have it any more.
func (p *pool) Put(b *Buffer) {
	class := bits.Len(uint(len(b.mem) - 1))
	if class <= maxClass {
		p.mu.Lock()
		if len(p.free[class]) < kept(class) {
			b.B = nil
			p.free[class] = append(p.free[class], b)
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
	}
	syscall.Munmap(b.mem)
}

// kept is how many buffers of a class are kept: 4 MiB of each, and one of the
// largest.
func kept(class int) int { return max(1, 4<<20>>class) }
