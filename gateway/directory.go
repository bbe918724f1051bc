package gateway

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"blockgate/iscsi"
)

// directory is what the iSCSI server sees of the gateway.
type directory struct{ g *Gateway }

var _ iscsi.Directory = directory{}

// Target implements iscsi.Directory.
func (d directory) Target(name string, p iscsi.Peer) (*iscsi.Access, iscsi.LoginStatus) {
	d.g.mu.RLock()
	t := d.g.targets[name]
	d.g.mu.RUnlock()
	if t == nil {
		return nil, iscsi.LoginNotFound
	}
	c := t.cfg.Load()
	if ok, _ := allowed(c.ACL, &p); !ok || !c.inGroup(p.Group) {
		return nil, iscsi.LoginNotFound
	}
	if c.Offline {
		return nil, iscsi.LoginTargetError
	}
	a := &iscsi.Access{
		Target: t.name, Alias: c.Alias, Device: t.dev, RelPort: c.port(p.Group), Auth: c.Auth, Offer: c.Offer, LUNs: t.sees(p),
	}
	if c.Redirect != "" {
		a.Redirect = c.Redirect
		if c.RedirectPermanent {
			return a, iscsi.LoginMovedPermanently
		}
		return a, iscsi.LoginMovedTemporarily
	}
	if c.RedirectTo != nil {
		a.RedirectTo = func() (string, bool, error) { return c.RedirectTo(p) }
	}
	return a, iscsi.LoginOK
}

// DiscoveryAuth implements iscsi.Directory.
func (d directory) DiscoveryAuth(iscsi.Peer) iscsi.AuthPolicy {
	d.g.mu.RLock()
	defer d.g.mu.RUnlock()
	return d.g.discovery
}

// Targets implements iscsi.Directory.
func (d directory) Targets(name string, p iscsi.Peer) []iscsi.TargetRecord {
	g := d.g
	g.mu.RLock()
	var found []*target
	if name != "" {
		if t := g.targets[name]; t != nil {
			found = append(found, t)
		}
	} else {
		found = make([]*target, 0, len(g.targets))
		for _, t := range g.targets {
			found = append(found, t)
		}
	}
	portals := make([]*portal, 0, len(g.portals))
	for _, q := range g.portals {
		if q.err == nil {
			portals = append(portals, q)
		}
	}
	g.mu.RUnlock()
	slices.SortFunc(found, func(a, b *target) int { return strings.Compare(a.name, b.name) })

	ways := addresses(portals, p, interfaceAddrs)
	var recs []iscsi.TargetRecord
	for _, t := range found {
		c := t.cfg.Load()
		if ok, _ := allowed(c.ACL, &p); !ok {
			continue
		}
		r := iscsi.TargetRecord{Name: t.name, Alias: c.Alias}
		for _, w := range ways {
			if c.inGroup(w.group) {
				r.Portals = append(r.Portals, w.text)
			}
		}
		if len(r.Portals) > 0 {
			recs = append(recs, r)
		}
	}
	return recs
}

// way is an address that a peer can be told.
type way struct {
	text  string // "ip:port,tag"
	group uint16
}

// addresses lists what a peer is told of the portals, the one it came by first.
// A wildcard portal of the family the peer came by stands for the local address
// of its connection: it is known to be reachable. One of the other family stands
// for this machine's addresses, except for a peer that came over loopback, which
// may be the end of a tunnel.
func addresses(portals []*portal, p iscsi.Peer, ifaces func() []netip.Addr) []way {
	local := netip.AddrPortFrom(p.Local.Addr().Unmap(), p.Local.Port())
	type ranked struct {
		way
		own bool
	}
	var l []ranked
	seen := map[string]bool{}
	add := func(addr string, group uint16, own bool) {
		text := fmt.Sprintf("%s,%d", addr, group)
		if !seen[text] {
			seen[text] = true
			l = append(l, ranked{way{text, group}, own})
		}
	}
	for _, q := range portals {
		a, port, group := q.addr.Addr(), q.addr.Port(), q.cfg.Group
		sameFamily := a.Is4() == local.Addr().Is4()
		own := port == local.Port() && (a == local.Addr() || a.IsUnspecified() && sameFamily)
		switch {
		case q.cfg.Advertise != "":
			add(q.cfg.Advertise, group, own)
		case !a.IsUnspecified():
			add(q.addr.String(), group, own)
		case sameFamily && local.IsValid():
			add(netip.AddrPortFrom(local.Addr(), port).String(), group, own)
		case !local.Addr().IsLoopback():
			for _, i := range ifaces() {
				if i.Is4() == a.Is4() {
					add(netip.AddrPortFrom(i, port).String(), group, false)
				}
			}
		}
	}
	slices.SortFunc(l, func(a, b ranked) int {
		if a.own != b.own {
			if a.own {
				return -1
			}
			return 1
		}
		return strings.Compare(a.text, b.text)
	})
	out := make([]way, len(l))
	for i := range l {
		out[i] = l[i].way
	}
	return out
}

// interfaceAddrs are this machine's addresses that others can reach.
func interfaceAddrs() []netip.Addr {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for _, a := range list {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap().IsGlobalUnicast() {
			out = append(out, ip.Unmap())
		}
	}
	return out
}

// LocalAddresses are the addresses by which others may reach this machine.
func LocalAddresses() []netip.Addr { return interfaceAddrs() }
