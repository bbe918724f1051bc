package gateway

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"blockgate/iscsi"
)

// Rule lets initiators use a target. Of All, Addresses and Initiator exactly
// one is set. An initiator that no rule matches does not learn that the target
// exists.
type Rule struct {
	All bool
	// Network matches by the address the initiator comes from.
	Network netip.Prefix
	// Initiator matches an iSCSI name; "*" stands for any characters and "?" for
	// one, which no name has itself (RFC 7143 §4.2.7.2). A name is what the
	// initiator says it is; only CHAP proves it.
	Initiator string
	// LUNs, if not empty, are all that a matching initiator sees. Whoever matches
	// several rules sees the LUNs of all of them.
	LUNs []uint64
}

// Everyone is the rule list that lets every initiator in.
func Everyone() []Rule { return []Rule{{All: true}} }

func (r *Rule) check() error {
	n := 0
	for _, set := range []bool{r.All, r.Network.IsValid(), r.Initiator != ""} {
		if set {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("an access rule is one of all, a network and an initiator name")
	}
	return nil
}

func (r *Rule) match(p *iscsi.Peer) bool {
	switch {
	case r.All:
		return true
	case r.Initiator != "":
		return glob(r.Initiator, p.Name)
	}
	// An IPv4 client of an IPv6 socket is ::ffff:a.b.c.d there, and a link-local
	// one has a zone; rules have neither.
	return r.Network.Contains(p.Remote.Addr().Unmap().WithZone(""))
}

// glob matches bytes. A mismatch goes back to the last star alone, so that the
// time is bounded by the product of the two lengths whatever the pattern is.
func glob(pattern, s string) bool {
	p, i := 0, 0
	star, mark := -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// allowed tells whether any rule matches, and the LUNs it then shows: nil for
// all of them.
func allowed(rules []Rule, p *iscsi.Peer) (ok bool, luns []uint64) {
	for i := range rules {
		r := &rules[i]
		if !r.match(p) {
			continue
		}
		if len(r.LUNs) == 0 {
			return true, nil
		}
		ok, luns = true, append(luns, r.LUNs...)
	}
	return ok, luns
}

// sees is the LUN mask of a peer, by the rules as they are when asked.
func (t *target) sees(p iscsi.Peer) func(lun uint64) bool {
	return func(lun uint64) bool {
		cfg := t.cfg.Load()
		if cfg.Controller && lun == 0 {
			return true
		}
		ok, luns := allowed(cfg.ACL, &p)
		return ok && (luns == nil || slices.Contains(luns, lun))
	}
}

func redirect(addr string) (string, error) {
	if addr == "" || strings.ContainsAny(addr, " \x00") || len(addr) > 255 {
		return "", fmt.Errorf("%q is not an address to redirect to", addr)
	}
	return addr, nil
}
