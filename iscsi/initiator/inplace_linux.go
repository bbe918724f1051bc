package initiator

import (
	"io"
	"net"
	"syscall"
	"unsafe"
)

// inPlace reads from a socket without the net package between: payloads to where
// they belong, with a little of what follows, on demand without waiting; and
// everything else into a buffer that it does not keep while it waits.
type inPlace struct {
	rc    syscall.RawConn
	iov   [2]syscall.Iovec
	wait  bool
	in    *input // of fill
	limit int
	n     int
	err   error

	place, buffer func(fd uintptr) bool
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
	t.place, t.buffer = t.readPlace, t.readBuffer
	return t
}

// fill waits for input and reads what there is to buf.B[in.end:limit], in a buffer
// that it takes then if there is none.
func (t *inPlace) fill(in *input, limit int) (int, error) {
	t.in, t.limit, t.n, t.err = in, limit, 0, nil
	err := t.rc.Read(t.buffer)
	t.in = nil
	if err == nil {
		err = t.err
	}
	return t.n, err
}

func (t *inPlace) readBuffer(fd uintptr) bool {
	t.in.hold()
	for {
		n, err := syscall.Read(int(fd), t.in.buf.B[t.in.end:t.limit])
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			t.in.release()
			return false
		case err != nil:
			t.err = err
		case n == 0:
			t.err = io.EOF
		default:
			t.n = n
		}
		return true
	}
}

// read fills a and then b, neither of them empty, with what there is. Without
// wait 0 means that there is nothing.
func (t *inPlace) read(a, b []byte, wait bool) (int, error) {
	t.iov[0].Base, t.iov[1].Base = &a[0], &b[0]
	t.iov[0].SetLen(len(a))
	t.iov[1].SetLen(len(b))
	t.wait, t.n, t.err = wait, 0, nil
	err := t.rc.Read(t.place)
	t.iov = [2]syscall.Iovec{}
	if err == nil {
		err = t.err
	}
	return t.n, err
}

func (t *inPlace) readPlace(fd uintptr) bool {
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
