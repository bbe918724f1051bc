// Package gateway is the running system and the library's front door: volumes
// (backing stores seen as logical units), targets with their LUNs and access
// rules, and the portals they are reached by. It keeps nothing and reads no
// configuration; what should exist is told to it by calls.
//
//	g, _ := gateway.New(gateway.Config{})
//	defer g.Close()
//	g.AddVolume(ctx, gateway.VolumeConfig{Name: "disk", URL: "ram:1G"})
//	g.AddTarget(gateway.TargetConfig{Name: "iqn.2025-01.io.example:disk", ACL: gateway.Everyone()})
//	g.MapLUN("iqn.2025-01.io.example:disk", 0, "disk")
//	p, _ := g.AddPortal(ctx, gateway.PortalConfig{Address: "127.0.0.1:0"})
//
// Several gateways may run in one process; they share nothing.
package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"blockgate/backing"
	"blockgate/backing/engines"
	"blockgate/iscsi"
	"blockgate/iscsi/server"
	nbdserver "blockgate/nbd/server"
	"blockgate/scsi"
)

// Errors of the gateway's calls, wrapped with the object they are about.
var (
	ErrNotFound = errors.New("does not exist")
	ErrExists   = errors.New("exists already")
	ErrInUse    = errors.New("is in use")
	ErrClosed   = errors.New("the gateway is closed")
)

// Defaults of Config.
const (
	DefaultOpenTimeout  = 30 * time.Second
	DefaultCloseTimeout = 5 * time.Second
)

// Config is what a Gateway needs; the zero value is usable.
type Config struct {
	// Engines are the kinds of stores that volumes can have; nil: all that are
	// built in.
	Engines *backing.Registry
	Logger  *slog.Logger // nil: no log
	// Memory bounds the payload held for all sessions and connections together, of
	// iSCSI and of NBD, in bytes; 0: the server's default.
	Memory int64
	// LoginTimeout closes a connection that has not logged in by then; 0: the
	// server's default.
	LoginTimeout time.Duration
	// OpenTimeout and CloseTimeout bound how long a call waits for a store.
	OpenTimeout, CloseTimeout time.Duration
	// SnapshotTimeout bounds how long a snapshot or clone may take to be made.
	SnapshotTimeout time.Duration
	// Hold has portals listen and let connections wait until Admit, so that whoever
	// finds a port open finds everything behind it as well.
	Hold bool
}

// Gateway is a running system. All methods are safe for concurrent use.
type Gateway struct {
	cfg Config
	log *slog.Logger
	srv *server.Server
	nbd *nbdserver.Server
	// copies lets the volumes copy from and to each other.
	copies *scsi.CopyManager

	offline atomic.Bool

	threadsOnce sync.Once // see noteThreads

	admitOnce sync.Once
	admitted  chan struct{} // closed by Admit

	// mu guards what follows. It is never held over a call of a store, the
	// network, or the iSCSI server.
	mu         sync.RWMutex
	volumes    map[string]*volume
	targets    map[string]*target
	portals    map[string]*portal
	exports    map[string]*export
	nbdPortals map[string]*nbdPortal
	discovery  iscsi.AuthPolicy
	lingering  map[*volume]struct{}
	closed     bool

	serving sync.WaitGroup // Serve of the portals
}

