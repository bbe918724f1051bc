// Package client is the client's end of the Network Block Device protocol in user
// space: fixed newstyle negotiation with TLS, structured replies, extended headers
// and metadata contexts, and a transmission phase that is pipelined over one or
// more connections, survives the loss of the server, and never reports as durable
// what a server may have forgotten. The protocol document is that of the NBD
// project, doc/proto.md.
//
// Like the server's data, the server is not trusted with anything but that data:
// lengths are bounded, and one that breaks the protocol has its connection closed.
package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"blockgate/internal/rangelock"
	"blockgate/nbd"
)

// Client is an export of a server, connected and connected again for as long as
// the Client is open. All methods are safe for concurrent use.
//
// What was sent on a connection that was lost is sent again, as all that is asked
// can be done twice; before that the new connection's export must be found to be
// as before, and gets again what the old one acknowledged and did not flush. See
// Config.Stall and Config.Unflushed.
//
// When the context of a call ends the call returns at once and does not touch the
// caller's buffer any more; what it has sent may still be carried out, and later
// writes that overlap wait for that.
type Client struct {
	cfg  Config
	exp  Export // of the first connection
	size atomic.Int64
	wait atomic.Int64 // Config.Stall, or what SetStall said since

	cur  atomic.Pointer[link] // nil: there is none
	upMu sync.Mutex
	up   chan struct{} // closed and replaced when a link is put in use

	epoch     uint64 // of the next link; the supervisor's
	refreshes chan refreshing
	ctx       context.Context // ends with Close
	cancel    context.CancelFunc
	done      chan struct{} // closed when the supervisor has ended

	ranges   rangelock.Lock
	journal  journal
	flushing atomic.Bool // a flush to make room is under way
	orphaned atomic.Int64
	zeroMax  atomic.Int64
	status   status

	closing sync.Mutex
	closed  bool
	work    sync.WaitGroup
}

// Open connects to the server and enters the export. It does not try again: a
// server that is not there is an error.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.Dial == nil {
		return nil, errors.New("nbd: a client needs to know how to connect")
	}
	c := &Client{
		cfg: cfg.withDefaults(), up: make(chan struct{}), refreshes: make(chan refreshing),
		done: make(chan struct{}),
	}
	c.status.poke = make(chan struct{}, 1)
	c.journal.limit = c.cfg.Unflushed
	c.zeroMax.Store(maxZeroes)
	c.wait.Store(int64(c.cfg.Stall))
	c.ctx, c.cancel = context.WithCancel(context.Background())
	l, err := c.connect(ctx)
	if err != nil {
		c.cancel()
		return nil, fmt.Errorf("nbd: %w", err)
	}
	c.exp = *l.exp
	c.size.Store(l.exp.Size)
	c.use(l)
	c.work.Go(func() { c.status.tell(c.cfg.OnChange, c.ctx.Done()) })
	go c.supervise(l)
	return c, nil
}

// Export is what the server told at Open.
func (c *Client) Export() Export { return c.exp }

// Size is the size in bytes, as of Open or the last Refresh.
func (c *Client) Size() int64 { return c.size.Load() }

// Status is how the client fares. It does not block.
func (c *Client) Status() Status { return c.status.get() }

// Conns is how many connections there are now.
func (c *Client) Conns() int {
	if l := c.cur.Load(); l != nil && l.alive() {
		return len(l.conns)
	}
	return 0
}

// SetStall changes Config.Stall, for calls that wait as well, roughly. It does not
// block.
func (c *Client) SetStall(limit time.Duration) {
	if limit == 0 {
		limit = DefaultStall
	}
	c.wait.Store(int64(limit))
	if l := c.cur.Load(); l != nil {
		l.setStall(limit)
	}
}

func (c *Client) stall() time.Duration { return time.Duration(c.wait.Load()) }

// Close ends the connections. Calls that are under way end with ErrClosed. What
// was not flushed may be lost. The second Close is ErrClosed.
func (c *Client) Close() error {
	c.closing.Lock()
	if c.closed {
		c.closing.Unlock()
		return ErrClosed
	}
	c.closed = true
	c.closing.Unlock()
	c.cancel()
	<-c.done
	c.work.Wait()
	c.journal.close()
	return nil
}

// op is a request with what the client needs to see it through.
type op struct {
	call
	c      *Client
	epoch  uint64          // of the link that answered
	lostAt time.Time       // when it was lost; what was sent before may still be done
	hold   *rangelock.Hold // the range that is locked for it; nil: none
	gone   bool            // an orphan has it: it is not used again
	adopt  func() *call
}

var ops = sync.Pool{New: func() any {
	o := new(op)
	o.hold = new(rangelock.Hold)
	o.adopt = o.orphan
	return o
}}

func (c *Client) get() *op {
	o := ops.Get().(*op)
	o.c, o.lostAt, o.gone = c, time.Time{}, false
	return o
}

func (o *op) put() {
	if o.gone {
		return
	}
	o.c, o.in, o.out, o.err, o.lost = nil, nil, nil, nil, nil
	if cap(o.ext) > 4096 {
		o.ext = nil
	}
	if cap(o.got.spans) > 256 {
		o.got.spans = nil
	}
	ops.Put(o)
}

func (o *op) set(cmd nbd.Command, flags nbd.CommandFlags, off, n int64) {
	o.req = nbd.Request{Type: cmd, Flags: flags, Offset: uint64(off), Length: uint64(n)}
}

