package nebdfake

import (
	"fmt"
	"sync"
)

const pageSize = 64 << 10

// volume is what the cluster holds; it outlives its servers.
type volume struct {
	blockSize uint32

	mu    sync.RWMutex
	size  int64
	pages map[int64][]byte
}

func (v *volume) length() int64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.size
}

func (v *volume) read(p []byte, off int64) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for len(p) > 0 {
		at := off % pageSize
		n := min(int64(len(p)), pageSize-at)
		if page := v.pages[off/pageSize]; page != nil {
			copy(p[:n], page[at:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
}

func (v *volume) write(p []byte, off int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for len(p) > 0 {
		at := off % pageSize
		page := v.pages[off/pageSize]
		if page == nil {
			page = make([]byte, pageSize)
			v.pages[off/pageSize] = page
		}
		n := copy(page[at:], p)
		p, off = p[n:], off+int64(n)
	}
}

// grow is ExtendFile: whole segments, and never less.
func (v *volume) grow(size, segment int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if size < v.size || size%segment != 0 {
		return fmt.Errorf("cannot extend from %d to %d", v.size, size)
	}
	v.size = size
	return nil
}

func (v *volume) clone() *volume {
	v.mu.RLock()
	defer v.mu.RUnlock()
	c := &volume{blockSize: v.blockSize, size: v.size, pages: make(map[int64][]byte, len(v.pages))}
	for i, p := range v.pages {
		c.pages[i] = append([]byte(nil), p...)
	}
	return c
}

// file is an entry of the server's table of open files. Requests hold it shared
// from when they arrive until they are answered, a close alone; who waits to
// have it alone lets no more in.
type file struct {
	fd    int32
	name  string
	flags string
	vol   *volume

	mu      sync.Mutex
	wake    *sync.Cond
	shared  int
	closers int
	open    bool // false: by a missed heartbeat; the next request opens it
	gone    bool // closed by CloseFile, or the server has ended
	dead    bool // the server has ended: nobody waits any more
}

func newFile(fd int32, name, flags string, v *volume) *file {
	f := &file{fd: fd, name: name, flags: flags, vol: v, open: true}
	f.wake = sync.NewCond(&f.mu)
	return f
}

// enter begins a request. It is false if the file is closed for good; it waits
// while somebody closes it.
func (f *file) enter() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.closers > 0 && !f.gone && !f.dead {
		f.wake.Wait()
	}
	if f.gone || f.dead {
		return false
	}
	f.open = true
	f.shared++
	return true
}

// mustWait reports whether enter would not return at once.
func (f *file) mustWait() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closers > 0 && !f.gone && !f.dead
}

func (f *file) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shared--
	f.wake.Broadcast()
}

// close waits until no request is inside. It is false if the server ended before.
func (f *file) close(forGood bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closers++
	for f.shared > 0 && !f.dead {
		f.wake.Wait()
	}
	f.closers--
	f.wake.Broadcast()
	if f.dead {
		return false
	}
	f.open = false
	f.gone = f.gone || forGood
	return true
}

// die is the end of the server: whatever waits stops waiting.
func (f *file) die() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = true
	f.wake.Broadcast()
}
