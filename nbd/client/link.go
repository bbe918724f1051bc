package client

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"blockgate/nbd"
)

// link is one or more connections to a server that has been found to be as
// before. They end together: of one that has ended nobody knows whether the
// server behind the others is still the same.
type link struct {
	epoch uint64
	exp   *Export
	conns []*conn
	turn  atomic.Uint32
	begun time.Time

	ended atomic.Bool
	down  chan struct{} // closed at the end
	err   error         // why; to be read after that
}

func (l *link) conn() *conn {
	if len(l.conns) == 1 {
		return l.conns[0]
	}
	return l.conns[int(l.turn.Add(1))%len(l.conns)]
}

func (l *link) alive() bool {
	select {
	case <-l.down:
		return false
	default:
		return true
	}
}

// fail ends the link and what is under way on it.
func (l *link) fail(err error) {
	if !l.ended.CompareAndSwap(false, true) {
		return
	}
	l.err = err
	close(l.down)
	for _, k := range l.conns {
		k.fail(err)
	}
}

func (l *link) setStall(limit time.Duration) {
	for _, k := range l.conns {
		k.setStall(limit)
	}
}

// close ends the link and waits for its goroutines.
func (l *link) close(polite bool) {
	for _, k := range l.conns {
		k.close(polite)
	}
}

// extraTime is how long a further connection may take: a server that takes no more
// of them lets them wait.
const extraTime = 2 * time.Second

// connect makes a link that is not in use yet.
func (c *Client) connect(ctx context.Context) (*link, error) {
	l := &link{down: make(chan struct{}), begun: time.Now()}
	k, err := c.connectOne(ctx, l)
	if err != nil {
		return nil, err
	}
	l.exp, l.conns = k.exp, []*conn{k}
	if k.exp.Can(nbd.CanMultiConn) {
		for len(l.conns) < c.cfg.Conns {
			ectx, cancel := context.WithTimeout(ctx, extraTime)
			k, err := c.connectOne(ectx, l)
			cancel()
			if err != nil {
				break // the first one does it all
			}
			if k.exp.Size != l.exp.Size || k.exp.Flags != l.exp.Flags || k.exp.BlockSize != l.exp.BlockSize || k.exp.Mode != l.exp.Mode {
				k.discard()
				break
			}
			l.conns = append(l.conns, k)
		}
	}
	for _, k := range l.conns {
		go k.run()
	}
	return l, nil
}

