package client

import (
	"context"
	"net"
	"time"
)

// Defaults of Config.
const (
	DefaultConns     = 2
	DefaultStall     = 30 * time.Second
	DefaultUnflushed = 32 << 20
	DefaultSettle    = time.Second
	DefaultBackoff   = 10 * time.Millisecond
)

// Config says how a server is reached. Only Dial is needed.
type Config struct {
	// Dial connects to the server; see Dialer.
	Dial func(ctx context.Context) (net.Conn, error)
	// Export is the export's name; empty for the server's default one.
	Export string
	// Secure makes a TLS connection of one on which the server has agreed to
	// STARTTLS, and has finished its handshake when it returns. nil: no TLS. With
	// it a server that offers none is an error.
	Secure func(ctx context.Context, nc net.Conn) (net.Conn, error)
	// Conns is how many connections are made to a server that says that it keeps
	// them coherent; 0: DefaultConns. One to every other.
	Conns int
	// Stall is how long a call waits for a server that does not answer or cannot
	// be reached before it is ErrTimeout; 0: DefaultStall, negative: for ever. See SetStall.
	Stall time.Duration
	// Unflushed is how much is kept of what the server has acknowledged and not
	// yet flushed, in bytes, to be written again to a server that was lost; 0:
	// DefaultUnflushed. At half of it a flush is sent. If negative nothing is
	// kept, and the loss of a connection between a write and the next flush is
	// ErrFailed.
	Unflushed int64
	// Settle is how long a server may still be carrying out what was sent on a
	// lost connection. Writes to the same ranges wait; 0: DefaultSettle.
	Settle time.Duration
	// Backoff is the first pause between attempts to reach the server; it grows
	// to a hundredfold. 0: DefaultBackoff.
	Backoff time.Duration
	// ReadOnly refuses what changes the export.
	ReadOnly bool
	// OnChange is told of changes of Status and of the size that Refresh would
	// find. It is called from a goroutine of its own, one call at a time, must not
	// block and must not call Close.
	OnChange func(Change)
}

// Change is a set of what OnChange is told.
type Change uint32

// What may change.
const (
	StatusChanged Change = 1 << iota
	SizeChanged
)

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	if c.Conns <= 0 {
		c.Conns = DefaultConns
	}
	set(&c.Stall, DefaultStall)
	set(&c.Settle, DefaultSettle)
	set(&c.Backoff, DefaultBackoff)
	if c.Unflushed == 0 {
		c.Unflushed = DefaultUnflushed
	}
	c.Unflushed = max(c.Unflushed, 0)
	return c
}
