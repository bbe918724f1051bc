package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"blockgate/internal/sendq"
	"blockgate/nbd"
)

// conn is a connection in the transmission phase. Requests are pipelined; the
// server answers in any order.
type conn struct {
	nc  net.Conn
	in  *input
	exp *Export

	mu       sync.Mutex
	stall    time.Duration // negative: no limit
	every    time.Duration // between ticks
	pending  map[uint64]*call
	cookie   uint64
	tick     uint32
	err      error
	timer    *time.Timer
	draining bool
	drained  chan struct{} // closed when nothing is pending any more, if draining
	idle     bool          // drained is closed
	slow     bool          // an answer is late
	within   bool          // the reader is in the middle of a reply
	arrivals uint32        // of the input, when it was last seen to change
	silent   uint32        // ticks since, within a reply

	queue *sendq.Queue

	failed func(error)     // told once of the end; not under mu
	slowly func(slow bool) // told when answers are late, and when not any more
	gone   chan struct{}   // closed when the reader has ended
}

// ticks are how finely the time limit of answers is kept. An answer is late
// after lateTicks.
const (
	ticks     = 8
	lateTicks = 2
)

// abandonGrace is how long who gives up waits for a payload that is on its way
// before he ends the connection.
const abandonGrace = time.Second

// disconnectTime bounds the farewell to a server.
const disconnectTime = 200 * time.Millisecond

func newConn(nc net.Conn, exp *Export, stall time.Duration, failed func(error), slowly func(bool)) *conn {
	limit := stall
	if stall < 0 {
		// A server that reads nothing for so long is left all the same: who is in
		// the middle of sending to it could not give up otherwise.
		limit = DefaultStall
	}
	every := tickOf(stall)
	c := &conn{
		nc: nc, in: newInput(nc), exp: exp, stall: stall, every: every,
		pending: make(map[uint64]*call), drained: make(chan struct{}),
		failed: failed, slowly: slowly, gone: make(chan struct{}),
	}
	c.queue = sendq.New(nc, limit, c.fail)
	c.mu.Lock()
	c.timer = time.AfterFunc(every, c.watch)
	c.mu.Unlock()
	return c
}

// tickOf is the time between ticks.
func tickOf(stall time.Duration) time.Duration {
	if stall < 0 {
		return 2 * time.Second
	}
	return max(stall/ticks, time.Millisecond)
}

// setStall changes the limit. Who waits has as many ticks left as before, of the
// new length. How long sending may take stays: it ends with the connection, and
// that is not what a call waits for in the end.
func (c *conn) setStall(limit time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stall == limit {
		return
	}
	c.stall, c.every = limit, tickOf(limit)
	if c.err == nil {
		c.timer.Reset(c.every)
	}
}

// run takes answers until the connection ends.
func (c *conn) run() {
	defer close(c.gone)
	for {
		if err := c.reply(); err != nil {
			c.fail(err)
			return
		}
	}
}

// start sends a request; its ticket ends with the answer, or with the connection.
func (c *conn) start(x *call) { c.startAs(x, false) }

// startAs is start; the last request is taken while nothing else is.
func (c *conn) startAs(x *call, last bool) {
	x.reset()
	x.mode = c.exp.Mode
	x.Begin(x.out)
	c.mu.Lock()
	if c.err != nil || c.draining && !last {
		x.lost = c.err
		if x.lost == nil {
			x.lost = errMoved
		}
		c.mu.Unlock()
		x.Refuse()
		return
	}
	c.cookie++
	x.req.Cookie, x.tick = c.cookie, c.tick
	x.req.Flags &^= nbd.FlagPayloadLen
	if x.mode == nbd.Extended && x.req.Type == nbd.CmdWrite {
		x.req.Flags |= nbd.FlagPayloadLen
	}
	c.pending[x.req.Cookie] = x
	c.mu.Unlock()
	c.queue.Send(x)
}

// errMoved is of a request that was not sent, as its connection is about to be
// replaced.
var errMoved = errors.New("nbd: moved to a new connection")

