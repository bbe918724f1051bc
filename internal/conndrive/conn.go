package conndrive

import (
	"net"
	"sync/atomic"
	"syscall"

	"blockgate/internal/bufpool"
)

// How much of the stream is taken at once, in bytes.
const (
	socketRead = 256 << 10
	// A transport that must be read with the buffer in hand gets a smaller one:
	// an idle connection keeps it, and TLS gives no more than 16 KiB at once.
	plainRead = 2 * MaxPiece
	// Where payloads are received in place this is enough for the next headers.
	aheadRead = 4 << 10
)

// Conn drives one connection. The zero value is not usable; see New.
type Conn struct {
	nc  net.Conn
	raw syscall.RawConn // nil for transports that have none
	aw  awaiter         // nil: nc is none
	m   Machine

	wake   chan struct{} // capacity 1
	writer atomic.Int32  // writerNotYet, writerNone, writerRuns, writerNever
	done   chan struct{} // the reader ended
	wrote  chan struct{} // the writer ended
	werr   error         // why, if it failed; before wrote is closed

	taken uint64 // what the peer had taken when SeeProgress last looked

	in input // reader only

	byReader, byWriter sender
}

// States of Conn.writer.
const (
	writerNotYet int32 = iota
	writerNone
	writerRuns
	writerNever
)

// New makes a driver for nc, which stays the caller's to close. Sockets (TCP and
// Unix) are read and written without the net package between; everything else,
// TLS above all, goes through Read and Write.
func New(nc net.Conn) *Conn {
	c := &Conn{nc: nc, wake: make(chan struct{}, 1), done: make(chan struct{}), wrote: make(chan struct{})}
	c.byReader.c, c.byWriter.c = c, c
	switch s := nc.(type) {
	case *net.TCPConn:
		c.raw, _ = s.SyscallConn()
	case *net.UnixConn:
		c.raw, _ = s.SyscallConn()
	case awaiter:
		c.aw = s
	}
	return c
}

// awaiter is a transport that can wait for input without a buffer to read into.
type awaiter interface{ AwaitInput() error }

// SendsWithoutWaiting reports that what the reader sends is offered to the
// transport without waiting, and that Settle is called before any wait. Only then
// may the machine send from memory that is on loan.
func (c *Conn) SendsWithoutWaiting() bool { return c.raw != nil && canWritev }

// Attach sets the machine. It comes before Run and SeeProgress.
func (c *Conn) Attach(m Machine) { c.m = m }

// Wake says that output was queued outside of Feed. It does not block, is safe
// for concurrent use, and does nothing before Run, which sends what is there.
func (c *Conn) Wake() {
	if c.writer.CompareAndSwap(writerNone, writerRuns) {
		go c.writeLoop()
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run is the reader: it drives the machine until the connection ends, and
// returns why; io.EOF if the peer closed it. rest is what was read of the stream
// before. When Run returns, the transport is closed, the writer has ended, and
// nothing calls the machine any more; what it had queued may be unsent. To end
// it, close the transport.
func (c *Conn) Run(rest []byte) error {
	if len(rest) > 0 {
		c.in.buf = bufpool.Get(max(len(rest), MaxPiece))
		c.in.w = copy(c.in.buf.B, rest)
	}
	c.writer.Store(writerNone)
	err := c.read()
	c.nc.Close() // unblocks the writer
	close(c.done)
	if c.writer.Swap(writerNever) == writerRuns {
		<-c.wrote
		if c.werr != nil {
			err = c.werr // it came first, and closed the transport
		}
	}
	c.in.free()
	return err
}

func (c *Conn) read() error {
	if err := c.feed(); err != nil {
		return err
	}
	for {
		if d := c.m.Direct(); d != nil {
			// The rest of a long payload goes straight to where it belongs.
			n, err := c.fillDirect(d)
			if n > 0 {
				c.m.Filled(n)
			}
			if err != nil {
				return err
			}
			if n < len(d) {
				continue
			}
		} else if err := c.fill(); err != nil {
			return err
		}
		if err := c.feed(); err != nil {
			return err
		}
	}
}

// feed gives the machine what was read, and sends what that made.
func (c *Conn) feed() error {
	for {
		n, err := c.m.Feed(c.in.unread())
		c.in.r += n
		var werr error
		if c.m.EndFeed() || c.m.BeginSend() {
			werr = c.byReader.send()
		}
		if err != nil {
			return err
		}
		if werr != nil {
			return werr
		}
		c.m.WaitRoom()
		if !c.m.Again() {
			return nil
		}
	}
}

// writeLoop sends what others finish while the reader waits.
func (c *Conn) writeLoop() {
	defer close(c.wrote)
	for {
		select {
		case <-c.done:
			return
		case <-c.wake:
		}
		if !c.m.BeginSend() {
			continue
		}
		if err := c.byWriter.send(); err != nil {
			select {
			case <-c.done: // the reader ended first, and knows why
			default:
				c.werr = err
			}
			c.nc.Close()
			return
		}
	}
}

// SeeProgress calls the machine's Progress if the peer took anything since the
// last call. A batch is long for a slow peer, and the system's buffer longer:
// what counts is whether the other end takes anything at all. Call it once a
// second or so, from one goroutine.
func (c *Conn) SeeProgress() {
	if c.raw == nil || !c.m.Sending() {
		return
	}
	if n, ok := takenBytes(c.raw); ok && n != c.taken {
		c.taken = n
		c.m.Progress()
	}
}
