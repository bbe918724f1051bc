package file

import (
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"
)

// A window shows a part of a file in memory. The next one begins a stride behind
// it and so inside it: every range of up to maxLoan bytes lies in one window as a
// whole. In bytes.
const (
	windowStride = 2 << 20
	windowSpan   = windowStride + maxLoan
)

// Windows are the memory through which stores lend their files: a fixed number of
// windows in one range of addresses, for all stores that were opened with them.
// A window that is needed takes the place of the one that was not used for
// longest. So neither what is mapped nor the page tables for it grow with the
// number of stores or the size of their files. What they show is the page cache
// itself and costs no memory beside it, but it counts in the resident size of the
// process.
//
// The methods are safe for concurrent use, and wait for nothing but the kernel's
// bookkeeping.
type Windows struct {
	slots []window
	free  atomic.Int64 // slots that show nothing
	clock atomic.Uint64

	mu   sync.Mutex     // who a window belongs to next
	base unsafe.Pointer // of the addresses; nil before the first is needed
}

// window is one place of Windows.
type window struct {
	// loans counts those who use it; negative: it is being changed. Only who made
	// it so writes what follows, and who counts in it reads that.
	loans atomic.Int64
	used  atomic.Uint64 // Windows.clock when it was last lent
	lent  atomic.Int64  // bytes, since it shows this
	store *Store        // nil: it shows nothing. Written under Windows.mu too
	index int64         // begins at index times windowStride
}

// NewWindows makes windows of at most limit bytes together, and at least one.
func NewWindows(limit int64) *Windows {
	w := &Windows{slots: make([]window, max(limit/windowSpan, 1))}
	w.free.Store(int64(len(w.slots)))
	return w
}

// use counts a loan of n bytes of window i, if that shows this part of the store's
// file.
func (w *Windows) use(i int, s *Store, index, n int64) bool {
	p := &w.slots[i]
	for {
		n := p.loans.Load()
		if n < 0 {
			return false
		}
		if p.loans.CompareAndSwap(n, n+1) {
			break
		}
	}
	if p.store != s || p.index != index {
		p.loans.Add(-1)
		return false
	}
	if n >= minLoan {
		p.used.Store(w.clock.Add(1))
	} else if now := w.clock.Load(); p.used.Load() != now {
		p.used.Store(now) // one count for all would be what cores wait for
	}
	p.lent.Add(n)
	return true
}

// take makes a window show a part of the store's file, and counts a loan of it.
// i is negative if all windows are on loan; err tells that the kernel does not
// map this file.
func (w *Windows) take(s *Store, index int64) (i int, err error) {
	w.mu.Lock()
	if w.base == nil {
		if w.base, err = reserve(len(w.slots) * windowSpan); err != nil {
			w.mu.Unlock()
			return -1, err
		}
	}
	i = -1
	for k := range w.slots {
		if w.slots[k].loans.Load() == 0 && (i < 0 || w.slots[k].used.Load() < w.slots[i].used.Load()) {
			i = k
		}
	}
	if i < 0 || !w.slots[i].loans.CompareAndSwap(0, -1) {
		w.mu.Unlock()
		return -1, nil
	}
	p := &w.slots[i]
	if p.store != nil {
		p.store.lending.paid(p.lent.Load())
		w.forget(i)
	} else {
		w.free.Add(-1)
	}
	p.store, p.index = s, index
	w.mu.Unlock()
	if err := show(w.addr(i), s.h, index*windowStride); err != nil {
		w.clear(i)
		return -1, err
	}
	p.lent.Store(0)
	p.used.Store(w.clock.Add(1))
	p.loans.Store(1)
	return i, nil
}

// done ends a loan of the window that p lies in.
func (w *Windows) done(p []byte) {
	w.slots[(address(p)-uintptr(w.base))/windowSpan].loans.Add(-1)
}

// drop lets go of the store's file everywhere. Nothing of it is on loan.
func (w *Windows) drop(s *Store) {
	for i := range w.slots {
		for w.letGo(i, s) {
			// Somebody else may be about to see in use that it is not theirs.
			runtime.Gosched()
		}
	}
}

// letGo empties window i if it shows a file of s, and reports whether it does so
// still.
func (w *Windows) letGo(i int, s *Store) bool {
	w.mu.Lock()
	mine := w.slots[i].store == s
	free := mine && w.slots[i].loans.CompareAndSwap(0, -1)
	w.mu.Unlock()
	if free {
		w.clear(i)
	}
	return mine && !free
}

// clear empties window i, which is being changed, and gives it back.
func (w *Windows) clear(i int) {
	hide(w.addr(i))
	w.mu.Lock()
	w.forget(i)
	w.slots[i].store = nil
	w.slots[i].used.Store(0)
	w.free.Add(1)
	w.mu.Unlock()
	w.slots[i].loans.Store(0)
}

// forget has the store that window i shows not look for it there any more. The
// window is being changed.
func (w *Windows) forget(i int) {
	p := &w.slots[i]
	p.store.lending.place(p.index).slot.CompareAndSwap(int32(i)+1, 0)
}

func (w *Windows) addr(i int) unsafe.Pointer { return unsafe.Add(w.base, i*windowSpan) }

// bytes is the n bytes at at of window i.
func (w *Windows) bytes(i int, at, n int64) []byte {
	return unsafe.Slice((*byte)(unsafe.Add(w.addr(i), at)), n)
}

// address is where p begins, which is not looked at.
func address(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }
