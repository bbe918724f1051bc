package server

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"blockgate/internal/bufpool"
	"blockgate/iscsi"
)

// readSize is how much of the stream a connection takes at once, in bytes.
const readSize = 256 << 10

// conn runs one connection: the login, then the machine of full feature phase.
//
// One goroutine reads, runs what it read, and sends what that gave. A second one
// sends what is finished by others while the first waits for input; it is
// started at the first wake-up. Whoever has the right to send (see
// iscsi.TargetConn.BeginSend) writes; the other leaves it its output.
type conn struct {
	srv   *Server
	nc    net.Conn
	raw   syscall.RawConn // nil for transports that have none
	group uint16

	inLogin    *list.Element // in srv.logins during the login; srv.mu
	crowdedOut bool          // a newer connection took the place; srv.mu

	loggedIn atomic.Bool
	tc       *iscsi.TargetConn
	wake     chan struct{} // capacity 1
	writer   atomic.Int32  // writerNone, writerRuns, writerNever
	done     chan struct{} // the connection ended
	wrote    chan struct{} // the writer ended

	abortOnce sync.Once
	reason    atomic.Pointer[string]

	taken uint64 // what the peer had taken at the last tick, see takenBytes; tick only

	// reader only
	in       *bufpool.Buf
	r, w     int // in.B[r:w] is unread
	readable func(fd uintptr) bool
	rn       int
	rerr     error

	byReader, byWriter sender
}

// sender is what one of the two goroutines sends with.
type sender struct {
	c        *conn
	bufs     net.Buffers // unsent, of the batch
	vec      *vectors
	writable func(fd uintptr) bool
	err      error
}

// States of conn.writer.
const (
	writerNone int32 = iota
	writerRuns
	writerNever
)

func newConn(s *Server, nc net.Conn, group uint16) *conn {
	c := &conn{srv: s, nc: nc, group: group, wake: make(chan struct{}, 1), done: make(chan struct{}), wrote: make(chan struct{})}
	c.byReader.c, c.byWriter.c = c, c
	if tcp, ok := nc.(*net.TCPConn); ok {
		if s.cfg.Congestion != "-" {
			setCongestion(tcp, s.cfg.Congestion)
		}
		c.raw, _ = tcp.SyscallConn()
	}
	return c
}

