package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"blockgate/internal/budget"
	"blockgate/internal/conndrive"
	"blockgate/internal/connset"
	"blockgate/nbd"
)

// conn runs one connection: the handshake, which it reads and answers itself, then
// the machine of the transmission phase on a driver.
type conn struct {
	srv    *Server
	access Access
	client Client
	id     uint64

	raw   net.Conn // what was accepted
	nc    net.Conn // raw, or TLS on it; of the goroutine that runs
	drive *conndrive.Conn

	connset.Member

	begun   bool // the client has said something
	m       *machine
	info    Info
	mode    nbd.Mode
	started time.Time
	serving atomic.Bool // m, info and started are set

	abortOnce sync.Once
	reason    atomic.Pointer[string]
}

func newConn(s *Server, nc net.Conn, a Access) *conn {
	if s.cfg.Congestion != "-" {
		conndrive.SetCongestion(nc, s.cfg.Congestion)
	}
	return &conn{srv: s, id: s.ids.Add(1), raw: nc, nc: nc, access: a, client: Client{Remote: nc.RemoteAddr(), Local: nc.LocalAddr()}}
}

// Wake implements host.
func (c *conn) Wake() { c.drive.Wake() }

// Abort implements host. The first reason is the one that is told.
func (c *conn) Abort(reason string) {
	if reason != "" {
		c.reason.CompareAndSwap(nil, &reason)
	}
	if c.serving.Load() {
		c.m.stop()
	}
	// Not by TLS: it would say good-bye to a peer that may read nothing.
	// Close waits until nobody is inside a system call on the socket, and who aborts
	// may be there, or a send may wait for the medium of a page that it sends.
	c.abortOnce.Do(func() { go c.raw.Close() })
}

// From implements connset.Conn.
func (c *conn) From() string { return c.client.From() }

func (c *conn) isServing() bool { return c.serving.Load() }

// tick drives the connection's clock.
func (c *conn) tick(now time.Time) {
	c.drive.SeeProgress()
	c.m.tick(now, c.srv.cfg.StallTimeout)
}

func (c *conn) run() {
	defer c.srv.conns.Remove(c)
	defer func() { c.nc.Close() }()
	h, err := c.handshake()
	crowdedOut := c.srv.conns.EndLogin(c)
	if err != nil || h.session == nil {
		if h != nil && h.session != nil {
			h.session.Close()
		}
		if err != nil && !crowdedOut && (!errors.Is(err, io.EOF) || c.begun) {
			reason := c.why(err)
			if h != nil && h.refusal != "" {
				reason = h.refusal
			}
			c.srv.log.Warn("nbd: handshake failed", "from", c.client.From(), "reason", reason)
		}
		return
	}
	log := c.srv.log.With("connection", c.id, "export", h.info.Name, "from", c.client.From())
	log.Info("nbd: connected")
	err = c.drive.Run(nil)
	c.m.Closed()
	log.Info("nbd: disconnected", "reason", c.why(err))
}

// why names the cause of an end: what Abort was told, or the error of the socket.
func (c *conn) why(err error) string {
	var ne net.Error
	switch r := c.reason.Load(); {
	case r != nil:
		return *r
	case err == nil || errors.Is(err, io.EOF):
		return "closed by the client"
	case !c.serving.Load() && errors.As(err, &ne) && ne.Timeout():
		return fmt.Sprintf("handshake not finished in time (%v)", c.srv.cfg.LoginTimeout)
	}
	return err.Error()
}

// handshake runs until the transmission phase: then c.m is set and h.session is
// not nil. It is nil if the client has ended it.
func (c *conn) handshake() (h *handshake, err error) {
	deadline := time.Now().Add(c.srv.cfg.LoginTimeout)
	c.nc.SetDeadline(deadline)
	if _, err := c.nc.Write(nbd.AppendGreeting(nil, nbd.FixedNewstyle|nbd.NoZeroes)); err != nil {
		return nil, err
	}
	var head [nbd.OptionHeaderLen]byte
	if err := c.readFull(head[:nbd.ClientFlagsLen]); err != nil {
		return nil, err
	}
	h = &handshake{dir: c.srv.cfg.Directory, policy: c.access.policy(), noTLS: c.access.Upgrade == nil, client: &c.client}
	if h.flags, err = nbd.DecodeClientFlags(head[:]); err != nil {
		return h, err
	}
	for {
		if err := c.readFull(head[:]); err != nil {
			return h, err
		}
		o, err := nbd.DecodeOptionHeader(head[:])
		if err != nil {
			return h, err
		}
		reply, next, err := c.option(h, o)
		if err != nil {
			return h, err
		}
		if next == stepTransmit {
			// Before the client knows: then it gives way to nobody, and is seen.
			c.begin(h)
			// Who took the export away before that has not seen us.
			if err := h.confirm(); err != nil {
				return h, err
			}
		}
		if _, err := c.nc.Write(reply); err != nil {
			return h, err
		}
		switch next {
		case stepTransmit:
			c.nc.SetDeadline(time.Time{})
			return h, nil
		case stepBye:
			return h, nil
		case stepTLS:
			if err := c.upgrade(h, deadline); err != nil {
				return h, err
			}
		}
	}
}

// option reads the data of an option and acts on it.
func (c *conn) option(h *handshake, o nbd.OptionHeader) (reply []byte, next step, err error) {
	if o.Length > nbd.MaxOptionData {
		if o.Length > nbd.MaxOptionSkip {
			return nil, stepBye, fmt.Errorf("option %v with %d bytes of data", o.Option, o.Length)
		}
		if _, err := io.CopyN(io.Discard, c.nc, int64(o.Length)); err != nil {
			return nil, stepBye, err
		}
		reply, err = h.tooBig(o.Option)
		return reply, stepNext, err
	}
	data := make([]byte, o.Length)
	if err := c.readFull(data); err != nil {
		return nil, stepBye, err
	}
	return h.option(o.Option, data)
}

func (c *conn) readFull(p []byte) error {
	n, err := io.ReadFull(c.nc, p)
	c.begun = c.begun || n > 0
	return err
}

// upgrade puts TLS on the connection.
func (c *conn) upgrade(h *handshake, deadline time.Time) error {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	nc, id, err := c.access.Upgrade(ctx, c.nc)
	if err != nil {
		return err
	}
	c.nc = nc
	nc.SetDeadline(deadline)
	h.upgraded(id)
	return nil
}

// begin makes the machine of the transmission phase.
func (c *conn) begin(h *handshake) {
	c.drive = conndrive.New(c.nc)
	c.drive.Share(&c.srv.turn)
	c.info, c.mode, c.started = h.info, h.mode, time.Now()
	c.m = newMachine(machineConfig{
		Session: h.session, Mode: h.mode, Flags: h.info.Flags, BlockSize: h.info.BlockSize,
		Allocation: h.allocation, ContextID: contextID,
		Budget: c.srv.cfg.Budget, Share: budget.Share{Peer: c, Thing: h.info.Name}, Host: c, Lend: c.drive.SendsWithoutWaiting(),
	})
	c.drive.Attach(c.m)
	c.srv.conns.EndLogin(c)
	c.serving.Store(true)
}
