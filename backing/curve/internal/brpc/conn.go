package brpc

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"blockgate/internal/sendq"
)

var (
	// ErrLost: the connection ended before the answer came; nobody knows whether
	// the request was carried out.
	ErrLost = errors.New("brpc: connection lost")
	// ErrUnanswered: no answer came by the deadline. The request may still be
	// carried out.
	ErrUnanswered = errors.New("brpc: no answer by the deadline")
)

// maxAbandoned bounds the answers that a connection still expects for requests
// nobody waits for any more.
const maxAbandoned = 1024

// Call is a request and its answer. From Do until it returns it is the
// connection's; it may be used again.
type Call struct {
	Service, Method string
	Msg             []byte // the request's message
	Out             []byte // the request's attachment; not copied if long
	// In is where the answer's attachment goes; N is how long that was. If it has
	// another length than In, In has unspecified content.
	In []byte
	N  int
	// Deadline for the answer. Zero: none.
	Deadline time.Time
	// Changes says that it matters if the request is carried out later. Without an
	// answer by the deadline the connection is then ended, and Dirty says so;
	// other requests are merely given up.
	Changes bool

	// The answer. Err is ErrLost, ErrUnanswered or nil; then Code and Text are
	// brpc's own error, and if that is 0 Reply is the answer's message, which
	// belongs to the Call.
	Err   error
	Code  int32
	Text  string
	Reply []byte

	id      uint64
	reading bool // the reader is filling In
	// The ticket's holder besides the queue is the reader, or who fails the
	// connection. It ends the call: nothing touches Out or In later.
	sendq.Ticket
}

// AppendHead implements sendq.Request.
func (x *Call) AppendHead(b []byte) []byte {
	return AppendRequest(b, x.Service, x.Method, x.id, x.Msg, len(x.Out))
}

// Payload implements sendq.Request.
func (x *Call) Payload() []byte { return x.Out }

// Conn is a connection on which requests are pipelined; answers come in any order.
// It is safe for concurrent use.
type Conn struct {
	nc   net.Conn
	tick time.Duration

	mu        sync.Mutex
	pending   map[uint64]*Call
	abandoned map[uint64]struct{}
	nextID    uint64
	err       error
	dirty     bool
	timer     *time.Timer

	queue *sendq.Queue

	failed chan struct{} // closed when the connection is of no more use
	gone   chan struct{} // closed when the reader has ended
}

// NewConn takes over a connection. tick is how finely deadlines are kept.
func NewConn(nc net.Conn, tick time.Duration) *Conn {
	c := &Conn{
		nc: nc, tick: tick, pending: make(map[uint64]*Call), abandoned: make(map[uint64]struct{}),
		failed: make(chan struct{}), gone: make(chan struct{}),
	}
	// A peer that does not read is bounded by the requests' deadlines, which end
	// the connection.
	c.queue = sendq.New(nc, 0, c.Fail)
	// The timer's function needs mu, so it finds the field set.
	c.mu.Lock()
	c.timer = time.AfterFunc(tick, c.watch)
	c.mu.Unlock()
	go c.read()
	return c
}

// Failed is closed when the connection is of no more use.
func (c *Conn) Failed() <-chan struct{} { return c.failed }

// Dirty reports, once Failed is closed, whether a request that Changes was lost.
func (c *Conn) Dirty() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dirty
}

// Err is why the connection failed.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Do sends a request and waits for its answer, the deadline or the connection's end.
func (c *Conn) Do(x *Call) {
	c.start(x)
	x.Wait()
}

func (c *Conn) start(x *Call) {
	x.Err, x.N, x.Code, x.Text, x.Reply, x.reading = nil, 0, 0, "", x.Reply[:0], false
	x.Begin(x.Out)
	c.mu.Lock()
	if c.err != nil {
		x.Err = c.err
		c.mu.Unlock()
		x.Refuse()
		return
	}
	c.nextID++
	x.id = c.nextID
	c.pending[x.id] = x
	c.mu.Unlock()
	c.queue.Send(x)
}

// read takes answers until the connection ends.
func (c *Conn) read() {
	defer close(c.gone)
	r := bufio.NewReaderSize(c.nc, 256<<10)
	for {
		if err := c.answer(r); err != nil {
			c.Fail(err)
			return
		}
	}
}

