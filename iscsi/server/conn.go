package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"blockgate/internal/bufpool"
	"blockgate/internal/conndrive"
	"blockgate/internal/connset"
	"blockgate/iscsi"
)

// conn runs one connection: the login, which it reads and answers itself, then the
// machine of full feature phase on a driver.
type conn struct {
	srv   *Server
	nc    net.Conn
	drive *conndrive.Conn
	group uint16

	connset.Member

	loggedIn atomic.Bool // in full feature phase
	tc       *iscsi.TargetConn

	abortOnce sync.Once
	reason    atomic.Pointer[string]

	// The login's input.
	in   *bufpool.Buf
	r, w int // in.B[r:w] is unread
}

func newConn(s *Server, nc net.Conn, group uint16) *conn {
	c := &conn{srv: s, nc: nc, drive: conndrive.New(nc), group: group}
	c.drive.Share(&s.turn)
	if s.cfg.Congestion != "-" {
		conndrive.SetCongestion(nc, s.cfg.Congestion)
	}
	return c
}

// Wake implements iscsi.Host.
func (c *conn) Wake() { c.drive.Wake() }

// Abort implements iscsi.Host. The first reason is the one that is told: a peer
// that closes on the response to its logout may be seen before we say "logout".
func (c *conn) Abort(reason string) {
	if reason != "" {
		c.reason.CompareAndSwap(nil, &reason)
	}
	// Close waits until nobody is inside a system call on the socket, and who aborts
	// may be there, or a send may wait for the medium of a page that it sends.
	c.abortOnce.Do(func() { go c.nc.Close() })
}

// From implements connset.Conn.
func (c *conn) From() string { return c.nc.RemoteAddr().String() }

func (c *conn) inFullFeature() bool { return c.loggedIn.Load() }

// tick drives the connection's clock.
func (c *conn) tick(now time.Time) {
	c.drive.SeeProgress()
	if c.tc.Stalled(now, c.srv.cfg.StallTimeout) {
		c.tc.Drop("the peer does not read what is sent to it")
		return
	}
	c.tc.Tick()
}

func (c *conn) run() {
	defer c.srv.conns.Remove(c)
	defer c.nc.Close()
	err := c.login()
	crowdedOut := c.srv.conns.EndLogin(c)
	if err != nil {
		if !crowdedOut && (!errors.Is(err, io.EOF) || c.w > 0) {
			c.srv.log.Warn("iscsi: login failed", "from", c.nc.RemoteAddr(), "reason", c.why(err))
		}
		c.freeInput()
		return
	}
	s := c.tc.Session()
	log := c.srv.log.With("session", s.ID, "cid", c.tc.CID(), "initiator", s.Peer.Name, "target", s.Target(), "from", c.nc.RemoteAddr())
	if !s.Discovery {
		log.Info("iscsi: logged in")
	}
	rest := append([]byte(nil), c.in.B[c.r:c.w]...)
	c.freeInput()
	err = c.drive.Run(rest)
	c.tc.Closed()
	if s.Ended() {
		c.srv.table.remove(s)
	}
	if r := c.reason.Load(); !s.Discovery || r != nil && *r != "logout" {
		log.Info("iscsi: connection closed", "reason", c.why(err))
	}
}

// why names the cause of an end: what Abort was told, or the error of the socket.
func (c *conn) why(err error) string {
	if r := c.reason.Load(); r != nil {
		return *r
	}
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return "closed by the peer"
	case errors.Is(err, errLoginTimeout):
		return err.Error()
	}
	return err.Error()
}

var errLoginTimeout = errors.New("login not finished in time")

// maxLoginData bounds the data segment of a login request: the default
// MaxRecvDataSegmentLength, which is in force until one is declared.
const maxLoginData = 8192

