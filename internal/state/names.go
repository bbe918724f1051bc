package state

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxTargetName is the longest iSCSI name in bytes (RFC 7143 §4.2.7.1).
const MaxTargetName = 223

// CheckVolumeName tells what is wrong with a volume's name: 1 to 128 letters,
// digits, dots, dashes and underscores, the first a letter or digit.
func CheckVolumeName(name string) error { return checkName(KindVolume, "a volume", name) }

func checkName(k Kind, what, name string) error {
	if name == "" || len(name) > 128 {
		return invalid(CodeInvalidName, k, name, "", "%s's name has 1 to 128 characters", what)
	}
	for i, c := range []byte(name) {
		if !alnum(c) && (i == 0 || !strings.ContainsRune("._-", rune(c))) {
			return invalid(CodeInvalidName, k, name, "use letters, digits, '.', '-' and '_', beginning with a letter or digit",
				"%s's name cannot have %q at position %d", what, runeAt(name, i), i+1)
		}
	}
	return nil
}

// CheckTargetName tells what is wrong with a target's name. Only characters
// that survive stringprep unchanged and that every initiator takes are
// accepted. Whether it is well formed is not asked: tgt takes any name, people
// have such names in their scripts, and initiators log in to them. The native
// command line asks CheckISCSIName too.
func CheckTargetName(name string) error {
	if name == "" {
		return invalid(CodeInvalidName, KindTarget, name, "for example iqn.2025-01.io.example:disk1", "a target needs a name")
	}
	if len(name) > MaxTargetName {
		return invalid(CodeInvalidName, KindTarget, name, "", "an iSCSI name has at most %d bytes, this one has %d", MaxTargetName, len(name))
	}
	for i, c := range []byte(name) {
		if !alnum(c) && !strings.ContainsRune(".-:", rune(c)) {
			return invalid(CodeInvalidName, KindTarget, name, "use letters, digits, '.', '-' and ':'",
				"an iSCSI name cannot have %q at position %d", runeAt(name, i), i+1)
		}
	}
	return nil
}

// CheckISCSIName tells what is wrong with an iSCSI name by RFC 7143 §4.2.7:
// iqn.YYYY-MM.reversed.domain[:anything], eui. and 16 hex digits, or naa. and
// 16 or 32 hex digits.
func CheckISCSIName(name string) error {
	bad := func(why string) error {
		return invalid(CodeInvalidName, KindTarget, name, "for example iqn.2025-01.io.example:disk1", "is not an iSCSI name: %s", why)
	}
	kind, rest, ok := strings.Cut(name, ".")
	if !ok {
		return bad("it begins with none of iqn., eui. and naa.")
	}
	switch kind {
	case "iqn":
		date, authority, _ := strings.Cut(rest, ".")
		if len(date) != 7 || date[4] != '-' || !digits(date[:4]) || !digits(date[5:]) || date[5:] < "01" || date[5:] > "12" {
			return bad("after iqn. comes a year and a month, as in 2025-01")
		}
		if domain, _, _ := strings.Cut(authority, ":"); domain == "" {
			return bad("after the date comes a reversed domain name, as in io.example")
		}
	case "eui", "naa":
		if n := len(rest); !hexDigits(rest) || n != 16 && (kind == "eui" || n != 32) {
			return bad("after " + kind + ". come 16 hex digits (naa: or 32)")
		}
	default:
		return bad("it begins with none of iqn., eui. and naa.")
	}
	return nil
}

// checkAccount tells what is wrong with an account.
func checkAccount(a Account) error {
	if a.User == "" || len(a.User) > 255 || !printable(a.User) {
		return invalid(CodeInvalidName, KindAccount, a.User, "", "a CHAP user has 1 to 255 printable characters")
	}
	if a.Secret == "" {
		return invalid(CodeInvalidValue, KindAccount, a.User, "give one of 12 characters or more", "a CHAP account needs a secret")
	}
	if len(a.Secret) > 255 || strings.ContainsRune(a.Secret, 0) {
		return invalid(CodeInvalidValue, KindAccount, a.User, "", "a CHAP secret has at most 255 bytes and no zero byte")
	}
	return nil
}

