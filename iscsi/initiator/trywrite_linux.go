package initiator

import (
	"net"
	"syscall"
	"unsafe"
)

// maxVectors is the kernel's UIO_MAXIOV.
const maxVectors = 1024

// tryWriter writes without waiting for the peer.
type tryWriter struct {
	rc  syscall.RawConn // nil: every write may wait
	b   *batch
	iov []syscall.Iovec
	err error
	all bool
	fn  func(fd uintptr) bool
}

func newTryWriter(nc net.Conn) *tryWriter {
	t := new(tryWriter)
	if sc, ok := nc.(syscall.Conn); ok {
		if rc, err := sc.SyscallConn(); err == nil {
			t.rc = rc
		}
	}
	t.fn = t.step
	return t
}

// write sends what it can of b.vec and reports whether that was all.
func (t *tryWriter) write(b *batch) (all bool, err error) {
	if t.rc == nil {
		return false, nil
	}
	t.b, t.all, t.err = b, false, nil
	err = t.rc.Write(t.fn)
	t.b = nil
	if err == nil {
		err = t.err
	}
	return t.all, err
}

// step always returns true, so that the poller does not wait for room.
func (t *tryWriter) step(fd uintptr) bool {
	for len(t.b.vec) > 0 {
		t.iov = t.iov[:0]
		for _, p := range t.b.vec[:min(len(t.b.vec), maxVectors)] {
			v := syscall.Iovec{Base: unsafe.SliceData(p)}
			v.SetLen(len(p))
			t.iov = append(t.iov, v)
		}
		n, _, errno := syscall.Syscall(syscall.SYS_WRITEV, fd,
			uintptr(unsafe.Pointer(unsafe.SliceData(t.iov))), uintptr(len(t.iov)))
		clear(t.iov)
		switch errno {
		case 0:
			t.b.consumed(int(n))
		case syscall.EINTR:
		case syscall.EAGAIN:
			return true
		default:
			t.err = errno
			return true
		}
	}
	t.all = true
	return true
}
