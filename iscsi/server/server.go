// Package server puts the iSCSI target's protocol machines (package iscsi) on
// sockets: listeners, one reader and, when needed, one writer goroutine for each
// connection, the table of sessions, timeouts and limits.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"blockgate/internal/conndrive"
	"blockgate/internal/connset"
	"blockgate/iscsi"
	"blockgate/scsi"
	"blockgate/scsi/sense"
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
	Directory iscsi.Directory
	Logger    *slog.Logger
	// Memory bounds the payload held for all sessions together, in bytes. When it
	// becomes scarce commands are answered TASK SET FULL, those of the sessions and
	// logical units that hold most first.
	Memory int64
	// Budget, if not nil, is used in place of Memory, and may be other servers' too.
	Budget *iscsi.Budget
	// LoginTimeout closes a connection whose login is not finished in time.
	LoginTimeout time.Duration
	// StallTimeout closes a connection whose peer takes nothing of what is sent
	// to it for so long.
	StallTimeout time.Duration
	// MaxConnections and MaxLogins bound the open connections, and those of them
	// whose login is not finished. At either limit the oldest unfinished login
	// gives way to a new connection; if there is none, the new one is closed.
	MaxConnections, MaxLogins int
	// Congestion names the TCP congestion control of accepted connections; "-"
	// leaves the system's. One that the kernel does not have is ignored.
	Congestion string
}

// Server serves iSCSI on any number of listeners. Safe for concurrent use.
type Server struct {
	cfg   Config
	log   *slog.Logger
	table table
	turn  conndrive.Turn
	conns *connset.Set[*conn]
}

// ErrClosed is returned by Serve after Shutdown or Close.
var ErrClosed = errors.New("iscsi server closed")

// New makes a server; it holds no goroutine until Serve.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Memory <= 0 {
		cfg.Memory = DefaultMemory
	}
	if cfg.Budget == nil {
		cfg.Budget = iscsi.NewBudget(cfg.Memory)
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
	s.conns = connset.New(s.setConfig())
	s.table.init(s)
	return s
}

func (s *Server) setConfig() connset.Config[*conn] {
	return connset.Config[*conn]{
		Log: s.log, Protocol: "iscsi", Logins: "logins", MaxConns: s.cfg.MaxConnections, MaxLogins: s.cfg.MaxLogins,
		Tick: (*conn).tick, Ticks: (*conn).inFullFeature, Every: time.Second, Closed: ErrClosed,
	}
}

// Serve accepts connections for the portal group until the listener is closed,
// by its owner, Shutdown or Close; it then returns ErrClosed, or the listener's
// own error. Connections outlive it.
func (s *Server) Serve(ln net.Listener, group uint16) error {
	return s.conns.Serve(ln, func(nc net.Conn) {
		if c := newConn(s, nc, group); s.conns.Add(c) {
			go c.run()
		}
	})
}

// Shutdown stops accepting, asks every initiator to log out, and waits until
// the last connection is gone or ctx ends; what is left then is closed. It
// returns ctx's error if it had to close something.
func (s *Server) Shutdown(ctx context.Context) error {
	s.conns.Stop()
	s.conns.Abort("the server is stopping", func(c *conn) bool { return !c.loggedIn.Load() })
	// After that, so that a login which ends meanwhile is in one of the two.
	for _, tc := range s.table.conns() {
		tc.RequestLogout(0)
	}
	if s.conns.Wait(ctx) == 0 {
		return nil
	}
	s.Close()
	return ctx.Err()
}

// Close stops accepting, closes every connection and waits until their
// goroutines have ended. Tasks inside a store that hangs are left to it, and after
// five seconds connections that send what they have on loan from it.
func (s *Server) Close() error {
	s.conns.Stop()
	for _, ss := range s.table.list() {
		ss.End("the server is stopping")
	}
	s.conns.End("the server is stopping")
	return nil
}

// ConnInfo describes a connection.
type ConnInfo struct {
	CID                                          uint16
	Remote, Local                                netip.AddrPort
	HeaderDigest, DataDigest                     bool
	MaxRecvDataSegment, MaxXmitDataSegment       int // bytes
	RxBytes, TxBytes, RxPDUs, TxPDUs             uint64
	Commands, DataOutPDUs, DataInPDUs, Responses uint64
}

// SessionInfo describes a session in full feature phase.
type SessionInfo struct {
	ID               uint64 // never reused while the server lives
	TSIH             uint16
	Target           string // empty for discovery
	Initiator, Alias string
	User             string // CHAP name it logged in with, if any
	ISID             [6]byte
	Discovery        bool
	Params           iscsi.Params
	Started          time.Time
	Conns            []ConnInfo // by CID
}

// Sessions lists the sessions, oldest first.
func (s *Server) Sessions() []SessionInfo { return s.table.info() }

// SessionStats is what a session did, by LUN. It ends with the session.
type SessionStats struct {
	ID     uint64
	Target string
	LUNs   []scsi.NexusStats
}

// Stats gives the counters of the sessions with a target, or all with "", oldest
// session first.
func (s *Server) Stats(target string) []SessionStats {
	var out []SessionStats
	for _, ss := range s.table.list() {
		if !ss.Discovery && (target == "" || ss.Target() == target) {
			out = append(out, SessionStats{ID: ss.ID, Target: ss.Target(), LUNs: ss.Stats()})
		}
	}
	return out
}

// CloseConnection closes one connection of a session.
func (s *Server) CloseConnection(id uint64, cid uint16) error {
	for _, ss := range s.table.list() {
		if ss.ID != id {
			continue
		}
		for _, tc := range ss.Conns() {
			if tc.CID() == cid {
				tc.Drop("closed by the administrator")
				return nil
			}
		}
		return fmt.Errorf("session %d has no connection %d", id, cid)
	}
	return fmt.Errorf("no session %d", id)
}

// CloseSessions ends every session of a target and returns how many there were.
func (s *Server) CloseSessions(target string) int {
	n := 0
	for _, ss := range s.table.list() {
		if !ss.Discovery && ss.Target() == target {
			ss.End("the target was closed by the administrator")
			n++
		}
	}
	return n
}

// MemoryUsed is the payload memory reserved now, in bytes, by all who share
// Config.Budget.
func (s *Server) MemoryUsed() int64 { return s.cfg.Budget.Used() }

// Announce sends sense data for a LUN (the eight bytes of a LUN field) to every
// session of a target as an asynchronous SCSI event (RFC 7143 §11.9). It tells
// initiators that have nothing to send what they would otherwise learn from a
// unit attention: Linux looks for new LUNs by itself when their set changed.
func (s *Server) Announce(target string, lun uint64, what sense.Sense) {
	var buf [sense.MaxLen]byte
	data := what.Encode(buf[:], false)
	for _, ss := range s.table.list() {
		if ss.Discovery || ss.Target() != target {
			continue
		}
		if conns := ss.Conns(); len(conns) > 0 {
			conns[0].AsyncSense(lun, data)
		}
	}
}
