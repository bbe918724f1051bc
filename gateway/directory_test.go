package gateway

import (
	"net/netip"
	"slices"
	"testing"

	"blockgate/iscsi"
)

func TestAddresses(t *testing.T) {
	ifaces := func() []netip.Addr {
		return []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("2001:db8::1")}
	}
	for _, c := range []struct {
		what    string
		portals []PortalConfig
		local   string // where the initiator connected to
		want    []string
	}{
		{"the one it came by first", []PortalConfig{{Address: "10.0.0.1:3260", Group: 1}, {Address: "10.1.0.1:3260", Group: 2}}, "10.1.0.1:3260",
			[]string{"10.1.0.1:3260,2", "10.0.0.1:3260,1"}},
		{"a wildcard is the connection's address", []PortalConfig{{Address: "0.0.0.0:3260", Group: 1}}, "10.1.0.1:3260",
			[]string{"10.1.0.1:3260,1"}},
		{"another wildcard of the family, on its port", []PortalConfig{{Address: "0.0.0.0:3260", Group: 1}, {Address: "0.0.0.0:3261", Group: 1}}, "10.1.0.1:3261",
			[]string{"10.1.0.1:3261,1", "10.1.0.1:3260,1"}},
		{"the other family's wildcard", []PortalConfig{{Address: "0.0.0.0:3260", Group: 1}, {Address: "[::]:3260", Group: 1}}, "10.0.0.1:3260",
			[]string{"10.0.0.1:3260,1", "[2001:db8::1]:3260,1"}},
		{"and back", []PortalConfig{{Address: "0.0.0.0:3260", Group: 1}, {Address: "[::]:3260", Group: 1}}, "[2001:db8::1]:3260",
			[]string{"[2001:db8::1]:3260,1", "10.0.0.1:3260,1", "10.1.0.1:3260,1"}},
		{"not over loopback", []PortalConfig{{Address: "0.0.0.0:3260", Group: 1}, {Address: "[::]:3260", Group: 1}}, "127.0.0.1:3260",
			[]string{"127.0.0.1:3260,1"}},
		{"advertised in place of it", []PortalConfig{{Address: "0.0.0.0:3260", Group: 1, Advertise: "san.example:13260"}}, "10.0.0.1:3260",
			[]string{"san.example:13260,1"}},
		{"an IPv4 client of an IPv6 socket", []PortalConfig{{Address: "0.0.0.0:3260", Group: 1}}, "[::ffff:10.0.0.1]:3260",
			[]string{"10.0.0.1:3260,1"}},
		{"each once", []PortalConfig{{Address: "0.0.0.0:3260", Group: 1}, {Address: "10.0.0.1:3260", Group: 1}}, "10.0.0.1:3260",
			[]string{"10.0.0.1:3260,1"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			var portals []*portal
			for _, p := range c.portals {
				portals = append(portals, &portal{cfg: p, addr: netip.MustParseAddrPort(p.Address)})
			}
			var got []string
			for _, w := range addresses(portals, iscsi.Peer{Local: netip.MustParseAddrPort(c.local)}, ifaces) {
				got = append(got, w.text)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestRuleMatch(t *testing.T) {
	for _, c := range []struct {
		network, from string
		want          bool
	}{
		{"10.0.0.0/24", "10.0.0.7:1", true},
		{"10.0.0.0/24", "10.0.1.7:1", false},
		{"10.0.0.0/24", "[::ffff:10.0.0.7]:1", true},
		{"fe80::/64", "[fe80::1%eth0]:1", true},
		{"2001:db8::1/128", "[2001:db8::1]:1", true},
		{"2001:db8::1/128", "[2001:db8::2]:1", false},
		{"::/0", "10.0.0.7:1", false},
	} {
		r := Rule{Network: netip.MustParsePrefix(c.network)}
		if got := r.match(&iscsi.Peer{Remote: netip.MustParseAddrPort(c.from)}); got != c.want {
			t.Errorf("%s from %s: %v", c.network, c.from, got)
		}
	}
}
