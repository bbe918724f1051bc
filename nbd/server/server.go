package server

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"blockgate/internal/budget"
	"blockgate/internal/conndrive"
	"blockgate/nbd"
)

// Defaults of Config.
const (
	DefaultMemory         = 1 << 30
	DefaultLoginTimeout   = 15 * time.Second
	DefaultStallTimeout   = 30 * time.Second
	DefaultMaxConnections = 16384
	DefaultMaxLogins      = 1024
	DefaultCongestion     = "cubic"
)

// Config is what a Server needs. Zero fields take the defaults above.
type Config struct {
	Directory Directory
	Logger    *slog.Logger
	// Memory bounds the payload held for all connections together, in bytes. When
	// it becomes scarce connections are read no further until there is some again,
	// the ones that hold most, or whose export does, first.
	Memory int64
	// Budget, if not nil, is used in place of Memory, and may be other servers' too.
	Budget *Budget
	// LoginTimeout closes a connection whose handshake is not finished in time.
	LoginTimeout time.Duration
	// StallTimeout closes a connection whose client takes nothing of what is sent
	// to it, or stops in the middle of a request, for so long.
	StallTimeout time.Duration
	// MaxConnections and MaxLogins bound the open connections, and those of them
	// whose handshake is not finished. At either limit the oldest unfinished
	// handshake gives way to a new connection; if there is none, the new one is
	// closed.
	MaxConnections, MaxLogins int
	// Congestion names the TCP congestion control of accepted connections; "-"
	// leaves the system's. One that the kernel does not have is ignored.
	Congestion string
}

// Budget bounds the payload memory of servers, in bytes.
type Budget = budget.Budget

// NewBudget makes a budget of limit bytes that several servers may share.
func NewBudget(limit int64) *Budget { return budget.New(limit) }

// Access is what a listener asks of its clients.
type Access struct {
	// Upgrade puts TLS on a connection; nil: there is none.
	Upgrade Upgrade
	// RequireTLS shows nothing to clients that do not start TLS first.
	RequireTLS bool
}

func (a Access) policy() TLSPolicy {
	switch {
	case a.Upgrade == nil && !a.RequireTLS:
		return TLSOff
	case !a.RequireTLS:
		return TLSOptional
	}
	return TLSRequired
}

// Server serves NBD on any number of listeners. Safe for concurrent use.
type Server struct {
	cfg  Config
	log  *slog.Logger
	turn conndrive.Turn

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	logins    list.List // of *conn: those in the handshake, the oldest first
	nextID    uint64
	closed    bool
	idle      sync.Cond // a connection ended
	tickStop  chan struct{}
	tickOnce  sync.Once
	lastFull  atomic.Int64 // when a refusal was logged, UnixNano
}

// ErrClosed is returned by Serve after Close.
var ErrClosed = errors.New("nbd server closed")

// New makes a server; it holds no goroutine until Serve or ServeConn.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Memory <= 0 {
		cfg.Memory = DefaultMemory
	}
	if cfg.Budget == nil {
		cfg.Budget = NewBudget(cfg.Memory)
	}
	if cfg.LoginTimeout <= 0 {
		cfg.LoginTimeout = DefaultLoginTimeout
	}
	if cfg.StallTimeout <= 0 {
		cfg.StallTimeout = DefaultStallTimeout
	}
	if cfg.MaxConnections <= 0 {
		cfg.MaxConnections = DefaultMaxConnections
	}
	if cfg.MaxLogins <= 0 {
		cfg.MaxLogins = DefaultMaxLogins
	}
	if cfg.Congestion == "" {
		cfg.Congestion = DefaultCongestion
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger,
		listeners: make(map[net.Listener]struct{}), conns: make(map[*conn]struct{}), tickStop: make(chan struct{}),
	}
	s.idle.L = &s.mu
	return s
}

// Serve accepts connections until the listener is closed, by its owner or Close;
// it then returns ErrClosed, or the listener's own error. Connections outlive it.
func (s *Server) Serve(ln net.Listener, a Access) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		ln.Close()
		return ErrClosed
	}
	s.listeners[ln] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, ln)
		s.mu.Unlock()
	}()
	pause := time.Duration(0)
	for {
		nc, err := ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return ErrClosed
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() || conndrive.OutOfFiles(err) {
				// Out of file descriptors: wait for connections to go.
				pause = min(max(2*pause, 5*time.Millisecond), time.Second)
				s.log.Error("nbd: accept failed, waiting", "listener", ln.Addr(), "err", err, "wait", pause)
				select {
				case <-time.After(pause):
					continue
				case <-s.tickStop:
					return ErrClosed
				}
			}
			return fmt.Errorf("nbd listener %s: %w", ln.Addr(), err)
		}
		pause = 0
		if c := s.accept(nc, a); c != nil {
			go c.run()
		}
	}
}

// ServeConn serves one connection, which it closes, and returns when that has
// ended. The error says why it did not begin.
func (s *Server) ServeConn(nc net.Conn, a Access) error {
	c := s.accept(nc, a)
	if c == nil {
		return ErrClosed
	}
	c.run()
	return nil
}