// do sends a request and waits for its answer, which is x.err, unless x.lost says
// that there is none. When ctx ends before, the request becomes that which orphan
// gives, and the error is ctx's; if it gives none, do waits all the same. What x
// refers to is not touched any more in any case.
func (c *conn) do(ctx context.Context, x *call, orphan func() *call) error {
	c.start(x)
	if ctx.Done() == nil {
		x.Wait()
		return nil
	}
	select {
	case <-x.Done():
		return nil
	case <-ctx.Done():
	}
	if c.abandon(x, orphan) {
		return nil
	}
	return context.Cause(ctx)
}

// abandon ends x's part in the connection. It reports whether it was answered, or
// lost, meanwhile.
func (c *conn) abandon(x *call, orphan func() *call) bool {
	c.mu.Lock()
	ended := c.pending[x.req.Cookie] != x
	handed := false
	if !ended && !x.receiving {
		o := orphan()
		if o == nil {
			c.mu.Unlock()
			x.Wait()
			return true
		}
		handed = true
		o.req, o.mode, o.patience, o.tick = x.req, x.mode, x.patience, x.tick
		c.pending[x.req.Cookie] = o
	}
	c.mu.Unlock()
	if handed {
		x.Leave() // in place of the reader
	}
	t := time.NewTimer(abandonGrace)
	defer t.Stop()
	select {
	case <-x.Done():
	case <-t.C:
		c.fail(fmt.Errorf("the server stopped in the middle of a %v that is given up", x.req.Type))
		x.Wait()
	}
	return !handed
}

// fail ends the connection and all requests on it.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = &lostError{err}
	var lost []*call
	for _, x := range c.pending {
		// The reader ends what it is at by itself.
		if !x.receiving {
			lost = append(lost, x)
		}
	}
	c.pending = nil
	c.timer.Stop()
	c.mu.Unlock()
	c.nc.Close()
	for _, x := range lost {
		x.lost = c.err
		x.end()
	}
	c.failed(c.err)
}

// discard ends a connection that was never run.
func (c *conn) discard() {
	c.mu.Lock()
	c.err = errMoved
	c.timer.Stop()
	c.mu.Unlock()
	c.nc.Close()
}

// close says good-bye, if asked to and if that is quick, ends the connection and
// waits until its goroutine is gone.
func (c *conn) close(polite bool) {
	if polite && c.alive() {
		c.nc.SetDeadline(time.Now().Add(disconnectTime))
		bye := &call{req: nbd.Request{Type: nbd.CmdDisconnect}, mode: c.exp.Mode}
		bye.Begin(nil)
		c.queue.Send(bye) // nobody answers
	}
	c.fail(net.ErrClosed)
	<-c.gone
}

func (c *conn) alive() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err == nil && !c.draining
}

// drain takes no more requests and waits until those under way are answered.
func (c *conn) drain(ctx context.Context) {
	c.mu.Lock()
	c.draining = true
	c.noteDrained()
	c.mu.Unlock()
	select {
	case <-c.drained:
	case <-ctx.Done():
	case <-c.gone:
	}
}

// noteDrained tells who drains that nothing is pending; mu is held.
func (c *conn) noteDrained() {
	if c.draining && len(c.pending) == 0 && !c.idle {
		c.idle = true
		close(c.drained)
	}
}

// watch ends a connection on which an answer is overdue, and tells of late ones.
func (c *conn) watch() {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.tick++
	var overdue *call
	late := false
	for _, x := range c.pending {
		waits := c.tick - x.tick
		late = late || waits > lateTicks
		if c.stall >= 0 && waits > x.patience {
			overdue = x
		}
	}
	if n := c.in.arrivals.Load(); !c.within || n != c.arrivals {
		c.arrivals, c.silent = n, 0
	} else {
		c.silent++
	}
	torn := c.silent > lateTicks
	changed := late != c.slow
	c.slow = late
	c.timer.Reset(c.every)
	c.mu.Unlock()
	if torn {
		// That is no medium to be waited for: another connection may do better.
		c.fail(errors.New("the server stopped in the middle of an answer"))
	} else if overdue != nil {
		c.fail(fmt.Errorf("no answer to a %v in time", overdue.req.Type))
	} else if changed {
		c.slowly(late)
	}
}
