package sheepdog

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"blockgate/backing/sheepdog/internal/wire"
)

// Gateway is where a sheep listens.
type Gateway struct {
	Network string // "unix" or "tcp"
	Address string // a path, or host:port
}

func (g Gateway) String() string { return g.Network + ":" + g.Address }

// Location names a VDI, or a snapshot of one, and the sheep to reach it through.
type Location struct {
	Gateways []Gateway // tried in turn
	Name     string
	Tag      string // of a snapshot; empty: none
	SnapID   uint32 // of a snapshot; 0: none

	// Timeout is how long a request is tried again while sheep are lost or the
	// cluster is halted, before it fails. 0: as OpenOptions.Stall has it, or
	// DefaultTimeout.
	Timeout time.Duration
	// Shared says that other gateways serve the VDI as well: Open does not fail
	// because another one owns it, and the first request takes it over.
	Shared bool
	// Fence says that a sheep which keeps the VDI to itself is stopped when it is
	// taken over; it must serve nothing but one gateway.
	Fence bool
	// NoLock leaves locks alone.
	NoLock bool
}

// DefaultTimeout is longer than a cluster needs to do without a lost sheep, and
// as long as hosts wait for a command before they send it again.
const DefaultTimeout = 60 * time.Second

// Snapshot reports whether a snapshot is named.
func (l *Location) Snapshot() bool { return l.Tag != "" || l.SnapID != 0 }

// ParseLocation reads what tgt's --backing-store has:
//
//	unix:PATH:NAME[:TAG|SNAPID]
//	tcp:HOST:PORT:NAME[:TAG|SNAPID]
//
// An IPv6 address is in brackets. What follows the first colon after NAME is a
// snapshot id if it is a number and a tag otherwise. After that may come options
// of our own, "?key=value&…": gateway=unix:PATH or gateway=tcp:HOST:PORT, a
// further sheep to go to when the first is lost (may be repeated); timeout=30s;
// shared=yes; fence=yes; lock=no. A question mark that no known option follows is
// part of the name.
func ParseLocation(s string) (Location, error) {
	var l Location
	bad := func(why string) (Location, error) {
		return Location{}, fmt.Errorf("sheepdog: %q: %s; want unix:PATH:NAME[:TAG|SNAPID] or tcp:HOST:PORT:NAME[:TAG|SNAPID]", s, why)
	}
	text := s
	if i := strings.LastIndexByte(s, '?'); i >= 0 && isOptions(s[i+1:]) {
		text = s[:i]
		if err := l.options(s[i+1:]); err != nil {
			return Location{}, fmt.Errorf("sheepdog: %q: %w", s, err)
		}
	}
	g, rest, err := parseGateway(text)
	if err != nil {
		return bad(err.Error())
	}
	l.Gateways = append([]Gateway{g}, l.Gateways...)
	name, snap, has := strings.Cut(rest, ":")
	l.Name = name
	if name == "" {
		return bad("no VDI is named")
	}
	if has && snap == "" {
		return bad("neither tag nor snapshot id after the last colon")
	}
	if wire.CheckName(name) != nil || wire.CheckName(snap) != nil {
		return bad("names have at most 255 bytes and no zero")
	}
	if id, err := strconv.ParseUint(snap, 10, 32); err == nil {
		if id == 0 {
			return bad("snapshot ids begin with 1")
		}
		l.SnapID = uint32(id)
	} else {
		l.Tag = snap
	}
	return l, nil
}

// parseGateway reads "unix:PATH[:rest]" or "tcp:HOST:PORT[:rest]".
func parseGateway(s string) (g Gateway, rest string, err error) {
	network, s, _ := strings.Cut(s, ":")
	switch network {
	case "unix":
		path, rest, _ := strings.Cut(s, ":")
		if path == "" {
			return g, "", fmt.Errorf("no path of a socket")
		}
		return Gateway{"unix", path}, rest, nil
	case "tcp":
		host := ""
		if in, ok := strings.CutPrefix(s, "["); ok {
			if host, s, ok = strings.Cut(in, "]:"); !ok {
				return g, "", fmt.Errorf("no port after the address in brackets")
			}
		} else {
			host, s, _ = strings.Cut(s, ":")
		}
		port, rest, _ := strings.Cut(s, ":")
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return g, "", fmt.Errorf("%q is no port", port)
		}
		if host == "" {
			return g, "", fmt.Errorf("no host")
		}
		return Gateway{"tcp", net.JoinHostPort(host, port)}, rest, nil
	}
	return g, "", fmt.Errorf("neither unix nor tcp")
}

var optionNames = [...]string{"gateway", "timeout", "shared", "fence", "lock"}

func isOptions(s string) bool {
	for _, name := range optionNames {
		if strings.HasPrefix(s, name+"=") {
			return true
		}
	}
	return false
}

func (l *Location) options(s string) error {
	for _, kv := range strings.Split(s, "&") {
		key, value, _ := strings.Cut(kv, "=")
		if v, err := url.PathUnescape(value); err == nil {
			value = v
		}
		yes := value == "yes"
		if key == "shared" || key == "fence" || key == "lock" {
			if !yes && value != "no" {
				return fmt.Errorf("option %s=%s: want yes or no", key, value)
			}
		}
		switch key {
		case "gateway":
			g, rest, err := parseGateway(value)
			if err != nil || rest != "" {
				return fmt.Errorf("option gateway=%s: want unix:PATH or tcp:HOST:PORT", value)
			}
			l.Gateways = append(l.Gateways, g)
		case "timeout":
			d, err := time.ParseDuration(value)
			if err != nil || d < time.Second || d > time.Hour {
				return fmt.Errorf("option timeout=%s: want a duration from 1s to 1h", value)
			}
			l.Timeout = d
		case "shared":
			l.Shared = yes
		case "fence":
			l.Fence = yes
		case "lock":
			l.NoLock = !yes
		default:
			return fmt.Errorf("unknown option %q, there are %s", key, strings.Join(optionNames[:], ", "))
		}
	}
	return nil
}

// String is the location as ParseLocation reads it.
func (l Location) String() string {
	var s strings.Builder
	if len(l.Gateways) > 0 {
		s.WriteString(l.Gateways[0].String() + ":")
	}
	s.WriteString(l.Name)
	if l.Tag != "" {
		s.WriteString(":" + l.Tag)
	} else if l.SnapID != 0 {
		fmt.Fprintf(&s, ":%d", l.SnapID)
	}
	sep := byte('?')
	option := func(key, value string) {
		s.WriteByte(sep)
		s.WriteString(key + "=" + strings.NewReplacer("%", "%25", "&", "%26", "?", "%3F").Replace(value))
		sep = '&'
	}
	for i, g := range l.Gateways {
		if i > 0 {
			option("gateway", g.String())
		}
	}
	if l.Timeout != 0 {
		option("timeout", l.Timeout.String())
	}
	for _, o := range []struct {
		key, value string
		set        bool
	}{{"shared", "yes", l.Shared}, {"fence", "yes", l.Fence}, {"lock", "no", l.NoLock}} {
		if o.set {
			option(o.key, o.value)
		}
	}
	return s.String()
}
