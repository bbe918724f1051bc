package cli

import (
	"context"
	"fmt"
	"net/netip"
	neturl "net/url"
	"strings"

	"blockgate/gateway"
	"blockgate/internal/daemon"
	"blockgate/internal/state"
)

// addNBD takes over what of the command line is about NBD.
func (s *setup) addNBD(o serveOptions) error {
	t := o.tls
	if len(o.nbd) == 0 {
		if t.cert+t.key+t.clientCA+t.psk != "" || t.optional {
			return &state.Error{Class: state.Usage, Code: "usage", Object: "the flags of TLS", Reason: "are for NBD, which is not served",
				Hint: "say where NBD is to be served: --nbd ADDRESS"}
		}
		return nil
	}
	if o.chap != "" && len(o.listen) == 0 {
		return &state.Error{Class: state.Usage, Code: "usage", Object: "--chap", Reason: "is for iSCSI, and only NBD is served",
			Hint: "add --listen, or protect NBD by --tls-cert, --tls-key and --tls-client-ca"}
	}
	for _, l := range o.nbd {
		p, err := t.portal(l)
		if err != nil {
			e := state.ErrorOf(err)
			e.Object = fmt.Sprintf("--nbd %q", l)
			return e
		}
		s.nbdPortals = append(s.nbdPortals, p)
	}
	return nil
}

// exports are the operations that export the volumes to NBD clients. An export
// that a state directory has already stays as it is.
func (s *setup) exports(d *daemon.Daemon) []state.Op {
	if len(s.nbdPortals) == 0 {
		return nil
	}
	have := map[string]bool{}
	for _, e := range d.Exports(context.Background()) {
		have[e.Name] = true
	}
	var ops []state.Op
	for _, v := range s.volumes {
		if !have[v.Name] {
			ops = append(ops, state.Op{Verb: state.Create, Kind: state.KindExport,
				Export: &state.Export{Name: v.Name, Volume: v.Name, ACL: []state.ACLRule{{All: true}}}})
		}
	}
	return ops
}

// nbdURL is the URI of an export, as the NBD project has defined it.
func (s *setup) nbdURL(p gateway.NBDPortalInfo, name string, here bool) string {
	scheme := "nbd"
	for _, c := range s.nbdPortals {
		if c.Address == p.Address && c.TLS != "" {
			scheme = "nbds"
		}
	}
	if path, ok := strings.CutPrefix(p.Bound, "unix:"); ok {
		return fmt.Sprintf("%s+unix:///%s?socket=%s", scheme, neturl.PathEscape(name), path)
	}
	return fmt.Sprintf("%s://%s/%s", scheme, reachableNBD(p, here), neturl.PathEscape(name))
}

func reachableNBD(p gateway.NBDPortalInfo, here bool) string {
	a, err := netip.ParseAddrPort(p.Bound)
	if err != nil {
		return p.Bound
	}
	return reachable(gateway.PortalInfo{Bound: a}, here).String()
}

// nbdURLs are the URIs of the exports, at the first address that NBD is served on.
func (s *setup) nbdURLs(d *daemon.Daemon, here bool) []string {
	if len(d.BoundNBD()) == 0 {
		return nil
	}
	var l []string
	for _, e := range d.Exports(context.Background()) {
		l = append(l, s.nbdURL(d.BoundNBD()[0], e.Name, here))
	}
	return l
}

// announceNBDPortals prints where NBD is served.
func (s *setup) announceNBDPortals(b *strings.Builder, d *daemon.Daemon) {
	for _, p := range d.BoundNBD() {
		reach := "reachable from the network"
		if t, err := netip.ParseAddrPort(p.Bound); err == nil && t.Addr().IsLoopback() {
			reach = "loopback only"
		} else if strings.HasPrefix(p.Bound, "unix:") {
			reach = "this user only"
		}
		for _, c := range s.nbdPortals {
			if c.Address == p.Address && c.TLS != "" {
				reach += ", TLS " + c.TLS
			}
		}
		fmt.Fprintf(b, "portal   nbd %s  (%s)\n", p.Bound, reach)
	}
}

// announceNBDUse prints the lines to paste for NBD.
func (s *setup) announceNBDUse(b *strings.Builder, d *daemon.Daemon) {
	exports := d.Exports(context.Background())
	if len(d.BoundNBD()) == 0 || len(exports) == 0 {
		return
	}
	p, name := d.BoundNBD()[0], exports[0].Name
	where := "-unix " + strings.TrimPrefix(p.Bound, "unix:")
	if a, err := netip.ParseAddrPort(reachableNBD(p, false)); err == nil {
		where = fmt.Sprintf("%s %d", a.Addr(), a.Port())
	}
	u := s.nbdURL(p, name, false)
	if strings.HasPrefix(u, "nbds") {
		fmt.Fprintf(b, "NBD:     nbdinfo '%s'\n", s.withCredentials(u, p))
		return
	}
	fmt.Fprintf(b, "Linux:   nbd-client %s /dev/nbd0 -N %s\n", where, name)
	fmt.Fprintf(b, "QEMU:    -drive 'file=%s,format=raw,if=virtio'\n", u)
}

// withCredentials adds to a URI what a client has to bring: the key of a file
// of keys, or the directory with its certificates. USER and DIR are the client's.
func (s *setup) withCredentials(u string, p gateway.NBDPortalInfo) string {
	and := "?"
	if strings.Contains(u, "?") {
		and = "&"
	}
	for _, c := range s.nbdPortals {
		if c.Address == p.Address && c.PSKFile != "" && c.CertFile == "" {
			return strings.Replace(u, "://", "://USER@", 1) + and + "tls-psk-file=" + c.PSKFile
		}
	}
	return u + and + "tls-certificates=DIR"
}

// nbdEnvironment is what a captive command finds of NBD in its environment.
func (s *setup) nbdEnvironment(d *daemon.Daemon) []string {
	var env []string
	for i, u := range s.nbdURLs(d, true) {
		if i == 0 {
			env = append(env, "BLOCKGATE_NBD_URL="+u)
		}
		env = append(env, fmt.Sprintf("BLOCKGATE_NBD_URL_%d=%s", i, u))
	}
	return env
}

// warnOpenNBD warns of exports that everyone in the network can use.
func (a *app) warnOpenNBD(d *daemon.Daemon) {
	closed := map[string]bool{}
	for _, p := range d.NBDPortals(context.Background()) {
		closed[p.Bound] = p.TLS == state.TLSRequired && (p.ClientCAFile != "" || p.PSKFile != "")
	}
	for _, p := range d.BoundNBD() {
		t, err := netip.ParseAddrPort(p.Bound)
		if err != nil || t.Addr().IsLoopback() || closed[p.Bound] {
			continue
		}
		for _, e := range d.Exports(context.Background()) {
			for _, r := range e.ACL {
				if r.All {
					a.note("warning: everyone who reaches %s can use NBD export %q; ask for certificates with --tls-cert, --tls-key and --tls-client-ca", p.Bound, e.Name)
				}
			}
		}
	}
}