// Wake implements iscsi.Host.
func (c *conn) Wake() {
	if c.writer.CompareAndSwap(writerNone, writerRuns) {
		go c.writeLoop()
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Abort implements iscsi.Host. The first reason is the one that is told: a peer
// that closes on the response to its logout may be seen before we say "logout".
func (c *conn) Abort(reason string) {
	if reason != "" {
		c.reason.CompareAndSwap(nil, &reason)
	}
	c.abortOnce.Do(func() { c.nc.Close() })
}

// tick drives the connection's clock.
func (c *conn) tick(now time.Time) {
	if c.raw != nil && c.tc.Sending() {
		// A batch is long for a slow peer, and the socket's buffer longer: what
		// counts is whether the other end takes anything at all.
		if n, ok := takenBytes(c.raw); ok && n != c.taken {
			c.taken = n
			c.tc.Progress()
		}
	}
	if c.tc.Stalled(now, c.srv.cfg.StallTimeout) {
		c.tc.Drop("the peer does not read what is sent to it")
		return
	}
	c.tc.Tick()
}

func (c *conn) run() {
	defer c.srv.forget(c)
	defer c.nc.Close()
	err := c.login()
	crowdedOut := c.srv.endLogin(c)
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
	err = c.serve()
	c.Abort("") // unblocks a writer
	close(c.done)
	if c.writer.Swap(writerNever) == writerRuns {
		<-c.wrote
	}
	c.tc.Closed()
	if s.Ended() {
		c.srv.table.remove(s)
	}
	c.freeInput()
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
				Lend: canWritev && c.raw != nil,
			})
			if err != nil {
				c.endIfEmpty(session)
				return err
			}
			c.loggedIn.Store(true)
			// Before the initiator knows: once it does, it gives way to nobody.
			c.srv.endLogin(c)
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

// serve runs full feature phase until the connection ends.
func (c *conn) serve() error {
	if err := c.feed(); err != nil {
		return err
	}
	for {
		if d := c.tc.Direct(); d != nil {
			// The rest of a long data segment goes straight to where it belongs. All
			// input was fed, or it would not be asked for.
			c.freeInput()
			n, err := c.nc.Read(d)
			if n > 0 {
				c.tc.Filled(n)
			}
			if err != nil {
				return err
			}
			if n < len(d) {
				continue
			}
		} else if err := c.read(); err != nil {
			return err
		}
		if err := c.feed(); err != nil {
			return err
		}
	}
}

// feed gives the machine what was read, and sends what that made.
func (c *conn) feed() error {
	var p []byte
	if c.in != nil {
		p = c.in.B[c.r:c.w]
	}
	for {
		n, err := c.tc.Feed(p)
		p = p[n:]
		c.r += n
		var werr error
		if c.tc.EndFeed() || c.tc.BeginSend() {
			werr = c.byReader.send()
		}
		if err != nil {
			return err
		}
		if werr != nil {
			return werr
		}
		c.tc.WaitRoom()
		if !c.tc.Again() {
			return nil
		}
	}
}

// read waits for input and takes what there is, up to the buffer's size. While
// it waits with nothing unread the connection holds no buffer.
func (c *conn) read() error {
	if c.raw != nil {
		return c.readSocket()
	}
	c.makeRoom()
	n, err := c.nc.Read(c.in.B[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	return err
}

// makeRoom readies a buffer of full size with the unread bytes at its front.
func (c *conn) makeRoom() {
	if c.in == nil || len(c.in.B) < readSize {
		c.moveInput(bufpool.Get(readSize))
		return
	}
	if c.r > 0 {
		c.w = copy(c.in.B, c.in.B[c.r:c.w])
		c.r = 0
	}
}

// moveInput changes the buffer; the unread bytes go along.
func (c *conn) moveInput(b *bufpool.Buf) {
	n := 0
	if c.in != nil {
		n = copy(b.B, c.in.B[c.r:c.w])
		bufpool.Put(c.in)
	}
	c.in, c.r, c.w = b, 0, n
}

// shrink gives the buffer back while there is nothing to read. Part of a PDU, of
// which the rest may never come, stays in a buffer of its size.
func (c *conn) shrink() {
	switch n := c.w - c.r; {
	case n == 0:
		c.freeInput()
	case bufpool.Size(n) < len(c.in.B):
		c.moveInput(bufpool.Get(n))
	}
}

// readSocket reads with a buffer that is taken only when there is something to
// read.
func (c *conn) readSocket() error {
	if c.readable == nil {
		c.readable = func(fd uintptr) bool {
			c.makeRoom()
			for {
				n, err := syscall.Read(int(fd), c.in.B[c.w:])
				if err == syscall.EINTR {
					continue
				}
				if err == syscall.EAGAIN {
					c.shrink()
					return false
				}
				c.rn, c.rerr = n, err
				return true
			}
		}
	}
	if err := c.raw.Read(c.readable); err != nil {
		return err
	}
	if c.rerr != nil {
		return c.rerr
	}
	if c.rn == 0 {
		return io.EOF
	}
	c.w += c.rn
	return nil
}

func (c *conn) freeInput() {
	bufpool.Put(c.in)
	c.in, c.r, c.w = nil, 0, 0
}

// send writes all that is queued. The caller has the right to send.
func (o *sender) send() error {
	c := o.c
	if c.raw != nil && canWritev {
		o.vec = vectorPool.Get().(*vectors)
		defer func() {
			vectorPool.Put(o.vec)
			o.vec = nil
		}()
	}
	for {
		o.bufs = c.tc.Gather()
		if o.bufs == nil {
			return nil
		}
		if err := o.write(); err != nil {
			c.tc.SendFailed()
			return err
		}
	}
}

// write hands a batch to the transport.
func (o *sender) write() error {
	if o.vec == nil {
		_, err := o.bufs.WriteTo(o.c.nc)
		return err
	}
	if o.writable == nil {
		o.writable = o.writeNow
	}
	o.err = nil
	if err := o.c.raw.Write(o.writable); err != nil {
		return err
	}
	return o.err
}

// writeNow writes what the socket takes. It reports false when there is more:
// before the wait for the peer nothing may be on loan.
func (o *sender) writeNow(fd uintptr) bool {
	for {
		n, err := o.vec.writev(fd, o.bufs)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			o.c.tc.Settle()
			return false
		case err != nil:
			o.err = err
			return true
		}
		for len(o.bufs) > 0 && n >= len(o.bufs[0]) {
			n -= len(o.bufs[0])
			o.bufs[0] = nil // the machine sees what is left
			o.bufs = o.bufs[1:]
		}
		if len(o.bufs) == 0 {
			return true
		}
		o.bufs[0] = o.bufs[0][n:]
		o.c.tc.Progress()
	}
}

// writeLoop sends what others finish while the reader waits.
func (c *conn) writeLoop() {
	defer close(c.wrote)
	for {
		select {
		case <-c.done:
			return
		case <-c.wake:
		}
		if !c.tc.BeginSend() {
			continue
		}
		if err := c.byWriter.send(); err != nil {
			c.Abort(err.Error())
			return
		}
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
