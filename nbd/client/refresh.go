package client

import (
	"context"
	"fmt"
	"time"

	"blockgate/nbd"
)

// refreshing is a call of Refresh.
type refreshing struct {
	ctx  context.Context
	done chan<- refreshed // with room for one
}

type refreshed struct {
	size int64
	err  error
}

const (
	// probeTime is how long a server may take to tell its size anew.
	probeTime = 5 * time.Second
	// drainTime is how long requests may take before they are moved to the
	// connections that know the new size.
	drainTime = 2 * time.Second
)

// Refresh asks the server for the export's size and returns it; Size follows. An
// export that became smaller is an error, and its size stays. Servers tell a size
// only to a new connection: if it differs the others are replaced.
func (c *Client) Refresh(ctx context.Context) (int64, error) {
	done := make(chan refreshed, 1)
	var limit <-chan time.Time
	if stall := c.stall(); stall >= 0 {
		t := time.NewTimer(stall)
		defer t.Stop()
		limit = t.C
	}
	select {
	case c.refreshes <- refreshing{ctx, done}:
	case <-limit:
		return c.Size(), fmt.Errorf("%w within %v: %s", ErrTimeout, c.stall(), c.Status().Reason)
	case <-ctx.Done():
		return c.Size(), context.Cause(ctx)
	case <-c.ctx.Done():
		return c.Size(), ErrClosed
	}
	// The supervisor answers, ctx or not.
	r := <-done
	return r.size, r.err
}

// refresh is the supervisor's part. It returns the link that is in use afterwards;
// nil: Close came in between.
func (c *Client) refresh(r refreshing, l *link) *link {
	size, next, err := c.probe(r.ctx, l)
	if err != nil {
		r.done <- refreshed{c.Size(), fmt.Errorf("nbd: asking for the size: %w", err)}
		return l
	}
	if next != l {
		c.cur.Store(nil) // who comes now waits for the next one
		dctx, cancel := context.WithTimeout(c.ctx, drainTime)
		for _, k := range l.conns {
			k.drain(dctx)
		}
		cancel()
		c.flushLast(l)
		c.leave(l)
		l.close(true)
		if err := c.attach(next); err != nil {
			next.fail(err)
			next.close(false)
			c.status.down(err)
			next = c.redial(0)
		}
	}
	if next != nil && err == nil {
		size = next.exp.Size
		c.size.Store(size)
	}
	r.done <- refreshed{size, err}
	return next
}

// flushLast flushes on a link that is drained, so that nothing depends on who is
// behind the next one. What it cannot flush is as after a loss.
func (c *Client) flushLast(l *link) {
	if !c.journals() || c.cfg.ReadOnly || c.exp.Can(nbd.ReadOnly) {
		return
	}
	defer context.AfterFunc(c.ctx, func() { l.fail(ErrClosed) })()
	m := c.journal.mark()
	x := &call{req: nbd.Request{Type: nbd.CmdFlush}, patience: ticks}
	l.conns[0].startAs(x, true)
	x.Wait()
	if x.lost != nil || x.err != nil {
		c.journal.unflushed(m)
		return
	}
	c.journal.flushed(l.epoch, m)
}

// probe finds the size, and the link that has it.
func (c *Client) probe(ctx context.Context, l *link) (int64, *link, error) {
	if l.exp.Size != c.Size() {
		return l.exp.Size, l, nil // found when it was connected
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	next, err := c.connect(ctx)
	if err != nil {
		return 0, nil, err
	}
	if next.exp.Size == l.exp.Size {
		next.close(true)
		return l.exp.Size, l, nil
	}
	if err := c.same(next.exp); err != nil {
		next.close(true)
		return 0, nil, err
	}
	return next.exp.Size, next, nil
}
