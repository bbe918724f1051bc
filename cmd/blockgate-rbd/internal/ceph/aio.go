package ceph

import (
	"context"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/ebitengine/purego"
)

// maxInFlight is how many operations the library has at the same time; others
// wait for their turn.
const maxInFlight = 256

// slots are the operations that the library may have. A slot's number is the
// argument of its callback.
type slots struct {
	done [maxInFlight]chan int64
	free chan int
	busy atomic.Int32 // how many are in use
}

func (s *slots) init() {
	s.free = make(chan int, maxInFlight)
	for i := range s.done {
		s.done[i] = make(chan int64, 1)
		s.free <- i
	}
}

// onDone is rbd_callback_t: an operation has ended. It runs on a thread of the
// library's, which it must not hold up.
func (l *Lib) onDone(completion, arg uintptr) uintptr {
	r, _, _ := purego.SyscallN(l.aioResult, completion)
	l.slots.done[arg] <- int64(r)
	return 0
}

// run starts an operation and waits for its end, whatever becomes of ctx: the
// library cannot take an operation back, and its memory has to stay. ctx only
// bounds the wait for a turn. The result is what rbd_aio_get_return_value says.
func (l *Lib) run(ctx context.Context, start func(completion uintptr) uintptr) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	var slot int
	select {
	case slot = <-l.slots.free:
	default:
		select {
		case slot = <-l.slots.free:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	// Who is alone waits inside the library: its thread then wakes this one, and
	// not Go's scheduler, which has to find somebody to run it.
	alone, done := l.slots.busy.Add(1) == 1, l.done
	if alone {
		done = 0
	}
	defer func() {
		l.slots.busy.Add(-1)
		l.slots.free <- slot
	}()
	var completion uintptr
	if r, _, _ := purego.SyscallN(l.aioCreate, uintptr(slot), done, uintptr(unsafe.Pointer(&completion))); int32(r) < 0 {
		return 0, syscall.Errno(-int32(r))
	}
	r := start(completion)
	if int32(r) < 0 {
		purego.SyscallN(l.aioRelease, completion)
		return 0, syscall.Errno(-int32(r))
	}
	var result int64
	if alone {
		purego.SyscallN(l.aioWait, completion)
		r, _, _ := purego.SyscallN(l.aioResult, completion)
		result = int64(r)
	} else {
		result = <-l.slots.done[slot]
	}
	purego.SyscallN(l.aioRelease, completion)
	if result < 0 {
		return result, syscall.Errno(-result)
	}
	return result, nil
}

// Drain waits until the library has no operation of ours; there is no other after
// that.
func (l *Lib) Drain() {
	for range maxInFlight {
		<-l.slots.free
	}
}

// Read reads len(b.B) bytes at off.
func (l *Lib) Read(ctx context.Context, image uintptr, off int64, b *Buffer) (int64, error) {
	return l.run(ctx, func(c uintptr) uintptr {
		r, _, _ := purego.SyscallN(l.aioRead, image, uintptr(off), uintptr(len(b.B)), b.addr(), c)
		return r
	})
}

// Write writes b.B at off.
func (l *Lib) Write(ctx context.Context, image uintptr, off int64, b *Buffer) error {
	_, err := l.run(ctx, func(c uintptr) uintptr {
		r, _, _ := purego.SyscallN(l.aioWrite, image, uintptr(off), uintptr(len(b.B)), b.addr(), c)
		return r
	})
	return err
}

// WriteZeroes makes a range read as zeroes; flags is 0, which frees what it can, or
// WriteZeroesThick.
func (l *Lib) WriteZeroes(ctx context.Context, image uintptr, off, n int64, flags int) error {
	_, err := l.run(ctx, func(c uintptr) uintptr {
		r, _, _ := purego.SyscallN(l.aioZeroes, image, uintptr(off), uintptr(n), c, uintptr(flags), 0)
		return r
	})
	return err
}

// CompareAndWrite compares the range with the first half of b.B and writes the
// second. miscompare is the offset of the first byte that differs if the error is
// syscall.EILSEQ.
func (l *Lib) CompareAndWrite(ctx context.Context, image uintptr, off int64, b *Buffer) (miscompare int64, err error) {
	n := len(b.B) / 2
	out, err := l.Get(8)
	if err != nil {
		return 0, err
	}
	defer l.Put(out)
	_, err = l.run(ctx, func(c uintptr) uintptr {
		r, _, _ := purego.SyscallN(l.aioCompare, image, uintptr(off), uintptr(n), b.addr(), b.addr()+uintptr(n), c, out.addr(), 0)
		return r
	})
	return int64(*(*uint64)(unsafe.Pointer(&out.B[0]))), err
}

// Flush waits until the library keeps nothing back.
func (l *Lib) Flush(ctx context.Context, image uintptr) error {
	_, err := l.run(ctx, func(c uintptr) uintptr {
		r, _, _ := purego.SyscallN(l.aioFlush, image, c)
		return r
	})
	return err
}

// Watch calls fn, which must not block, when somebody has changed the image's
// header: its size, its snapshots.
func (l *Lib) Watch(image uintptr, fn func()) (stop func(), err error) {
	id := l.subjects.add(fn)
	var handle uint64
	if err := Errno(l.UpdateWatch(image, &handle, l.changed, id)); err != nil {
		l.subjects.remove(id)
		return nil, err
	}
	return func() {
		l.UpdateUnwatch(image, handle)
		l.subjects.remove(id)
	}, nil
}

// onChanged is rbd_update_callback_t.
func (l *Lib) onChanged(arg uintptr) uintptr {
	if fn, ok := l.subjects.get(arg).(func()); ok {
		fn()
	}
	return 0
}

// Diff calls fn for each run of [off, off+n) that has been written, in ascending
// order, in whole objects where the library can tell quickly.
func (l *Lib) Diff(image uintptr, off, n int64, fn func(off, n int64)) error {
	id := l.subjects.add(func(o, n int64, exists bool) {
		if exists {
			fn(o, n)
		}
	})
	defer l.subjects.remove(id)
	return Errno(l.DiffIterate2(image, nil, uint64(off), uint64(n), 1, 1, l.extent, id))
}

// onExtent is the callback of rbd_diff_iterate2.
func (l *Lib) onExtent(off, n uintptr, exists int32, arg uintptr) uintptr {
	if fn, ok := l.subjects.get(arg).(func(int64, int64, bool)); ok {
		fn(int64(off), int64(n), exists != 0)
	}
	return 0
}
