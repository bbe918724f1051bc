package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"blockgate/internal/conndrive"
	"blockgate/iscsi/server"
)

// PortalConfig says where to listen.
type PortalConfig struct {
	// Address is "ip:port" or "[ip6]:port"; port 0 takes a free one. A wildcard
	// of one family does not listen on the other.
	Address string
	// Group is the target portal group tag; 0 means 1.
	Group uint16
	// Advertise is what discovery answers name in place of the address, as
	// "host:port".
	Advertise string
	// Congestion names the TCP congestion control of the connections that come in
	// here. Empty means DefaultCongestion, if the kernel has it; "-" leaves the
	// system's. Another one that the kernel does not have is an error.
	Congestion string
}

// DefaultCongestion is the congestion control of a portal that names none. Some
// systems default to one that paces local networks by timers, which takes half of
// their bandwidth.
const DefaultCongestion = server.DefaultCongestion

type portal struct {
	cfg  PortalConfig
	addr netip.AddrPort // as bound
	ln   net.Listener
	err  error // why it serves no more; under Gateway.mu
}

// PortalInfo describes a portal.
type PortalInfo struct {
	PortalConfig
	Bound netip.AddrPort
	Err   error // not nil: it has failed since
}

// AddPortal listens on an address. A failure to bind is an error and nothing
// else is tried. The result has the port that was chosen for port 0.
func (g *Gateway) AddPortal(ctx context.Context, cfg PortalConfig) (PortalInfo, error) {
	ap, err := netip.ParseAddrPort(cfg.Address)
	if err != nil {
		return PortalInfo{}, fmt.Errorf("portal %q: not an IP address with a port", cfg.Address)
	}
	network := "tcp4"
	if ap.Addr().Is6() {
		network = "tcp6"
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, network, cfg.Address)
	if err != nil {
		return PortalInfo{}, fmt.Errorf("portal %s: %w", cfg.Address, err)
	}
	info, err := g.AddListener(ln, cfg)
	if err != nil {
		ln.Close()
	}
	return info, err
}

// AddListener serves on a TCP listener that is there already, such as one that
// systemd has made. It belongs to the gateway unless an error is returned.
func (g *Gateway) AddListener(ln net.Listener, cfg PortalConfig) (PortalInfo, error) {
	ap, err := netip.ParseAddrPort(ln.Addr().String())
	if err != nil {
		return PortalInfo{}, fmt.Errorf("portal %s: not a TCP listener", ln.Addr())
	}
	if cfg.Group == 0 {
		cfg.Group = 1
	}
	if cfg.Address == "" {
		cfg.Address = ap.String()
	}
	switch cfg.Congestion {
	case "-":
	case "":
		// Best effort: without it connections work as well.
		_ = conndrive.ListenCongestion(ln, DefaultCongestion)
	default:
		if err := conndrive.ListenCongestion(ln, cfg.Congestion); err != nil {
			return PortalInfo{}, fmt.Errorf("portal %s: %w", cfg.Address, err)
		}
	}
	p := &portal{cfg: cfg, addr: ap, ln: ln}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return PortalInfo{}, ErrClosed
	}
	// Portals are known by what was asked for; two on port 0 are two portals.
	name := cfg.Address
	if want, err := netip.ParseAddrPort(cfg.Address); err == nil && want.Port() == 0 {
		name = ap.String()
	}
	if g.portals[name] != nil {
		return PortalInfo{}, fmt.Errorf("portal %s: %w", name, ErrExists)
	}
	g.portals[name] = p
	if err := g.listAllPortsLocked(); err != nil {
		delete(g.portals, name)
		return PortalInfo{}, err
	}
	g.serving.Go(func() {
		err := g.srv.Serve(&gate{Listener: ln, g: g}, cfg.Group)
		if !errors.Is(err, server.ErrClosed) {
			g.log.Error("gateway: portal failed", "portal", name, "err", err)
			g.mu.Lock()
			p.err = err
			g.mu.Unlock()
		}
	})
	return PortalInfo{PortalConfig: cfg, Bound: ap}, nil
}

// RemovePortal stops listening; sessions that came in there go on. address is
// the configured or the bound one.
func (g *Gateway) RemovePortal(address string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for name, p := range g.portals {
		if name == address || p.addr.String() == address {
			delete(g.portals, name)
			return errors.Join(p.ln.Close(), g.listAllPortsLocked())
		}
	}
	return fmt.Errorf("portal %s: %w", address, ErrNotFound)
}

// gate is a listener that accepts nobody before Admit, and hangs up on everyone
// while the gateway is offline.
type gate struct {
	net.Listener
	g *Gateway
}

func (l *gate) Accept() (net.Conn, error) {
	<-l.g.admitted
	for {
		c, err := l.Listener.Accept()
		if err != nil || !l.g.offline.Load() {
			return c, err
		}
		c.Close()
	}
}
