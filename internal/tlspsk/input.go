package tlspsk

import (
	"io"
	"net"
	"syscall"

	"blockgate/internal/bufpool"
)

// inputSize is how much of the stream is taken at once, in bytes: three records at
// least.
const inputSize = 64 << 10

// input is what was received and not opened yet. While it waits for a socket and
// has nothing it holds no memory, and no more than a record's worth of its size if
// it has a part of one.
type input struct {
	nc   net.Conn
	raw  syscall.RawConn // nil: nc has none, and the buffer stays
	buf  *bufpool.Buf    // nil: nothing is unread
	r, w int             // buf.B[r:w] is unread

	readable func(fd uintptr) bool
	n        int
	err      error
}

func newInput(nc net.Conn) input {
	in := input{nc: nc}
	if s, ok := nc.(syscall.Conn); ok {
		in.raw, _ = s.SyscallConn()
	}
	return in
}

func (in *input) unread() []byte {
	if in.buf == nil {
		return nil
	}
	return in.buf.B[in.r:in.w]
}

// move changes the buffer; the unread bytes go along.
func (in *input) move(b *bufpool.Buf) {
	n := copy(b.B, in.unread())
	bufpool.Put(in.buf)
	in.buf, in.r, in.w = b, 0, n
}

// room is where the next bytes go; the unread ones are at the front.
func (in *input) room() []byte {
	switch {
	case in.buf == nil || len(in.buf.B) < inputSize:
		in.move(bufpool.Get(inputSize))
	case in.r > 0:
		in.w = copy(in.buf.B, in.unread())
		in.r = 0
	}
	return in.buf.B[in.w:]
}

// shrink gives the memory back that what is unread does not need.
func (in *input) shrink() {
	switch n := in.w - in.r; {
	case n == 0:
		bufpool.Put(in.buf)
		in.buf, in.r, in.w = nil, 0, 0
	case bufpool.Size(n) < len(in.buf.B):
		in.move(bufpool.Get(n))
	}
}

// fillTo reads until n bytes are unread, of which there may be inputSize at most.
func (in *input) fillTo(n int) error {
	for in.w-in.r < n {
		k, err := in.read()
		in.w += k
		if err != nil && in.w-in.r < n {
			if err == io.EOF {
				return ErrTruncated
			}
			return err
		}
	}
	return nil
}

// read waits for input and takes what there is.
func (in *input) read() (int, error) {
	if in.raw == nil {
		return in.nc.Read(in.room())
	}
	if in.readable == nil {
		in.readable = in.readNow
	}
	in.n, in.err = 0, nil
	if err := in.raw.Read(in.readable); err != nil {
		return 0, err
	}
	if in.n == 0 && in.err == nil {
		return 0, io.EOF
	}
	return in.n, in.err
}

// readNow takes what is there. It reports false when there is nothing.
func (in *input) readNow(fd uintptr) bool {
	p := in.room()
	for {
		n, err := syscall.Read(int(fd), p)
		switch err {
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			in.shrink()
			return false
		}
		in.n, in.err = max(n, 0), err
		return true
	}
}
