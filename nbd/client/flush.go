package client

import (
	"context"
	"time"

	"blockgate/nbd"
)

// Flush makes durable what had been acknowledged before it was called. Once it has
// failed, or what it was to flush may be lost, it is ErrFailed for ever. A server
// that offers no flush is taken for one that needs none.
func (c *Client) Flush(ctx context.Context) error {
	if err := c.check(ctx, 0, 0, 0, false); err != nil {
		return err
	}
	if err := c.failure(); err != nil {
		return err
	}
	if !c.exp.Can(nbd.SendFlush) || c.cfg.ReadOnly || c.exp.Can(nbd.ReadOnly) {
		return nil
	}
	return c.flush(ctx)
}

func (c *Client) flush(ctx context.Context) error {
	o := c.get()
	defer o.put()
	o.set(nbd.CmdFlush, 0, 0, 0)
	m := c.journal.mark()
	if err := c.do(ctx, o); err != nil {
		c.journal.unflushed(m)
		if _, answered := err.(*Error); answered {
			c.status.fail(err)
			c.journal.wake()
			return c.failure()
		}
		return err
	}
	c.journal.flushed(o.epoch, m)
	return nil
}

// makeRoom has the journal flushed.
func (c *Client) makeRoom() {
	if !c.flushing.CompareAndSwap(false, true) {
		return
	}
	c.closing.Lock()
	defer c.closing.Unlock()
	if c.closed {
		return
	}
	c.work.Go(func() {
		defer c.flushing.Store(false)
		// Who needs the room hears of the error by Flush, or waits no longer than
		// for any answer.
		_ = c.flush(c.ctx)
	})
}

// waitRoom waits until something may enter the journal.
func (c *Client) waitRoom(ctx context.Context) error {
	room := c.journal.full()
	if room == nil {
		return nil
	}
	var limit <-chan time.Time
	if stall := c.stall(); stall >= 0 {
		t := time.NewTimer(stall)
		defer t.Stop()
		limit = t.C
	}
	for room != nil {
		c.makeRoom()
		select {
		case <-room:
		case <-limit:
			return ErrTimeout
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.ctx.Done():
			return ErrClosed
		}
		if err := c.failure(); err != nil {
			return err
		}
		room = c.journal.full()
	}
	return nil
}
