package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"blockgate/internal/budget"
	"blockgate/internal/conndrive"
	"blockgate/internal/connset"
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
	cfg   Config
	log   *slog.Logger
	turn  conndrive.Turn
	conns *connset.Set[*conn]
	ids   atomic.Uint64 // of connections, given so far
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
	s := &Server{cfg: cfg, log: cfg.Logger}
	s.conns = connset.New(connset.Config[*conn]{
		Log: s.log, Protocol: "nbd", Logins: "handshakes", MaxConns: cfg.MaxConnections, MaxLogins: cfg.MaxLogins,
		Tick: (*conn).tick, Ticks: (*conn).isServing, Every: time.Second, Closed: ErrClosed,
	})
	return s
}

// Serve accepts connections until the listener is closed, by its owner or Close;
// it then returns ErrClosed, or the listener's own error. Connections outlive it.
func (s *Server) Serve(ln net.Listener, a Access) error {
	return s.conns.Serve(ln, func(nc net.Conn) {
		if c := newConn(s, nc, a); s.conns.Add(c) {
			go c.run()
		}
	})
}

// ServeConn serves one connection, which it closes, and returns when that has
// ended. The error says why it did not begin.
func (s *Server) ServeConn(nc net.Conn, a Access) error {
	c := newConn(s, nc, a)
	if !s.conns.Add(c) {
		return ErrClosed
	}
	c.run()
	return nil
}

// serving lists the connections in the transmission phase, oldest first.
func (s *Server) serving() []*conn {
	l := s.conns.Select((*conn).isServing)
	slices.SortFunc(l, func(a, b *conn) int { return cmp.Compare(a.id, b.id) })
	return l
}

// Close stops accepting, closes every connection and waits until their goroutines
// have ended. Requests inside a store that hangs are left to it, and after five
// seconds connections that send what they have on loan from it. NBD has no way to
// ask a client to leave.
func (s *Server) Close() error {
	s.conns.End("the server is stopping")
	return nil
}

// Shutdown stops accepting and waits until the last connection is gone or ctx
// ends; what is left then is closed. It returns ctx's error if it had to close
// something.
func (s *Server) Shutdown(ctx context.Context) error {
	s.conns.CloseListeners()
	left := s.conns.Wait(ctx)
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
