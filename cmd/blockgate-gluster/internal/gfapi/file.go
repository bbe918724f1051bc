package gfapi

import (
	"context"
	"fmt"
	"io"
	"syscall"
	"unsafe"
)

// File is an open file. All methods are safe for concurrent use, Close excepted,
// which nothing may be under way at. Errors are of kind syscall.Errno, or the
// context's, or Unanswered.
type File struct {
	lib *Library
	ptr uintptr
}

// ReadAt reads up to len(p) bytes, at most MaxIO of them; fewer are read at the end
// of the file only. When the context ends the error is Unanswered; p is not touched
// any more.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	buf, err := f.lib.buffers.get(ctx, len(p))
	if err != nil {
		return 0, err
	}
	x, err := f.lib.start(buf, func(number uintptr) (uintptr, syscall.Errno) {
		return f.lib.invoke(f.lib.fn.preadAsync, f.ptr, uintptr(unsafe.Pointer(&buf[0])), uintptr(len(p)), uintptr(off), 0, f.lib.complete, number)
	})
	if err != nil {
		return 0, err
	}
	if err := x.wait(ctx); err != nil {
		return 0, err
	}
	defer f.lib.buffers.put(buf)
	n, err := x.result()
	if err == nil && n > len(p) {
		err = fmt.Errorf("%d bytes of %d read: %w", n, len(p), syscall.EIO)
	}
	if err != nil {
		return 0, err
	}
	return copy(p, buf[:n]), nil
}

// WriteAt writes up to len(p) bytes, at most MaxIO of them, and says how many.
// With durable, they are on the bricks' media when it returns. When the context
// ends the error is Unanswered; p is not touched any more.
func (f *File) WriteAt(ctx context.Context, p []byte, off int64, durable bool) (int, error) {
	buf, err := f.lib.buffers.get(ctx, len(p))
	if err != nil {
		return 0, err
	}
	copy(buf, p)
	flags := uintptr(0)
	if durable {
		flags = syscall.O_DSYNC
	}
	x, err := f.lib.start(buf, func(number uintptr) (uintptr, syscall.Errno) {
		return f.lib.invoke(f.lib.fn.pwriteAsync, f.ptr, uintptr(unsafe.Pointer(&buf[0])), uintptr(len(p)), uintptr(off), flags, f.lib.complete, number)
	})
	if err != nil {
		return 0, err
	}
	if err := x.wait(ctx); err != nil {
		return 0, err
	}
	defer f.lib.buffers.put(buf)
	n, err := x.result()
	switch {
	case err != nil:
		return 0, err
	case n > len(p):
		return 0, fmt.Errorf("%d bytes of %d written: %w", n, len(p), syscall.EIO)
	case n == 0 && len(p) > 0:
		return 0, fmt.Errorf("%w: %w", io.ErrShortWrite, syscall.EIO)
	}
	return n, nil
}

// Datasync makes what was written durable. An error may stand for a write that had
// been answered, if the volume's translators write behind. When the context ends
// the error is Unanswered, as for Discard and Zerofill.
func (f *File) Datasync(ctx context.Context) error {
	return f.do(ctx, func(number uintptr) (uintptr, syscall.Errno) {
		return f.lib.invoke(f.lib.fn.fdatasyncAsync, f.ptr, f.lib.complete, number)
	})
}

// Discard punches a hole.
func (f *File) Discard(ctx context.Context, off, n int64) error {
	return f.do(ctx, func(number uintptr) (uintptr, syscall.Errno) {
		return f.lib.invoke(f.lib.fn.discardAsync, f.ptr, uintptr(off), uintptr(n), f.lib.complete, number)
	})
}

// Zerofill writes zeroes without moving them. It makes the file longer if it has to.
func (f *File) Zerofill(ctx context.Context, off, n int64) error {
	return f.do(ctx, func(number uintptr) (uintptr, syscall.Errno) {
		return f.lib.invoke(f.lib.fn.zerofillAsync, f.ptr, uintptr(off), uintptr(n), f.lib.complete, number)
	})
}

func (f *File) do(ctx context.Context, fn func(number uintptr) (uintptr, syscall.Errno)) error {
	x, err := f.lib.start(nil, fn)
	if err != nil {
		return err
	}
	if err := x.wait(ctx); err != nil {
		return err
	}
	_, err = x.result()
	return err
}

// Stat is fstat(2).
func (f *File) Stat() (syscall.Stat_t, error) {
	var st syscall.Stat_t
	r, errno := f.lib.invoke(f.lib.fn.fstat, f.ptr, uintptr(unsafe.Pointer(&st)))
	return st, check(r, errno)
}

// Truncate sets the size.
func (f *File) Truncate(size int64) error {
	r, errno := f.lib.invoke(f.lib.fn.ftruncate, f.ptr, uintptr(size), 0, 0)
	return check(r, errno)
}

// What Seek looks for, as lseek(2) has it.
const (
	SeekData = 3
	SeekHole = 4
)

// Seek finds the next data or hole from off on; ENXIO if there is none.
func (f *File) Seek(off int64, whence int) (int64, error) {
	r, errno := f.lib.invoke(f.lib.fn.lseek, f.ptr, uintptr(off), uintptr(whence))
	if int64(r) < 0 {
		return 0, reason(errno)
	}
	return int64(r), nil
}

// Locked tells whether another client has a lock of any part of the file that one
// for writing would conflict with.
func (f *File) Locked() (bool, error) {
	lock := syscall.Flock_t{Type: syscall.F_WRLCK}
	r, errno := f.lib.invoke(f.lib.fn.posixLock, f.ptr, syscall.F_GETLK, uintptr(unsafe.Pointer(&lock)))
	if err := check(r, errno); err != nil {
		return false, err
	}
	return lock.Type != syscall.F_UNLCK, nil
}

// Lock takes a lock of the whole file, for writing. Where the volume enforces locks
// (features.enforce-mandatory-lock) it takes it from whoever has it: their reads
// and writes are refused by the bricks from then on, with EAGAIN and EBUSY. Elsewhere
// another's lock is EAGAIN, and a mandatory one EINVAL. Bricks forget a lock when the
// connection ends that it was taken by.
func (f *File) Lock(mandatory bool) error {
	lock := syscall.Flock_t{Type: syscall.F_WRLCK} // from 0 on, without end
	if !mandatory {
		r, errno := f.lib.invoke(f.lib.fn.posixLock, f.ptr, syscall.F_SETLK, uintptr(unsafe.Pointer(&lock)))
		return check(r, errno)
	}
	name, value := cString("trusted.glusterfs.enforce-mandatory-lock"), cString("set")
	r, errno := f.lib.invoke(f.lib.fn.fsetxattr, f.ptr, uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(value)), 4, 0)
	if err := check(r, errno); err != nil {
		return err
	}
	const kind = 1 // GLFS_LK_MANDATORY
	r, errno = f.lib.invoke(f.lib.fn.fileLock, f.ptr, syscall.F_SETLK, uintptr(unsafe.Pointer(&lock)), kind)
	return check(r, errno)
}

// Close closes the file.
func (f *File) Close() error {
	r, errno := f.lib.invoke(f.lib.fn.close, f.ptr)
	return check(r, errno)
}
