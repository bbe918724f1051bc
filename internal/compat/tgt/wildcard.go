package tgt

import (
	"net/netip"
	"os"
)

// wildcards are the addresses that tgtd listens on unless told otherwise. A
// machine without IPv6 has only the first; on Linux the table of IPv6 addresses
// then is missing.
func wildcards() []string {
	all := []string{"0.0.0.0:3260"}
	if _, err := os.Stat("/proc/net/if_inet6"); err == nil {
		all = append(all, "[::]:3260")
	}
	return all
}

// overlaps tells whether a socket on one address keeps a wildcard of the same
// port from being bound.
func overlaps(kept, wildcard string) bool {
	k, err1 := netip.ParseAddrPort(kept)
	w, err2 := netip.ParseAddrPort(wildcard)
	return err1 == nil && err2 == nil && k.Port() == w.Port() && k.Addr().Is4() == w.Addr().Is4()
}
