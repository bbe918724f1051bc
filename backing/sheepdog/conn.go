package sheepdog

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"blockgate/backing/sheepdog/internal/wire"
	"blockgate/internal/sendq"
)

// errLost is of a request whose connection ended before its answer: nobody knows
// whether it was done.
var errLost = errors.New("sheepdog: connection to the sheep was lost")

// call is one request and what becomes of it. It belongs to who does it; the
// connection has it between start and the receive from done.
type call struct {
	req  wire.Request
	out  []byte // payload
	in   []byte // where the answer's payload goes
	n    int    // how much of in was filled
	resp wire.Response
	err  error

	patience uint32 // ticks of the connection to wait for the answer
	tick     uint32 // when it began
	// The ticket's holder besides the queue is the reader, or who fails the
	// connection. It ends the call: nothing touches out or in later.
	sendq.Ticket
}

// AppendHead implements sendq.Request.
func (c *call) AppendHead(b []byte) []byte {
	n := len(b)
	b = append(b, make([]byte, wire.HeaderSize)...)
	c.req.Put((*[wire.HeaderSize]byte)(b[n:]))
	return b
}

// Payload implements sendq.Request.
func (c *call) Payload() []byte { return c.out }

var calls = sync.Pool{New: func() any { return new(call) }}

// conn is a connection on which requests are pipelined; answers come in any order.
type conn struct {
	nc      net.Conn
	gateway int // which of the client's gateways
	timeout time.Duration
	lost    func() // called when it fails other than by close, with mu held

	mu      sync.Mutex
	pending map[uint32]*call
	nextID  uint32
	tick    uint32
	err     error
	timer   *time.Timer

	queue *sendq.Queue

	gone chan struct{} // closed when the reader has ended
}

// ticks are how finely the time limit of answers is kept.
const ticks = 8

func newConn(nc net.Conn, gateway int, timeout time.Duration, lost func()) *conn {
	c := &conn{
		nc: nc, gateway: gateway, timeout: timeout, lost: lost,
		pending: make(map[uint32]*call), gone: make(chan struct{}),
	}
	c.queue = sendq.New(nc, timeout, c.fail)
	c.mu.Lock()
	c.timer = time.AfterFunc(timeout/ticks, c.watch)
	c.mu.Unlock()
	go c.read()
	return c
}

// do sends the request and waits for its answer, however long that takes: a
// connection that gives none is ended after its time limit. The error is errLost
// or that of a sheep that breaks the protocol; then in has unspecified content.
func (c *conn) do(x *call) error {
	c.start(x)
	x.Wait()
	return x.err
}

func (c *conn) start(x *call) {
	x.err = nil
	x.n = 0
	x.Begin(x.out)
	c.mu.Lock()
	if c.err != nil {
		x.err = c.err
		c.mu.Unlock()
		x.Refuse()
		return
	}
	c.nextID++
	for c.pending[c.nextID] != nil {
		c.nextID++
	}
	x.req.ID, x.tick = c.nextID, c.tick
	x.req.Length = uint32(max(len(x.out), len(x.in)))
	c.pending[x.req.ID] = x
	c.mu.Unlock()
	c.queue.Send(x)
}

// read takes answers until the connection ends.
func (c *conn) read() {
	defer close(c.gone)
	r := bufio.NewReaderSize(c.nc, 256<<10)
	var h [wire.HeaderSize]byte
	for {
		if _, err := io.ReadFull(r, h[:]); err != nil {
			c.fail(err)
			return
		}
		resp := wire.ParseResponse(&h)
		c.mu.Lock()
		x := c.pending[resp.ID]
		delete(c.pending, resp.ID)
		c.mu.Unlock()
		if x == nil {
			c.fail(fmt.Errorf("sheepdog: answer to request %d, which was not sent", resp.ID))
			return
		}
		err := c.answer(x, &resp, r)
		if err != nil {
			x.err = errLost
		}
		x.Leave()
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// answer takes the payload of the answer.
func (c *conn) answer(x *call, resp *wire.Response, r *bufio.Reader) error {
	switch {
	case resp.Op != x.req.Op:
		return fmt.Errorf("sheepdog: answer to operation %#x is of operation %#x", x.req.Op, resp.Op)
	case int64(resp.Length) > int64(len(x.in)):
		return fmt.Errorf("sheepdog: answer of %d bytes to a request for %d", resp.Length, len(x.in))
	}
	x.resp, x.n = *resp, int(resp.Length)
	if r.Buffered() >= x.n {
		_, err := io.ReadFull(r, x.in[:x.n])
		return err
	}
	// The rest of a payload has a time limit of its own, as the request is not
	// pending any more.
	if err := c.nc.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
		return err
	}
	if _, err := io.ReadFull(r, x.in[:x.n]); err != nil {
		return err
	}
	return c.nc.SetReadDeadline(time.Time{})
}

// fail ends the connection and all requests on it.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	if c.lost != nil && !errors.Is(err, net.ErrClosed) {
		c.lost()
	}
	c.err = fmt.Errorf("%w: %w", errLost, err)
	lost := c.pending
	c.pending = nil
	c.timer.Stop()
	c.mu.Unlock()
	c.nc.Close()
	for _, x := range lost {
		x.err = c.err
		x.Leave()
	}
}

// close ends the connection and waits until its goroutine is gone.
func (c *conn) close() {
	c.fail(net.ErrClosed)
	<-c.gone
}

func (c *conn) alive() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err == nil
}

// watch ends a connection on which an answer is overdue.
func (c *conn) watch() {
	c.mu.Lock()
	c.tick++
	overdue := false
	for _, x := range c.pending {
		overdue = overdue || c.tick-x.tick > x.patience
	}
	if c.err == nil {
		c.timer.Reset(c.timeout / ticks)
	}
	c.mu.Unlock()
	if overdue {
		c.fail(errors.New("no answer within the time limit"))
	}
}
