package client_test

import (
	"context"
	"testing"
	"time"

	"blockgate/nbd"
	"blockgate/nbd/client"
	"blockgate/nbd/client/nbdfake"
)

// A call waits for a server that is gone, but not longer than it may.
func TestStall(t *testing.T) {
	srv := start(t, modern)
	cfg := quick(srv)
	cfg.Stall = 80 * time.Millisecond
	changed := make(chan client.Change, 100)
	cfg.OnChange = func(c client.Change) { changed <- c }
	c := open(t, cfg)
	srv.Stop()
	begin := time.Now()
	err := c.ReadAt(t.Context(), make([]byte, 10), 0)
	is(t, err, client.ErrTimeout)
	if d := time.Since(begin); d < cfg.Stall {
		t.Errorf("failed after %v", d)
	}
	<-changed
	if s := c.Status(); s.State != client.Stalled || s.Reason == "" || s.Since.IsZero() {
		t.Errorf("status = %+v", s)
	}
	ok(t, srv.Restart())
	for c.Status().State != client.Connected {
		<-changed
	}
	ok(t, c.ReadAt(t.Context(), make([]byte, 10), 0))

	// It is there, and does not answer.
	release := make(chan struct{})
	srv.SetFault(func(nbd.Request) nbdfake.Fault { return nbdfake.Fault{Kind: nbdfake.Slow, Until: release} })
	is(t, c.WriteAt(t.Context(), make([]byte, 10), 0, 0), client.ErrTimeout)
	close(release)
	srv.SetFault(nil)
	ok(t, c.WriteAt(t.Context(), make([]byte, 10), 0, 0))
}

// The limit changes on connections that are open.
func TestSetStall(t *testing.T) {
	srv := start(t, modern)
	cfg := quick(srv)
	cfg.Stall = -1
	c := open(t, cfg)
	release := make(chan struct{})
	srv.SetFault(func(nbd.Request) nbdfake.Fault { return nbdfake.Fault{Kind: nbdfake.Slow, Until: release} })
	c.SetStall(80 * time.Millisecond)
	is(t, c.ReadAt(t.Context(), make([]byte, 10), 0), client.ErrTimeout)
	close(release)
	srv.SetFault(nil)
	ok(t, c.ReadAt(t.Context(), make([]byte, 10), 0))
	// And back: what waits is answered after longer than the former limit.
	c.SetStall(-1)
	release = make(chan struct{})
	srv.SetFault(func(nbd.Request) nbdfake.Fault { return nbdfake.Fault{Kind: nbdfake.Slow, Until: release} })
	time.AfterFunc(300*time.Millisecond, func() { close(release) })
	ok(t, c.ReadAt(t.Context(), make([]byte, 10), 0))
	if s := c.Status(); s.State != client.Connected {
		t.Errorf("status = %+v", s)
	}
}

// A call with no limit waits until its context ends, or the client is closed.
func TestStallForEver(t *testing.T) {
	srv := start(t, modern)
	cfg := quick(srv)
	cfg.Stall = -1
	c := open(t, cfg)
	srv.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	is(t, c.ReadAt(ctx, make([]byte, 10), 0), context.DeadlineExceeded)
	failed := make(chan error, 2)
	go func() { failed <- c.ReadAt(t.Context(), make([]byte, 10), 0) }()
	go func() { failed <- c.Flush(t.Context()) }()
	ok(t, c.Close())
	is(t, <-failed, client.ErrClosed)
	is(t, <-failed, client.ErrClosed)
	is(t, c.Close(), client.ErrClosed)
}
