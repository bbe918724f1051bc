package gfapi

import (
	"runtime"
	"syscall"
	"unsafe"

	"github.com/ebitengine/purego"
)

// invoke calls a function of the library, and says what errno is if it was set.
// purego does not keep errno on Linux, so the thread is held while it is read.
//
// Arguments made of pointers have to be converted in the call itself, as for
// syscall.Syscall.
//
//go:uintptrescapes
func (l *Library) invoke(fn uintptr, args ...uintptr) (ret uintptr, errno syscall.Errno) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	e := l.errno()
	*e = 0
	ret, _, _ = purego.SyscallN(fn, args...)
	return ret, syscall.Errno(*e)
}

// errno is where the C library keeps it for this thread.
func (l *Library) errno() *int32 {
	at, _, _ := purego.SyscallN(l.errnoLocation)
	// Memory of the C library, which Go's collector does not know.
	return *(**int32)(unsafe.Pointer(&at))
}

// check turns the result of a call that returns a negative int for an error into
// one, which always is a syscall.Errno.
func check(ret uintptr, errno syscall.Errno) error {
	if int32(ret) >= 0 {
		return nil
	}
	return reason(errno)
}

// reason is EIO where the library gives none.
func reason(errno syscall.Errno) error {
	if errno == 0 {
		return syscall.EIO
	}
	return errno
}

// cString is s with a zero byte after it. The caller sees to it that there is none
// in s.
func cString(s string) *byte {
	b := make([]byte, len(s)+1)
	copy(b, s)
	return &b[0]
}