func (c *Client) connectOne(ctx context.Context, l *link) (*conn, error) {
	dctx, cancel := context.WithTimeout(ctx, handshakeTime)
	nc, err := c.cfg.Dial(dctx)
	cancel()
	if err != nil {
		return nil, err
	}
	stop := guard(ctx, nc)
	var exp *Export
	h, err := shake(ctx, nc, &c.cfg)
	if err == nil {
		exp, err = h.choose(&c.cfg)
	}
	if cause := stop(); cause != nil && err == nil {
		err = cause
	} else if cause != nil {
		err = fmt.Errorf("%w during the handshake", cause)
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	return newConn(h.nc, exp, c.stall(), l.fail, func(slow bool) { c.status.late(l, slow) }), nil
}

// kept are the flags that a server must not lose while we are connected: others
// have been told that it can.
const kept = nbd.SendFlush | nbd.SendFUA | nbd.SendTrim | nbd.SendWriteZeroes | nbd.SendCache

// same reports why an export that was found again cannot be the one that was
// there, or cannot take its place.
func (c *Client) same(e *Export) error {
	was := &c.exp
	switch size := c.size.Load(); {
	case e.Size < size:
		return fmt.Errorf("the export has %d bytes, and had %d", e.Size, size)
	case was.Flags&kept&^e.Flags != 0:
		return fmt.Errorf("the export has flags %#x, and had %#x", uint16(e.Flags), uint16(was.Flags))
	case e.Flags&nbd.ReadOnly != 0 && was.Flags&nbd.ReadOnly == 0 && !c.cfg.ReadOnly:
		return errors.New("the export is read-only, and was not")
	case e.BlockSize.Min > was.BlockSize.Min || e.BlockSize.MaxPayload < was.BlockSize.MaxPayload:
		return fmt.Errorf("the export has size constraints %+v, and had %+v", e.BlockSize, was.BlockSize)
	case was.Allocation && !e.Allocation:
		return errors.New("the export has no block status, and had")
	}
	return nil
}

// supervise keeps the client connected until Close.
func (c *Client) supervise(l *link) {
	defer close(c.done)
	for l != nil {
		select {
		case <-l.down:
			c.leave(l)
			c.status.down(l.err)
			l.close(false)
			l = c.redial(time.Since(l.begun))
		case r := <-c.refreshes:
			l = c.refresh(r, l)
		case <-c.ctx.Done():
			c.cur.Store(nil)
			l.close(true)
			return
		}
	}
}

// leave puts a link out of use.
func (c *Client) leave(l *link) {
	c.cur.Store(nil)
	epoch, lost := c.journal.begin()
	c.epoch = epoch
	if lost {
		c.status.fail(errors.New("the server was lost between a write and the next flush"))
	}
}

// steady is how long a link has to live for the next one to be tried at once.
const steady = time.Second

// redial connects until there is a link in use again; nil: Close came before.
func (c *Client) redial(lived time.Duration) *link {
	pause := c.cfg.Backoff
	for first := lived >= steady; ; first = false {
		if !first {
			t := time.NewTimer(pause)
			select {
			case <-t.C:
			case <-c.ctx.Done():
				t.Stop()
				return nil
			}
			pause = min(2*pause, 100*c.cfg.Backoff)
		}
		l, err := c.connect(c.ctx)
		if err == nil {
			if err = c.attach(l); err == nil {
				return l
			}
			l.fail(err)
			l.close(false)
		}
		if c.ctx.Err() != nil {
			return nil
		}
		c.status.down(err)
	}
}

// attach brings the server to where its predecessor was, and puts the link in use.
func (c *Client) attach(l *link) error {
	if err := c.same(l.exp); err != nil {
		return err
	}
	stop := context.AfterFunc(c.ctx, func() { l.fail(ErrClosed) })
	err := c.replay(l)
	if !stop() {
		err = ErrClosed
	}
	if err != nil {
		return err
	}
	l.epoch = c.epoch
	c.use(l)
	return nil
}

// use lets requests go over the link.
func (c *Client) use(l *link) {
	c.status.up(l)
	c.cur.Store(l)
	l.setStall(c.stall()) // it may have been changed since they were made
	c.upMu.Lock()
	close(c.up)
	c.up = make(chan struct{})
	c.upMu.Unlock()
	if l.exp.Size != c.size.Load() {
		c.status.note(SizeChanged)
	}
}

// await waits for a link.
func (c *Client) await(ctx context.Context, limit <-chan time.Time) (*link, error) {
	for {
		c.upMu.Lock()
		up := c.up
		c.upMu.Unlock()
		if l := c.cur.Load(); l != nil && l.alive() {
			return l, nil
		}
		select {
		case <-up:
		case <-limit:
			return nil, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-c.ctx.Done():
			return nil, ErrClosed
		}
	}
}

// replayWindow is how many entries of the journal are under way at a time.
const replayWindow = 32

// replay writes again what the server may have lost.
func (c *Client) replay(l *link) error {
	entries := c.journal.entries // nobody changes it; see journal.begin
	for len(entries) > 0 {
		// Neighbours in the journal that overlap keep their order.
		n := 1
		for n < min(len(entries), replayWindow) && !overlapsAny(&entries[n], entries[:n]) {
			n++
		}
		calls := make([]call, n)
		for i := range calls {
			e, x := &entries[i], &calls[i]
			x.req = nbd.Request{Type: e.cmd, Flags: e.flags, Offset: uint64(e.off), Length: uint64(e.n)}
			x.out, x.patience = e.data, ticks
			l.conn().start(x)
		}
		var err error
		for i := range calls {
			x := &calls[i]
			x.Wait()
			if err == nil && x.lost != nil {
				err = x.lost
			} else if err == nil && x.err != nil {
				err = fmt.Errorf("writing again what was not flushed: %w", x.err)
			}
		}
		if err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

func overlapsAny(e *entry, list []entry) bool {
	for i := range list {
		if o := &list[i]; e.off < o.off+o.n && o.off < e.off+e.n {
			return true
		}
	}
	return false
}
