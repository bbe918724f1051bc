package gfapi

import (
	"context"
	"fmt"
	"sync"
	"syscall"
)

// Unanswered is the error of a call that its caller does not wait for any longer.
// The library may carry it out as long as Done is not closed.
type Unanswered struct {
	Done  <-chan struct{}
	Cause error // the context's
}

func (u *Unanswered) Error() string { return fmt.Sprintf("not answered yet: %v", u.Cause) }

// Unwrap is the context's error.
func (u *Unanswered) Unwrap() error { return u.Cause }

// call is one asynchronous call under way.
type call struct {
	lib   *Library
	buf   []byte // of lib.buffers, or nil
	ret   int64
	errno syscall.Errno
	done  chan struct{} // closed when ret and errno are there
}

// start makes an asynchronous call: fn is handed the number that the library has to
// hand back. After an error buf is given back; otherwise after wait, by who gets the
// result.
func (l *Library) start(buf []byte, fn func(number uintptr) (ret uintptr, errno syscall.Errno)) (*call, error) {
	x := &call{lib: l, buf: buf, done: make(chan struct{})}
	number := l.calls.add(x)
	if ret, errno := fn(number); int32(ret) < 0 {
		// It was refused: there will be no callback.
		if l.calls.take(number) != nil && buf != nil {
			l.buffers.put(buf)
		}
		return nil, reason(errno)
	}
	return x, nil
}

// wait waits for the answer. Its error is Unanswered; the buffer is then given back
// when the library does not need it any more.
func (x *call) wait(ctx context.Context) error {
	select {
	case <-x.done:
		return nil
	case <-ctx.Done():
	}
	if x.buf != nil {
		go func() {
			<-x.done
			x.lib.buffers.put(x.buf)
		}()
	}
	return &Unanswered{x.done, ctx.Err()}
}

func (x *call) result() (int, error) {
	if x.ret < 0 {
		return 0, reason(x.errno)
	}
	return int(x.ret), nil
}

// completed is called by the library's threads, for every asynchronous call once.
func (l *Library) completed(_ uintptr, ret uintptr, _, _ uintptr, number uintptr) uintptr {
	errno := syscall.Errno(0)
	if int64(ret) < 0 {
		errno = syscall.Errno(*l.errno()) // of this thread, before anything changes it
	}
	if x := l.calls.take(number); x != nil {
		x.ret, x.errno = int64(ret), errno
		close(x.done)
	}
	return 0
}

// calls are those under way, by number.
type calls struct {
	mu   sync.Mutex
	list []*call
	free []int
}

func (c *calls) add(x *call) uintptr {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.free); n > 0 {
		i := c.free[n-1]
		c.free = c.free[:n-1]
		c.list[i] = x
		return uintptr(i)
	}
	c.list = append(c.list, x)
	return uintptr(len(c.list) - 1)
}

// take gives the call of a number, once; nil if there is none.
func (c *calls) take(i uintptr) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i >= uintptr(len(c.list)) || c.list[i] == nil {
		return nil
	}
	x := c.list[i]
	c.list[i] = nil
	c.free = append(c.free, int(i))
	return x
}
