package initiator

import (
	"io"
	"net"
	"syscall"
	"unsafe"
)

// inPlace reads payloads from a socket to where they belong, with a little of
// what follows, and on demand without waiting.
type inPlace struct {
	rc   syscall.RawConn
	iov  [2]syscall.Iovec
	wait bool
	n    int
	err  error
	fn   func(fd uintptr) bool
}

// newInPlace returns nil for what is no socket.
func newInPlace(r io.Reader) *inPlace {
	nc, ok := r.(*net.TCPConn)
	if !ok {
		return nil
	}
	rc, err := nc.SyscallConn()
	if err != nil {
		return nil
	}
	t := &inPlace{rc: rc}
	t.fn = t.step
	return t
}

// read fills a and then b, neither of them empty, with what there is. Without
// wait 0 means that there is nothing.
func (t *inPlace) read(a, b []byte, wait bool) (int, error) {
	t.iov[0].Base, t.iov[1].Base = &a[0], &b[0]
	t.iov[0].SetLen(len(a))
	t.iov[1].SetLen(len(b))
	t.wait, t.n, t.err = wait, 0, nil
	err := t.rc.Read(t.fn)
	t.iov = [2]syscall.Iovec{}
	if err == nil {
		err = t.err
	}
	return t.n, err
}

func (t *inPlace) step(fd uintptr) bool {
	for {
		n, _, errno := syscall.Syscall(syscall.SYS_READV, fd, uintptr(unsafe.Pointer(&t.iov)), 2)
		switch {
		case errno == syscall.EINTR:
			continue
		case errno == syscall.EAGAIN:
			return !t.wait
		case errno != 0:
			t.err = errno
		case n == 0:
			t.err = io.EOF
		default:
			t.n = int(n)
		}
		return true
	}
}