// modifies reports whether the request changes the export.
func (o *op) modifies() bool {
	return o.req.Type == nbd.CmdWrite || o.req.Type == nbd.CmdWriteZeroes || o.req.Type == nbd.CmdTrim
}

// entry is the request as the journal keeps it.
func (o *op) entry() entry {
	return entry{cmd: o.req.Type, flags: o.req.Flags &^ nbd.FlagPayloadLen, off: int64(o.req.Offset), n: int64(o.req.Length), data: o.out}
}

// release gives the range back.
func (o *op) release() {
	if o.gone {
		return // the orphan does it
	}
	if o.lostAt.IsZero() {
		o.c.ranges.Unlock(o.hold)
		return
	}
	o.gone = true
	o.c.unlockLater(o.hold, o.lostAt)
}

// unlockLater gives a range back when nothing can come to it any more that was
// sent before lostAt.
func (c *Client) unlockLater(h *rangelock.Hold, lostAt time.Time) {
	time.AfterFunc(time.Until(lostAt.Add(c.cfg.Settle)), func() { c.ranges.Unlock(h) })
}

// maxOrphaned bounds what is kept for orphans of a client together, in bytes: to a
// server that answers nothing they would gather for ever.
const maxOrphaned = 64 << 20

// orphan makes the call that takes the place of one whose caller gives up; nil if
// he has to wait. The range stays locked until it has ended, and what it writes is
// remembered.
func (o *op) orphan() *call {
	c := o.c
	cost := int64(len(o.out)) + 1024
	if c.orphaned.Add(cost) > maxOrphaned {
		c.orphaned.Add(-cost)
		return nil
	}
	x := new(call)
	if !o.modifies() {
		x.ended = func() { c.orphaned.Add(-cost) }
		return x
	}
	h, epoch, lostAt, e := o.hold, o.epoch, o.lostAt, o.entry()
	o.gone = true
	if c.journals() && c.journal.limit > 0 {
		e.data = append([]byte(nil), e.data...)
	} else {
		e.data = nil
	}
	x.ended = func() {
		lost := x.lost != nil
		if !lost && x.err == nil && c.journals() {
			ok, _ := c.journal.add(epoch, e)
			lost = !ok
		}
		c.orphaned.Add(-cost)
		switch {
		case lost:
			c.unlockLater(h, time.Now())
		case !lostAt.IsZero():
			c.unlockLater(h, lostAt)
		default:
			c.ranges.Unlock(h)
		}
	}
	return x
}

// journals reports whether writes have to be remembered: a server that cannot
// flush says nothing about what is durable, so there is nothing to keep it until.
func (c *Client) journals() bool { return c.exp.Can(nbd.SendFlush) }

// do sends a request until it is answered. The error is the server's, or that
// there is none.
func (c *Client) do(ctx context.Context, o *op) error {
	begin := time.Now()
	o.patience = ticks
	if err := c.attempt(ctx, o); err != nil {
		return c.insist(ctx, o, begin, err)
	}
	return o.err
}

// attempt sends a request once. Its error is a *lostError, and then the request is
// to be sent again, or that of ctx.
func (c *Client) attempt(ctx context.Context, o *op) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	l := c.cur.Load()
	if l == nil {
		return errDown
	}
	o.epoch = l.epoch
	if err := l.conn().do(ctx, &o.call, o.adopt); err != nil {
		return err
	}
	if o.lost == errMoved {
		return &lostError{errMoved}
	}
	if o.lost != nil {
		if o.modifies() {
			o.lostAt = time.Now()
		}
		return o.lost
	}
	if o.err != nil {
		if errors.Is(o.err, nbd.ESHUTDOWN) {
			l.fail(o.err)
			return &lostError{o.err}
		}
		return nil
	}
	if o.modifies() && c.journals() {
		ok, half := c.journal.add(o.epoch, o.entry())
		if !ok {
			o.lostAt = time.Now()
			return &lostError{errors.New("the server was lost after its answer")}
		}
		if half {
			c.makeRoom()
		}
	}
	return nil
}

var errDown error = &lostError{errors.New("the server cannot be reached")}

// insist is do after the first attempt did not succeed.
func (c *Client) insist(ctx context.Context, o *op, begin time.Time, err error) error {
	var limit <-chan time.Time
	stall := c.stall()
	if stall >= 0 {
		t := time.NewTimer(time.Until(begin.Add(stall)))
		defer t.Stop()
		limit = t.C
	}
	cause := err
	for {
		var lost *lostError
		if !errors.As(err, &lost) {
			return err
		}
		if err != errDown {
			cause = err
		}
		l, aerr := c.await(ctx, limit)
		if aerr != nil {
			return aerr
		}
		left := time.Until(begin.Add(stall))
		if l == nil || stall >= 0 && left <= 0 {
			if s := c.Status(); cause == errDown && s.State == Stalled {
				return fmt.Errorf("%w within %v: %s", ErrTimeout, stall, s.Reason)
			}
			return fmt.Errorf("%w within %v: %w", ErrTimeout, stall, cause)
		}
		if (o.modifies() || o.req.Type == nbd.CmdFlush) && c.status.broken.Load() {
			return c.failure()
		}
		o.patience = ticks
		if every := stall / ticks; every > 0 {
			o.patience = uint32(left/every) + 1
		}
		if err = c.attempt(ctx, o); err == nil {
			return o.err
		}
	}
}

// failure is ErrFailed with its reason, or nil.
func (c *Client) failure() error {
	if err := c.status.failure(); err != nil {
		return fmt.Errorf("%w: %w", ErrFailed, err)
	}
	return nil
}