// login runs the login phase. On success c.tc is set, and bytes that came behind
// the last request are in c.in.
func (c *conn) login() error {
	deadline := time.Now().Add(c.srv.cfg.LoginTimeout)
	c.nc.SetDeadline(deadline)
	defer c.nc.SetDeadline(time.Time{})
	var session *iscsi.Session
	l := iscsi.NewTargetLogin(iscsi.LoginConfig{
		Directory: c.srv.cfg.Directory,
		Peer:      iscsi.Peer{Remote: addrPort(c.nc.RemoteAddr()), Local: addrPort(c.nc.LocalAddr()), Group: c.group},
		Admit: func(r *iscsi.LoginResult) (st iscsi.LoginStatus) {
			session, st = c.srv.table.admit(r)
			return st
		},
	})
	// Logins are short; a small buffer keeps a flood of them cheap.
	c.in = bufpool.Get(16 << 10)
	begun := false
	for {
		h, data, err := c.readLoginPDU(begun)
		begun = true
		if err != nil {
			c.endIfEmpty(session)
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				return fmt.Errorf("%w (%v)", errLoginTimeout, c.srv.cfg.LoginTimeout)
			}
			return err
		}
		out, done, lerr := l.Step(h, data)
		if done && lerr == nil {
			// The machine must exist before the initiator can send commands.
			c.tc, err = iscsi.NewTargetConn(iscsi.ConnConfig{
				Session: session, Result: l.Result(), StatSN: l.NextStatSN(), Host: c, Logger: c.srv.log,
				Lend: c.drive.SendsWithoutWaiting(),
			})
			if err != nil {
				c.endIfEmpty(session)
				return err
			}
			c.drive.Attach(c.tc)
			c.loggedIn.Store(true)
			// Before the initiator knows: once it does, it gives way to nobody.
			c.srv.conns.EndLogin(c)
		}
		if err := c.writeLogin(out); err != nil {
			if c.tc != nil {
				c.tc.Closed()
			}
			c.endIfEmpty(session)
			return err
		}
		if lerr != nil {
			c.linger()
			return lerr
		}
		if done {
			return nil
		}
	}
}

// Bounds of linger.
const (
	lingerTime  = 2 * time.Second
	lingerBytes = 256 << 10
)

// linger gives the peer the time to read its refusal: a socket that is closed
// with unread input sends a reset, which overtakes what was written. It ends
// when the peer closes. Until then the connection counts as an unfinished login and
// gives way like one.
func (c *conn) linger() {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.nc.SetDeadline(time.Now().Add(lingerTime))
	for left := lingerBytes; left > 0; {
		n, err := c.nc.Read(c.in.B)
		if err != nil {
			return
		}
		left -= n
	}
}

// endIfEmpty ends a session that its only connection did not live to join.
func (c *conn) endIfEmpty(s *iscsi.Session) {
	if s != nil && len(s.Conns()) == 0 {
		s.End("its login did not finish")
		c.srv.table.remove(s)
	}
}

// readLoginPDU reads one PDU of the login phase, without digests. What it
// returns stays valid until the next call. Before the first login request any
// other PDU ends the connection; once the login has begun (RFC 7143 §6.3), and
// for a request that is wrong as such, the header alone is returned, for which the
// machine has a refusal.
func (c *conn) readLoginPDU(begun bool) (*iscsi.BHS, []byte, error) {
	need := iscsi.BHSLen
	for {
		if c.w-c.r >= need {
			h := (*iscsi.BHS)(c.in.B[c.r:])
			login := h.Opcode() == iscsi.OpLoginReq
			if !login && !begun {
				return nil, nil, fmt.Errorf("PDU 0x%02x before login", byte(h.Opcode()))
			}
			n := h.DataLen()
			if !login || h.AHSLen() != 0 {
				return h, nil, nil
			}
			if n > maxLoginData {
				return nil, nil, fmt.Errorf("login request with %d bytes of data", n)
			}
			need = iscsi.BHSLen + n + iscsi.PadLen(n)
			if c.w-c.r >= need {
				data := c.in.B[c.r+iscsi.BHSLen : c.r+iscsi.BHSLen+n]
				c.r += need
				return h, data, nil
			}
		}
		if c.r > 0 {
			c.w = copy(c.in.B, c.in.B[c.r:c.w])
			c.r = 0
		}
		n, err := c.nc.Read(c.in.B[c.w:])
		c.w += n
		if err != nil && n == 0 {
			return nil, nil, err
		}
	}
}

func (c *conn) writeLogin(out []iscsi.LoginPDU) error {
	var b []byte
	for i := range out {
		b = append(b, out[i].BHS[:]...)
		b = append(b, out[i].Data...)
		b = append(b, make([]byte, iscsi.PadLen(len(out[i].Data)))...)
	}
	if len(b) == 0 {
		return nil
	}
	_, err := c.nc.Write(b)
	return err
}

func (c *conn) freeInput() {
	bufpool.Put(c.in)
	c.in, c.r, c.w = nil, 0, 0
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
