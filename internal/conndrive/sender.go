package conndrive

import (
	"net"
	"syscall"

	"blockgate/internal/bufpool"
)

// sender is what one of the two goroutines sends with.
type sender struct {
	c        *Conn
	bufs     net.Buffers // unsent, of the batch
	vec      *vectors
	writable func(fd uintptr) bool
	err      error
}

// send writes all that is queued. The caller has the right to send.
func (o *sender) send() error {
	c := o.c
	if c.SendsWithoutWaiting() {
		o.vec = vectorPool.Get().(*vectors)
		defer func() {
			vectorPool.Put(o.vec)
			o.vec = nil
		}()
	}
	for {
		o.bufs = c.m.Gather()
		if o.bufs == nil {
			return nil
		}
		if err := o.write(); err != nil {
			c.m.SendFailed(err)
			return err
		}
	}
}

// write hands a batch to the transport.
func (o *sender) write() error {
	if o.vec == nil {
		if err := o.c.m.Settle(); err != nil {
			return err
		}
		return o.writePlain()
	}
	if o.writable == nil {
		o.writable = o.writeNow
	}
	o.err = nil
	if err := o.c.raw.Write(o.writable); err != nil {
		return err
	}
	return o.err
}

// writeNow writes what the socket takes. It reports false when there is more:
// before the wait for the peer nothing may be on loan.
func (o *sender) writeNow(fd uintptr) bool {
	for {
		n, err := o.vec.writev(fd, o.bufs)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			o.err = o.c.m.Settle()
			return o.err != nil
		case err != nil:
			o.err = err
			return true
		}
		for len(o.bufs) > 0 && n >= len(o.bufs[0]) {
			n -= len(o.bufs[0])
			o.bufs[0] = nil // the machine sees what is left
			o.bufs = o.bufs[1:]
		}
		if len(o.bufs) == 0 {
			return true
		}
		o.bufs[0] = o.bufs[0][n:]
		o.c.m.Progress()
	}
}

// plainWrite is how much is written at once to a transport without vectors, in
// bytes: four records of TLS.
const plainWrite = 64 << 10

// writePlain writes a batch piece by piece. Short vectors go together: each Write
// is a record of TLS, with a header and a tag of its own.
func (o *sender) writePlain() error {
	b := bufpool.Get(plainWrite)
	defer bufpool.Put(b)
	n := 0
	flush := func() error {
		if n == 0 {
			return nil
		}
		_, err := o.c.nc.Write(b.B[:n])
		n = 0
		o.c.m.Progress()
		return err
	}
	for _, v := range o.bufs {
		for len(v) > 0 {
			if n == 0 && len(v) >= plainWrite {
				if _, err := o.c.nc.Write(v[:plainWrite]); err != nil {
					return err
				}
				o.c.m.Progress()
				v = v[plainWrite:]
				continue
			}
			m := copy(b.B[n:], v)
			n, v = n+m, v[m:]
			if n == plainWrite {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}
