package cli

import (
	"fmt"
	"net/netip"
	"strings"

	"blockgate/gateway"
	"blockgate/internal/daemon"
)

// announceURLs prints where the disks are.
func (s *setup) announceURLs(b *strings.Builder, d *daemon.Daemon) {
	if len(d.Bound()) > 0 {
		addr := reachable(d.Bound()[0], false)
		for _, t := range s.served {
			for _, l := range t.LUNs {
				fmt.Fprintf(b, "url      %s\n", url(s.login(), addr, t.Name, l.Number))
			}
		}
	}
	for _, u := range s.nbdURLs(d, false) {
		fmt.Fprintf(b, "url      %s\n", u)
	}
}

// login is what of a URL says who logs in, without the secret.
func (s *setup) login() string {
	if s.account == nil {
		return ""
	}
	return s.account.User + "%SECRET@"
}

// announceUse prints the lines to paste.
func (s *setup) announceUse(b *strings.Builder, d *daemon.Daemon) {
	if len(d.Bound()) > 0 {
		addr, t := reachable(d.Bound()[0], false), s.served[0]
		fmt.Fprintf(b, "Linux:   iscsiadm -m discovery -t st -p %s && ", addr)
		if s.account != nil {
			set := fmt.Sprintf("iscsiadm -m node -T %s -p %s -o update", t.Name, addr)
			fmt.Fprintf(b, "%s -n node.session.auth.authmethod -v CHAP && %s -n node.session.auth.username -v %s && %s -n node.session.auth.password -v SECRET && ",
				set, set, s.account.User, set)
		}
		fmt.Fprintf(b, "iscsiadm -m node -T %s -p %s --login\n", t.Name, addr)
		if len(t.LUNs) > 0 {
			fmt.Fprintf(b, "QEMU:    -drive file=%s,format=raw,if=virtio\n", url(s.login(), addr, t.Name, t.LUNs[0].Number))
		}
	}
	s.announceNBDUse(b, d)
}

// reachable is an address that stands for a portal: loopback for a wildcard if
// it is for this machine, otherwise one of this machine's addresses.
func reachable(p gateway.PortalInfo, here bool) netip.AddrPort {
	addr := p.Bound.Addr()
	if !addr.IsUnspecified() {
		return p.Bound
	}
	local := netip.MustParseAddr("127.0.0.1")
	if addr.Is6() {
		local = netip.IPv6Loopback()
	}
	if !here {
		for _, a := range gateway.LocalAddresses() {
			if a.Is4() == addr.Is4() {
				local = a
				break
			}
		}
	}
	return netip.AddrPortFrom(local, p.Bound.Port())
}

func url(login string, addr netip.AddrPort, target string, lun uint64) string {
	return fmt.Sprintf("iscsi://%s%s/%s/%d", login, addr, target, lun)
}

// environment is what a captive command finds in its environment.
func (s *setup) environment(d *daemon.Daemon) []string {
	env := s.nbdEnvironment(d)
	if len(d.Bound()) == 0 {
		return env
	}
	addr := reachable(d.Bound()[0], true)
	login := ""
	if s.account != nil {
		login = s.account.User + "%" + s.account.Secret + "@"
	}
	n := 0
	for _, t := range s.served {
		for _, l := range t.LUNs {
			u := url(login, addr, t.Name, l.Number)
			if n == 0 {
				env = append(env, "BLOCKGATE_URL="+u)
			}
			env = append(env, fmt.Sprintf("BLOCKGATE_URL_%d=%s", n, u))
			n++
		}
	}
	return append(env, "BLOCKGATE_PORTAL="+addr.String(), "BLOCKGATE_TARGET="+s.served[0].Name)
}