// New makes a gateway without volumes, targets and portals.
func New(cfg Config) (*Gateway, error) {
	if cfg.Engines == nil {
		cfg.Engines = engines.Default()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.OpenTimeout <= 0 {
		cfg.OpenTimeout = DefaultOpenTimeout
	}
	if cfg.CloseTimeout <= 0 {
		cfg.CloseTimeout = DefaultCloseTimeout
	}
	if cfg.SnapshotTimeout <= 0 {
		cfg.SnapshotTimeout = DefaultSnapshotTimeout
	}
	if cfg.Memory < 0 || cfg.LoginTimeout < 0 {
		return nil, errors.New("gateway: negative memory or login timeout")
	}
	g := &Gateway{
		cfg: cfg, log: cfg.Logger, copies: scsi.NewCopyManager(),
		volumes: map[string]*volume{}, targets: map[string]*target{}, portals: map[string]*portal{},
		exports: map[string]*export{}, nbdPortals: map[string]*nbdPortal{},
		lingering: map[*volume]struct{}{}, admitted: make(chan struct{}),
	}
	if !cfg.Hold {
		g.Admit()
	}
	budget := iscsi.NewBudget(cmp.Or(cfg.Memory, server.DefaultMemory))
	g.srv = server.New(server.Config{
		Directory: directory{g}, Logger: cfg.Logger, Budget: budget, LoginTimeout: cfg.LoginTimeout,
		Congestion: "-", // connections have their portal's
	})
	g.nbd = nbdserver.New(nbdserver.Config{
		Directory: nbdDirectory{g}, Logger: cfg.Logger, Budget: budget, LoginTimeout: cfg.LoginTimeout,
	})
	return g, nil
}

// Engines lists the URL schemes that volumes can have, sorted.
func (g *Gateway) Engines() []string { return g.cfg.Engines.Schemes() }

// Admit lets in the connections that wait at the portals, and from now on all; see
// Config.Hold.
func (g *Gateway) Admit() { g.admitOnce.Do(func() { close(g.admitted) }) }

// SetOffline makes the gateway accept and close every new connection, or lifts
// that. Sessions go on.
func (g *Gateway) SetOffline(on bool) { g.offline.Store(on) }

// SetDiscoveryAuth says how initiators prove themselves for discovery sessions.
func (g *Gateway) SetDiscoveryAuth(p iscsi.AuthPolicy) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.discovery = p
}

// Sessions lists the iSCSI sessions, oldest first.
func (g *Gateway) Sessions() []server.SessionInfo { return g.srv.Sessions() }

// SessionStats gives the counters of the sessions with a target, or all with "".
func (g *Gateway) SessionStats(target string) []server.SessionStats { return g.srv.Stats(target) }

// CloseConnection closes one connection of a session.
func (g *Gateway) CloseConnection(session uint64, cid uint16) error {
	return g.srv.CloseConnection(session, cid)
}

// CloseSessions ends the sessions of a target and says how many there were.
func (g *Gateway) CloseSessions(target string) int { return g.srv.CloseSessions(target) }

// Shutdown stops listening, asks every initiator to log out, waits for that
// until ctx ends, and closes what is left, the stores at last. The error tells
// what did not end as it should; the gateway is closed in any case.
func (g *Gateway) Shutdown(ctx context.Context) error {
	drain := g.srv.Shutdown(ctx)
	if drain != nil {
		drain = fmt.Errorf("sessions were closed that did not log out: %w", drain)
	}
	return errors.Join(drain, g.Close())
}

// Close closes sessions and portals at once, then every store after a flush.
// It returns within CloseTimeout, also when a store hangs; the error then
// names it.
func (g *Gateway) Close() error {
	g.srv.Close()
	g.nbd.Close()
	g.Admit() // whom no listener accepts any more
	g.mu.Lock()
	g.closed = true
	volumes := g.volumes
	g.volumes, g.targets, g.portals = map[string]*volume{}, map[string]*target{}, map[string]*portal{}
	g.exports, g.nbdPortals = map[string]*export{}, map[string]*nbdPortal{}
	g.mu.Unlock()
	g.serving.Wait()

	ctx, cancel := context.WithTimeout(context.Background(), g.cfg.CloseTimeout)
	defer cancel()
	errs := make(chan error, len(volumes))
	limit := make(chan struct{}, 32)
	for _, v := range volumes {
		go func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			errs <- g.retire(ctx, v)
		}()
	}
	var all error
	for range volumes {
		all = errors.Join(all, <-errs)
	}
	return all
}