// accept takes a connection in, or closes it and returns nil.
func (s *Server) accept(nc net.Conn, a Access) *conn {
	s.tickOnce.Do(func() { go s.tick() })
	c := newConn(s, nc, a)
	var reason string // why one connection has to go
	loser := c
	s.mu.Lock()
	switch n := s.logins.Len(); {
	case s.closed:
		reason = "the server is stopping"
	case len(s.conns) >= s.cfg.MaxConnections && n == 0:
		reason = fmt.Sprintf("%d connections are open", len(s.conns))
	case len(s.conns) >= s.cfg.MaxConnections || n >= s.cfg.MaxLogins:
		// The oldest gives way: a handshake takes milliseconds, and peers that say
		// nothing must not keep clients out until they time out.
		reason = fmt.Sprintf("%d connections are open and %d handshakes are not finished", len(s.conns), n)
		loser = s.logins.Front().Value.(*conn)
		s.endLoginLocked(loser)
		loser.crowdedOut = true
	}
	if loser != c || reason == "" {
		s.nextID++
		c.id = s.nextID
		s.conns[c] = struct{}{}
		c.inLogin = s.logins.PushBack(c)
	}
	s.mu.Unlock()
	if reason != "" {
		// One line a second at most: this is what a flood looks like.
		if now, last := time.Now().UnixNano(), s.lastFull.Load(); now-last > int64(time.Second) && s.lastFull.CompareAndSwap(last, now) {
			s.log.Warn("nbd: too many connections, one is closed", "from", loser.client.From(), "reason", reason)
		}
		loser.Abort(reason)
	}
	if loser == c && reason != "" {
		return nil
	}
	return c
}

// endLogin says that c has left the handshake; it reports whether c had to give
// way to a newer connection before that.
func (s *Server) endLogin(c *conn) (crowdedOut bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLoginLocked(c)
	return c.crowdedOut
}

func (s *Server) endLoginLocked(c *conn) {
	if c.inLogin != nil {
		s.logins.Remove(c.inLogin)
		c.inLogin = nil
	}
}

func (s *Server) forget(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.idle.Broadcast()
}

// tick drives the clocks of the connections.
func (s *Server) tick() {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-s.tickStop:
			return
		case now := <-t.C:
			for _, c := range s.serving() {
				c.tick(now)
			}
		}
	}
}

// serving lists the connections in the transmission phase, oldest first.
func (s *Server) serving() []*conn {
	s.mu.Lock()
	l := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		if c.serving.Load() {
			l = append(l, c)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(l, func(a, b *conn) int { return cmp.Compare(a.id, b.id) })
	return l
}

// Close stops accepting, closes every connection and waits until their goroutines
// have ended. Requests inside a store that hangs are left to it. NBD has no way to
// ask a client to leave.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.tickStop)
	}
	s.tickOnce.Do(func() {}) // no ticker after this
	for ln := range s.listeners {
		ln.Close()
	}
	for c := range s.conns {
		c.Abort("the server is stopping")
	}
	for len(s.conns) > 0 {
		s.idle.Wait()
	}
	return nil
}

// Shutdown stops accepting and waits until the last connection is gone or ctx
// ends; what is left then is closed. It returns ctx's error if it had to close
// something.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	for ln := range s.listeners {
		ln.Close()
	}
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock() // the waiter is either before its look at ctx or waiting
		defer s.mu.Unlock()
		s.idle.Broadcast()
	})
	defer stop()
	for len(s.conns) > 0 && ctx.Err() == nil {
		s.idle.Wait()
	}
	left := len(s.conns)
	s.mu.Unlock()
	s.Close()
	if left > 0 {
		return ctx.Err()
	}
	return nil
}

// ConnInfo describes a connection in the transmission phase.
type ConnInfo struct {
	ID                      uint64 // never reused while the server lives
	Export                  string
	Remote, Local           net.Addr
	Identity                *Identity // nil without TLS
	Mode                    nbd.Mode
	ReadOnly                bool
	Started                 time.Time
	RxBytes, TxBytes        uint64
	Requests, Errors        uint64
	ReadBytes, WrittenBytes uint64
}

// Conns lists the connections, oldest first.
func (s *Server) Conns() []ConnInfo {
	l := s.serving()
	out := make([]ConnInfo, len(l))
	for i, c := range l {
		out[i] = ConnInfo{
			ID: c.id, Export: c.info.Name, Remote: c.client.Remote, Local: c.client.Local, Identity: c.client.Identity,
			Mode: c.mode, ReadOnly: c.info.Flags&nbd.ReadOnly != 0, Started: c.started,
			RxBytes: c.m.RxBytes.Load(), TxBytes: c.m.TxBytes.Load(), Requests: c.m.Requests.Load(), Errors: c.m.Errors.Load(),
			ReadBytes: c.m.ReadBytes.Load(), WrittenBytes: c.m.WrittenBytes.Load(),
		}
	}
	return out
}

// CloseConns closes the connections that match and says how many there were.
func (s *Server) CloseConns(reason string, match func(ConnInfo) bool) int {
	var ids []uint64
	for _, i := range s.Conns() {
		if match(i) {
			ids = append(ids, i.ID)
		}
	}
	n := 0
	for _, c := range s.serving() {
		if slices.Contains(ids, c.id) {
			c.m.Drop(reason)
			n++
		}
	}
	return n
}

// MemoryUsed is the payload held now, in bytes, by all who share Config.Budget.
func (s *Server) MemoryUsed() int64 { return s.cfg.Budget.Used() }

// Single is a Directory of one export, which also is the default one, for
// everybody.
func Single(e Export) Directory { return single{e} }

type single struct{ e Export }

func (d single) Exports(*Client) []nbd.ServerEntry {
	i := d.e.Info()
	return []nbd.ServerEntry{{Name: i.Name, Description: i.Description}}
}

func (d single) Export(name string, _ *Client) (Export, error) {
	if name != "" && name != d.e.Info().Name {
		return nil, &Refusal{nbd.RepErrUnknown, fmt.Sprintf("there is no export %q", name)}
	}
	return d.e, nil
}
