package gfapi

import (
	"context"
	"fmt"
	"syscall"
)

// MaxIO is the longest read or write, in bytes.
const MaxIO = 1 << 20

// The sizes of buffers, and how many there are at most: the library holds one for
// each read and write in flight, and all of them take 44 MiB.
var classes = [...]struct{ size, limit int }{{16 << 10, 256}, {128 << 10, 64}, {MaxIO, 32}}

// buffers are memory that the C library may use for as long as it likes. It is
// page-aligned, as O_DIRECT wants it, made as needed and kept.
type buffers struct {
	idle  [len(classes)]chan []byte
	limit [len(classes)]chan struct{}
}

func (b *buffers) init() {
	for i, c := range classes {
		b.idle[i] = make(chan []byte, c.limit)
		b.limit[i] = make(chan struct{}, c.limit)
	}
}

// get waits for a buffer of at least n bytes, n at most MaxIO.
func (b *buffers) get(ctx context.Context, n int) ([]byte, error) {
	i := 0
	for classes[i].size < n {
		i++
	}
	select {
	case p := <-b.idle[i]:
		return p, nil
	default:
	}
	select {
	case p := <-b.idle[i]:
		return p, nil
	case b.limit[i] <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	p, err := syscall.Mmap(-1, 0, classes[i].size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		<-b.limit[i]
		return nil, fmt.Errorf("memory for %d bytes: %w", classes[i].size, err)
	}
	return p, nil
}

func (b *buffers) put(p []byte) {
	for i, c := range classes {
		if c.size == len(p) {
			b.idle[i] <- p
		}
	}
}
