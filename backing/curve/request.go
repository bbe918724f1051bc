package curve

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"blockgate/backing"
	"blockgate/backing/curve/internal/brpc"
	"blockgate/backing/curve/internal/nebd"
	"blockgate/backing/internal/vitals"
	"blockgate/internal/rangelock"
)

// version is what heartbeats say of us.
const version = "blockgate"

func pid() int { return os.Getpid() }

// brpc's own errors that say that a request was not begun.
const (
	codeStopping  = 2003
	codeOvercrowd = 1011
	codeNoService = 1001
	codeNoMethod  = 1002
)

// refusal is an answer that says no.
type refusal struct {
	code int32 // brpc's; 0: nebd-server's own
	text string
}

func (e refusal) Error() string {
	switch {
	case e.code != 0:
		return fmt.Sprintf("nebd-server: error %d (%s)", e.code, e.text)
	case e.text == "":
		return "nebd-server: failed"
	}
	return "nebd-server: " + e.text
}

// Is tells what the error is of in the words of package backing.
func (e refusal) Is(target error) bool {
	return target == backing.ErrNotSupported && (e.code == codeNoService || e.code == codeNoMethod)
}

func (e refusal) temporary() bool { return e.code == codeStopping || e.code == codeOvercrowd }

// ask does a call and reads its answer.
func ask(s *session, x *brpc.Call) (nebd.Response, error) {
	s.conn.Do(x)
	if errors.Is(x.Err, brpc.ErrUnanswered) {
		return nebd.Response{}, ErrUnanswered
	}
	if x.Err != nil {
		return nebd.Response{}, x.Err
	}
	if x.Code != 0 {
		return nebd.Response{}, refusal{x.Code, x.Text}
	}
	r, err := nebd.ParseResponse(x.Reply)
	if err != nil {
		return nebd.Response{}, fmt.Errorf("nebd-server: %s: %w", x.Method, err)
	}
	if r.Code != nebd.OK {
		return r, refusal{0, r.Text}
	}
	return r, nil
}

// request is what do needs. Its memory is used again.
type request struct {
	call brpc.Call
	msg  [64]byte
	hold rangelock.Hold
}

var requests = sync.Pool{New: func() any { return new(request) }}

// session is the current one; without one it waits for the next. Calls that are
// new do not wait if the volume is suspended.
func (c *client) session(ctx context.Context, deadline time.Time, fresh bool) (*session, error) {
	for {
		if s := c.cur.Load(); s != nil {
			return s, nil
		}
		c.mu.Lock()
		changed, suspended, why := c.changed, c.suspended, c.why
		have := c.cur.Load() != nil
		c.mu.Unlock()
		switch {
		case c.isClosed():
			return nil, backing.ErrClosed
		case have:
			continue
		case suspended && fresh:
			return nil, ErrSuspended
		}
		t := time.NewTimer(time.Until(deadline))
		select {
		case <-changed:
		case <-t.C:
			t.Stop()
			if why == nil {
				why = brpc.ErrLost
			}
			return nil, fmt.Errorf("%w: no success in time: %w", backing.ErrStalled, why)
		case <-ctx.Done():
			t.Stop()
			return nil, context.Cause(ctx)
		case <-c.ctx.Done():
			t.Stop()
			return nil, backing.ErrClosed
		}
		t.Stop()
	}
}

// do sends a request of x's method until it is answered for good or its time is
// over; off and n are for the methods that have them. Nothing of x is touched
// after do has returned. A context that ends has effect between attempts only.
func (c *client) do(ctx context.Context, x *brpc.Call, off, n uint64) (nebd.Response, error) {
	deadline := vitals.Deadline(c.timeout())
	pause := c.cfg.Backoff
	for try := 0; ; try++ {
		if ctx.Err() != nil {
			return nebd.Response{}, context.Cause(ctx)
		}
		s, err := c.session(ctx, deadline, try == 0)
		if err != nil {
			return nebd.Response{}, err
		}
		fd := s.fd.Load()
		switch x.Method {
		case nebd.Read, nebd.Write, nebd.Discard:
			x.Msg = nebd.AppendIO(x.Msg[:0], fd, off, n)
		case nebd.ResizeFile:
			x.Msg = nebd.AppendResize(x.Msg[:0], fd, n)
		default:
			x.Msg = nebd.AppendFD(x.Msg[:0], fd)
		}
		x.Service, x.Deadline = nebd.Service, deadline
		if latest := time.Now().Add(c.answer); latest.Before(deadline) {
			x.Deadline = latest
		}
		r, err := ask(s, x)
		if err == nil {
			return r, nil
		}
		no := refusal{}
		switch {
		case errors.As(err, &no) && no.temporary():
			c.pause(ctx, min(pause, time.Until(deadline)))
			pause = min(2*pause, 32*c.cfg.Backoff)
			if !time.Now().Before(deadline) {
				return r, err
			}
		case errors.As(err, &no):
			// A descriptor that nebd-server does not know looks like any failure.
			if no.code != 0 || try >= 3 || !c.reopen(s, fd) {
				return r, err
			}
		case errors.Is(err, brpc.ErrLost) && c.isClosed():
			return r, backing.ErrClosed
		case errors.Is(err, brpc.ErrLost) && time.Now().Before(deadline):
			// Once more, on the next session; see connect for why that does no harm.
			c.leave(s)
		case errors.Is(err, brpc.ErrLost), errors.Is(err, ErrUnanswered):
			if x.Changes {
				c.suspend(s)
			}
			return r, fmt.Errorf("%w for %v", ErrUnanswered, c.answer)
		default:
			return r, err
		}
	}
}

// leave sees to it that the session, whose connection failed, is not used again.
func (c *client) leave(s *session) { c.cur.CompareAndSwap(s, nil) }

func (c *client) pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-c.ctx.Done():
	}
}

// reopen opens the volume once more after a request with descriptor fd failed. It
// is true if that is another one now, so that the request may be tried again.
func (c *client) reopen(s *session, fd int32) bool {
	c.reopening.Lock()
	defer c.reopening.Unlock()
	if s.fd.Load() != fd {
		return true
	}
	if c.isClosed() {
		return false
	}
	now, err := c.openFile(s)
	if err != nil || now == fd {
		return false
	}
	s.fd.Store(now)
	return true
}

// io does a Read, Write or Discard of whole blocks.
func (c *client) io(ctx context.Context, method string, in, out []byte, off, n int64) error {
	q := requests.Get().(*request)
	x := &q.call
	x.Method, x.In, x.Out, x.Changes = method, in, out, method != nebd.Read
	if x.Msg == nil {
		x.Msg = q.msg[:0]
	}
	_, err := c.do(ctx, x, uint64(off), uint64(n))
	if err == nil && x.N != len(in) {
		err = fmt.Errorf("nebd-server answered a read of %d bytes with %d", len(in), x.N)
	}
	x.In, x.Out = nil, nil
	requests.Put(q)
	return err
}

func (c *client) flush(ctx context.Context) error {
	_, err := c.do(ctx, &brpc.Call{Method: nebd.Flush}, 0, 0)
	return err
}

func (c *client) info(ctx context.Context) (volumeInfo, error) {
	r, err := c.do(ctx, &brpc.Call{Method: nebd.GetInfo}, 0, 0)
	if err != nil {
		return volumeInfo{}, err
	}
	return infoOf(&r)
}

func (c *client) resize(ctx context.Context, size int64) error {
	_, err := c.do(ctx, &brpc.Call{Method: nebd.ResizeFile, Changes: true}, 0, uint64(size))
	return err
}
