package scsi

import (
	"context"
	"sync"
	"time"
)

// taskContext is the context of one task. It lives in the task, so that giving a
// store a context costs nothing; the channel is made only for who asks for it.
type taskContext struct {
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
	c.canceled = true
	if c.done != nil {
		close(c.done)
	}
}

// reset makes it ready for another task. A context derived from it may still be
// asking for Done on a goroutine of its own.
func (c *taskContext) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done, c.canceled = nil, false
}