// answer takes one answer.
func (c *Conn) answer(r *bufio.Reader) error {
	h, err := r.Peek(HeaderSize)
	if err != nil {
		return err
	}
	head, err := ParseHeader((*[HeaderSize]byte)(h))
	if err != nil {
		return err
	}
	b, err := r.Peek(HeaderSize + head.Meta)
	if err != nil {
		return err
	}
	meta, err := ParseMeta(b[HeaderSize:])
	if err != nil {
		return err
	}
	msg := head.Body - head.Meta - meta.Attachment
	if msg < 0 || msg > MaxHead {
		return fmt.Errorf("brpc: a frame of %d bytes with %d of meta and %d of attachment", head.Body, head.Meta, meta.Attachment)
	}
	if meta.Compress != 0 {
		return fmt.Errorf("brpc: an answer is compressed (%d)", meta.Compress)
	}
	c.mu.Lock()
	x := c.pending[meta.ID]
	if x != nil {
		x.reading = true
	} else if _, ok := c.abandoned[meta.ID]; !ok {
		c.mu.Unlock()
		return fmt.Errorf("brpc: answer to request %d, which is not waiting for one", meta.ID)
	} else {
		delete(c.abandoned, meta.ID)
	}
	c.mu.Unlock()
	if x == nil {
		_, err := r.Discard(HeaderSize + head.Body)
		return err
	}
	x.Code = meta.ErrorCode
	if x.Code != 0 {
		x.Text = string(meta.ErrorText)
	}
	err = c.take(r, x, HeaderSize+head.Meta, msg, meta.Attachment)
	c.mu.Lock()
	delete(c.pending, meta.ID)
	if err != nil {
		x.Err = fmt.Errorf("%w: %w", ErrLost, err)
		c.dirty = c.dirty || x.Changes
	}
	c.mu.Unlock()
	x.Leave()
	return err
}

// take reads what follows the first skip bytes of the frame into the call.
func (c *Conn) take(r *bufio.Reader, x *Call, skip, msg, attachment int) error {
	if _, err := r.Discard(skip); err != nil {
		return err
	}
	b, err := r.Peek(msg)
	if err != nil {
		return err
	}
	x.Reply = append(x.Reply[:0], b...)
	if _, err := r.Discard(msg); err != nil {
		return err
	}
	x.N = attachment
	n, err := io.ReadFull(r, x.In[:min(attachment, len(x.In))])
	if err != nil {
		return err
	}
	_, err = r.Discard(attachment - n)
	return err
}

// Fail ends the connection and all requests on it.
func (c *Conn) Fail(why error) {
	c.mu.Lock()
	lost := c.fail(why, nil)
	c.mu.Unlock()
	c.end(lost)
}

// fail is Fail with mu held, up to where the calls are told. Those of late are
// out of time.
func (c *Conn) fail(why error, late map[*Call]bool) []*Call {
	if c.err != nil {
		return nil
	}
	c.err = fmt.Errorf("%w: %w", ErrLost, why)
	c.timer.Stop()
	var lost []*Call
	for _, x := range c.pending {
		if x.reading {
			continue // the reader ends it, which fails now
		}
		x.Err = c.err
		if late[x] {
			x.Err = ErrUnanswered
		}
		c.dirty = c.dirty || x.Changes
		lost = append(lost, x)
	}
	c.pending = nil
	c.nc.Close()
	return lost
}

func (c *Conn) end(lost []*Call) {
	for _, x := range lost {
		x.Leave()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		select {
		case <-c.failed:
		default:
			close(c.failed)
		}
	}
}

// Close ends the connection and waits until its goroutine is gone.
func (c *Conn) Close() {
	c.Fail(net.ErrClosed)
	<-c.gone
}

// watch ends what is overdue.
func (c *Conn) watch() {
	now := time.Now()
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	var given []*Call
	late := make(map[*Call]bool)
	for id, x := range c.pending {
		switch {
		case x.Deadline.IsZero() || now.Before(x.Deadline):
		case x.Changes || x.reading || len(x.Out) > 0:
			late[x] = true
		default:
			delete(c.pending, id)
			c.abandoned[id] = struct{}{}
			x.Err = ErrUnanswered
			given = append(given, x)
		}
	}
	if len(late) > 0 || len(c.abandoned) > maxAbandoned {
		given = append(given, c.fail(ErrUnanswered, late)...)
	} else {
		c.timer.Reset(c.tick)
	}
	c.mu.Unlock()
	c.end(given)
}
