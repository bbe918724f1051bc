package conndrive

import (
	"io"
	"syscall"

	"blockgate/internal/bufpool"
)

// input is the part of the stream that is read and not consumed.
type input struct {
	buf  *bufpool.Buf // nil: nothing is unread
	r, w int          // buf.B[r:w] is unread
	// long says that payloads are long enough to be received in place: little is
	// read ahead then, since what is read ahead of a payload is copied.
	long bool
	lone lone

	readable, direct func(fd uintptr) bool
	dst              []byte // of direct
	vec              pair
	n                int
	err              error
}

func (in *input) unread() []byte {
	if in.buf == nil {
		return nil
	}
	return in.buf.B[in.r:in.w]
}

// room readies a buffer of the size with the unread bytes at its front.
func (in *input) room(size int) {
	if in.buf == nil || len(in.buf.B) < size {
		in.move(bufpool.Get(size))
		return
	}
	if in.r > 0 {
		in.w = copy(in.buf.B, in.buf.B[in.r:in.w])
		in.r = 0
	}
}

// move changes the buffer; the unread bytes go along.
func (in *input) move(b *bufpool.Buf) {
	n := copy(b.B, in.unread())
	bufpool.Put(in.buf)
	in.buf, in.r, in.w = b, 0, n
}

// shrink gives the buffer back while there is nothing to read. Part of a piece,
// of which the rest may never come, stays in a buffer of its size.
func (in *input) shrink() {
	switch n := in.w - in.r; {
	case n == 0:
		in.free()
	case bufpool.Size(n) < len(in.buf.B):
		in.move(bufpool.Get(n))
	}
}

func (in *input) free() {
	bufpool.Put(in.buf)
	in.buf, in.r, in.w = nil, 0, 0
}

// fill waits for input and takes what there is. While it waits on a socket, or on
// a transport that can wait by itself, with nothing unread the connection holds no
// buffer.
func (c *Conn) fill() error {
	if c.raw != nil {
		return c.fillFromSocket()
	}
	in := &c.in
	if c.aw != nil {
		if in.buf != nil {
			in.shrink()
		}
		if err := c.aw.AwaitInput(); err != nil {
			return err
		}
	}
	in.room(plainRead)
	n, err := c.nc.Read(in.buf.B[in.w:])
	in.w += n
	if n > 0 {
		return nil // the error comes again
	}
	return err
}

func (c *Conn) fillFromSocket() error {
	in := &c.in
	if in.readable == nil {
		in.readable = in.readNow
	}
	if err := in.from(c.raw, in.readable); err != nil {
		return err
	}
	in.w += in.n
	return nil
}

// from reads by one of the functions below.
func (in *input) from(raw syscall.RawConn, read func(uintptr) bool) error {
	if err := raw.Read(read); err != nil {
		return err
	}
	if in.err != nil {
		return in.err
	}
	if in.n == 0 {
		return io.EOF
	}
	return nil
}

// readNow takes what is there. It reports false when there is nothing.
func (in *input) readNow(fd uintptr) bool {
	size := socketRead
	if in.long && in.w-in.r < aheadRead/2 {
		size = aheadRead
	}
	in.room(size)
	p := in.buf.B[in.w:max(size, in.w)]
	for {
		n, err := syscall.Read(int(fd), p)
		if err == syscall.EINTR {
			continue
		}
		if err == syscall.EAGAIN {
			if in.lone.await(fd) {
				continue
			}
			in.shrink()
			return false
		}
		in.lone.reads++
		in.n, in.err = n, err
		in.long = in.long && n < len(p)
		return true
	}
}

// fillDirect waits for input and takes what there is into dst, and a little of
// what follows, where the next payload's header is. It returns how much of dst
// was filled.
func (c *Conn) fillDirect(dst []byte) (int, error) {
	in := &c.in
	in.long = true
	if c.raw == nil || !canReadv {
		// All input was fed, or it would not be asked for.
		in.free()
		return c.nc.Read(dst)
	}
	if in.direct == nil {
		in.direct = in.readDirect
	}
	in.dst = dst
	err := in.from(c.raw, in.direct)
	in.dst = nil
	if err != nil {
		return 0, err
	}
	n := min(in.n, len(dst))
	in.w += in.n - n
	return n, nil
}

// readDirect is readNow for fillDirect.
func (in *input) readDirect(fd uintptr) bool {
	in.room(aheadRead)
	for {
		n, err := in.vec.readv(fd, in.dst, in.buf.B[:aheadRead])
		if err == syscall.EINTR {
			continue
		}
		if err == syscall.EAGAIN {
			in.free()
			return false
		}
		in.n, in.err = n, err
		return true
	}
}
