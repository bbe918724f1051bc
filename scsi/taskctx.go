package scsi

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// taskContext is the context of one task. It lives in the task, so that giving a
// store a context costs nothing; the channel is made only for who asks for it.
type taskContext struct {
	touched  atomic.Bool // the rest is not zero; set under mu
	mu       sync.Mutex
	done     chan struct{}
	canceled bool
}

// Deadline: tasks have none of their own.
func (c *taskContext) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done is closed when the task is aborted.
func (c *taskContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.touched.Store(true)
		c.done = make(chan struct{})
		if c.canceled {
			close(c.done)
		}
	}
	return c.done
}

// Err is context.Canceled once the task was aborted.
func (c *taskContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.canceled {
		return context.Canceled
	}
	return nil
}

// Value has nothing to give.
func (c *taskContext) Value(any) any { return nil }

func (c *taskContext) cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.canceled {
		return
	}
	c.touched.Store(true)
	c.canceled = true
	if c.done != nil {
		close(c.done)
	}
}

// reset makes it ready for another task. A context derived from it may still be
// asking for Done on a goroutine of its own; hardly any task was asked at all.
func (c *taskContext) reset() {
	if !c.touched.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done, c.canceled = nil, false
	c.touched.Store(false)
}