// ParsePortal makes a portal's address canonical: "10.0.0.1", "10.0.0.1:3260",
// "fe80::1%eth0", "[::]:3260". The port is 3260 if absent. Host names are
// refused: what a name stands for can change under a running gateway.
func ParsePortal(addr string) (string, error) { return parsePortal(KindPortal, addr, 3260) }

func parsePortal(k Kind, addr string, port uint16) (string, error) {
	bad := func(format string, a ...any) error {
		return invalid(CodeInvalidValue, k, addr, fmt.Sprintf("write it as 192.0.2.10:%d or [2001:db8::10]:%d", port, port), format, a...)
	}
	if len(addr) > 255 {
		return "", bad("is too long")
	}
	if a, err := portalIP(addr, true); err == nil {
		return netip.AddrPortFrom(a, port).String(), nil
	}
	host, number, ok := cutLast(addr, ':')
	if !ok {
		return "", bad("is not an IP address with a port")
	}
	a, err := portalIP(host, false)
	if err != nil {
		return "", bad("%q is not an IP address", host)
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return "", bad("%q is not a TCP port", number)
	}
	return netip.AddrPortFrom(a, uint16(n)).String(), nil
}

// portalIP reads an address, an IPv6 one in brackets, or without if bare is
// allowed. A zone is an interface's name or number.
func portalIP(s string, bare bool) (netip.Addr, error) {
	in, bracketed := s, false
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		in, bracketed = s[1:len(s)-1], true
	}
	a, err := netip.ParseAddr(in)
	switch {
	case err != nil:
		return a, err
	case a.Is6() != bracketed && !(bare && a.Is6()):
		return a, fmt.Errorf("brackets are for IPv6")
	}
	for _, c := range []byte(a.Zone()) {
		if !alnum(c) && !strings.ContainsRune("._-", rune(c)) {
			return a, fmt.Errorf("zone %q", a.Zone())
		}
	}
	return a.Unmap(), nil
}

// ParseACLAddress reads an address rule: an IPv4 or bracketed IPv6 address,
// with or without a prefix length. Host bits below the prefix are an error: a
// rule that looks like one host and means a network is a trap.
func ParseACLAddress(s string) (netip.Prefix, error) {
	text := s
	if strings.HasPrefix(s, "[") {
		in, out, ok := strings.Cut(s[1:], "]")
		if a, err := netip.ParseAddr(in); !ok || err != nil || !a.Is6() || a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is not an IPv6 address in brackets", s)
		}
		text = in + out
	}
	if !strings.Contains(text, "/") {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is neither an IP address nor a network", s)
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is neither an IP address nor a network", s)
	}
	if p.Masked() != p {
		return netip.Prefix{}, fmt.Errorf("%q has host bits set, the network is %s", s, p.Masked())
	}
	return p, nil
}

func checkRule(k Kind, name string, r ACLRule) error {
	n := 0
	for _, set := range []bool{r.All, r.Address != "", r.Name != ""} {
		if set {
			n++
		}
	}
	if n != 1 {
		return invalid(CodeInvalidValue, k, name, "", "an access rule is one of ALL, an address and an initiator name")
	}
	if r.Address != "" {
		if _, err := ParseACLAddress(r.Address); err != nil {
			return invalid(CodeInvalidValue, k, name, "write it as 192.0.2.7, 192.0.2.0/24, [2001:db8::7] or [2001:db8::]/64", "access rule: %v", err)
		}
	}
	if len(r.Name) > MaxTargetName || !printable(r.Name) {
		return invalid(CodeInvalidValue, k, name, "", "access rule: an initiator name has at most %d printable bytes", MaxTargetName)
	}
	return nil
}

// runeAt is the character that begins at byte i.
func runeAt(s string, i int) rune {
	r, _ := utf8.DecodeRuneInString(s[i:])
	return r
}

func alnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func hexDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789abcdefABCDEF") == ""
}

func printable(s string) bool {
	for _, c := range s {
		if c < ' ' || c == 0x7f || c == '\ufffd' {
			return false
		}
	}
	return true
}

func cutLast(s string, sep byte) (head, tail string, ok bool) {
	i := strings.LastIndexByte(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}
