package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
)

// ErrGone: the other side has closed the channel, or was told to.
var ErrGone = errors.New("the plugin process has ended")

// Client asks. It is safe for concurrent use.
type Client struct {
	conn  *Conn
	event func(Message)

	mu   sync.Mutex
	next uint64
	wait map[uint64]chan Message
	err  error // why there will be no more answers
	done chan struct{}
}

// NewClient makes a client and reads from conn until it is closed. event is
// called with each event, one at a time; no answer is read meanwhile.
func NewClient(conn *Conn, event func(Message)) *Client {
	c := &Client{conn: conn, event: event, wait: make(map[uint64]chan Message), done: make(chan struct{})}
	go c.read()
	return c
}

func (c *Client) read() {
	var err error
	for {
		var m Message
		if m, err = c.conn.Receive(); err != nil {
			break
		}
		if m.ID == 0 {
			c.event(m)
			continue
		}
		c.mu.Lock()
		ch := c.wait[m.ID]
		delete(c.wait, m.ID)
		c.mu.Unlock()
		if ch != nil {
			ch <- m
		}
	}
	if !errors.Is(err, ErrFrame) {
		err = ErrGone
	}
	c.conn.Close()
	c.mu.Lock()
	c.err = err
	c.mu.Unlock()
	close(c.done)
}

// Done is closed when the channel has ended; Err then says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is why the channel has ended: ErrGone or ErrFrame; nil while it has not.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the channel and waits until no event is being handled.
func (c *Client) Close() {
	c.conn.Close()
	<-c.done
}

// Call sends a request and waits for its answer, which it puts into out unless
// that is nil. An error of the plugin's is an *Error.
func (c *Client) Call(ctx context.Context, op string, in, out any) error {
	ch := make(chan Message, 1)
	c.mu.Lock()
	c.next++
	id := c.next
	c.wait[id] = ch
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.wait, id)
		c.mu.Unlock()
	}()
	if err := c.conn.Send(Message{ID: id, Op: op}, in); err != nil {
		if errors.Is(err, ErrTooLong) {
			return err
		}
		if gone := c.Err(); gone != nil {
			return gone
		}
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	var m Message
	select {
	case m = <-ch:
	case <-ctx.Done():
		return ctx.Err()
	case <-c.done:
		select {
		case m = <-ch: // the answer came before the end
		default:
			return c.Err()
		}
	}
	if m.Error != nil {
		return m.Error
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(m.Body, out); err != nil {
		return fmt.Errorf("%w: the answer to %q: %w", ErrFrame, op, err)
	}
	return nil
}
