package glfs

import (
	"errors"
	"fmt"
	"net"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// DefaultPort is where GlusterFS' management daemon listens.
const DefaultPort = 24007

// Server is one that tells how a volume is built: the host and port of a glusterd,
// or its socket on this host.
type Server struct {
	Host   string
	Port   int
	Socket string // absolute path; Host is empty then
}

// WriteBehind says what is done with a volume whose performance.write-behind is on.
type WriteBehind uint8

const (
	// Refuse does not open it for writing.
	Refuse WriteBehind = iota
	// Bypass keeps the translator out of the way of this client.
	Bypass
	// Accept lets it answer writes that no brick has seen. When bricks go away
	// they are lost, the next flush fails, and with it the store.
	Accept
)

// Location names a file of a volume and how to reach it.
type Location struct {
	Volume  string
	Servers []Server // asked in turn; at least one
	Path    string   // of the file in the volume, absolute

	LogFile     string // of the library; empty: the standard error
	LogLevel    int    // 0 to 9 as of glfs_set_logging; -1: DefaultLogLevel
	WriteBehind WriteBehind
	// Lock takes a lock that the bricks enforce; Steal takes it from another client
	// that has one, which is fenced off.
	Lock, Steal bool
}

// DefaultLogLevel is that of errors.
const DefaultLogLevel = 4

const locationForm = "VOLUME@HOST[:PORT][,HOST…]/PATH or VOLUME@HOST:PATH"

// ParseLocation reads what follows "gluster:", which is one of
//
//	volume@host[:port][,host[:port]…]/path
//	volume@host:path          as tgt has it
//	volume@/path?socket=/run/glusterd.socket
//	//host[:port]/volume/path as QEMU has it
//
// An address of IPv6 is in brackets. After that may come "?" and options, with "&"
// or, as in tgt's --bsopts, ";" between them: logfile=PATH; loglevel=0 to 9;
// write-behind=off (to keep it out of our way) or on (to put up with it);
// lock=yes or steal; socket=PATH of a glusterd on this host. A question mark that no known
// option follows is part of the path.
func ParseLocation(s string) (Location, error) {
	l := Location{LogLevel: -1}
	bad := func(why string) (Location, error) {
		return Location{}, fmt.Errorf("gluster: %q: %s; want %s", s, why, locationForm)
	}
	text := s
	if i := strings.LastIndexByte(s, '?'); i >= 0 && isOptions(s[i+1:]) {
		text = s[:i]
		if err := l.options(s[i+1:]); err != nil {
			return Location{}, fmt.Errorf("gluster: %q: %w", s, err)
		}
	}
	if len(s) > 4096 || strings.ContainsAny(s, "\x00\r\n") {
		return bad("it has a zero, a line break or more than 4096 bytes")
	}
	var hosts string
	if url, ok := strings.CutPrefix(text, "//"); ok {
		host, rest, _ := strings.Cut(url, "/")
		volume, file, ok := strings.Cut(rest, "/")
		if !ok {
			return bad("it names no file")
		}
		hosts, l.Volume, l.Path = host, volume, "/"+file
	} else {
		volume, rest, ok := strings.Cut(text, "@")
		if !ok {
			return bad("it has no @")
		}
		l.Volume = volume
		hosts, l.Path = splitPath(rest)
	}
	if l.Volume == "" || strings.ContainsAny(l.Volume, "/:@,") {
		return bad("it names no volume")
	}
	if strings.HasSuffix(l.Path, "/") || l.Path == "" {
		return bad("it names no file")
	}
	if l.Path = path.Clean("/" + l.Path); strings.HasPrefix(l.Path, "/.meta/") {
		return bad("it is no file of the volume")
	}
	if hosts != "" {
		for _, h := range strings.Split(hosts, ",") {
			server, err := parseServer(h)
			if err != nil {
				return bad(err.Error())
			}
			l.Servers = append(l.Servers, server)
		}
	}
	if len(l.Servers) == 0 {
		return bad("it names no server")
	}
	return l, nil
}

// splitPath cuts "hosts/path", "hosts:path" and "hosts:port/path".
func splitPath(s string) (hosts, file string) {
	// What looks like an end is none inside of brackets.
	bracket := false
	for i := range len(s) {
		switch c := s[i]; {
		case c == '[':
			bracket = true
		case c == ']':
			bracket = false
		case c == '/' && !bracket:
			return s[:i], s[i:]
		case c == ':' && !bracket:
			digits := i + 1
			for digits < len(s) && s[digits] >= '0' && s[digits] <= '9' {
				digits++
			}
			if digits == i+1 || digits < len(s) && s[digits] != '/' && s[digits] != ',' {
				return s[:i], s[i+1:]
			}
		}
	}
	return s, ""
}

func parseServer(s string) (Server, error) {
	host, port := s, DefaultPort
	if h, p, err := net.SplitHostPort(s); err == nil {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return Server{}, fmt.Errorf("port %q of host %q is none", p, h)
		}
		host, port = h, int(n)
	} else if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		host = s[1 : len(s)-1]
	}
	if host == "" || strings.ContainsAny(host, "[]@/? \t") || strings.Contains(host, ":") && net.ParseIP(host) == nil {
		return Server{}, fmt.Errorf("%q is no host", s)
	}
	return Server{Host: host, Port: port}, nil
}

var optionNames = [...]string{"logfile", "loglevel", "write-behind", "lock", "socket"}

func isOptions(s string) bool {
	for _, name := range optionNames {
		if strings.HasPrefix(s, name+"=") {
			return true
		}
	}
	return false
}

func (l *Location) options(s string) error {
	for kv := range strings.FieldsFuncSeq(s, func(r rune) bool { return r == '&' || r == ';' }) {
		key, value, _ := strings.Cut(kv, "=")
		switch key {
		case "logfile":
			if value == "" {
				return errors.New("option logfile= has no path")
			}
			l.LogFile = value
		case "loglevel":
			n, err := strconv.Atoi(value)
			if err != nil || n < 0 || n > 9 {
				return fmt.Errorf("option loglevel=%s: want 0 to 9", value)
			}
			l.LogLevel = n
		case "write-behind":
			switch value {
			case "off":
				l.WriteBehind = Bypass
			case "on":
				l.WriteBehind = Accept
			default:
				return fmt.Errorf("option write-behind=%s: want off or on", value)
			}
		case "lock":
			if value != "yes" && value != "no" && value != "steal" {
				return fmt.Errorf("option lock=%s: want yes, no or steal", value)
			}
			l.Lock, l.Steal = value != "no", value == "steal"
		case "socket":
			if !filepath.IsAbs(value) {
				return fmt.Errorf("option socket=%s: want an absolute path", value)
			}
			l.Servers = append(l.Servers, Server{Socket: value})
		default:
			return fmt.Errorf("unknown option %q, there are %s", key, strings.Join(optionNames[:], ", "))
		}
	}
	return nil
}

// String is the location as ParseLocation reads it.
func (l Location) String() string {
	var hosts, options []string
	for _, s := range l.Servers {
		switch {
		case s.Socket != "":
			options = append(options, "socket="+s.Socket)
		case s.Port != DefaultPort:
			hosts = append(hosts, net.JoinHostPort(s.Host, strconv.Itoa(s.Port)))
		case strings.Contains(s.Host, ":"):
			hosts = append(hosts, "["+s.Host+"]")
		default:
			hosts = append(hosts, s.Host)
		}
	}
	if l.LogFile != "" {
		options = append(options, "logfile="+l.LogFile)
	}
	if l.LogLevel >= 0 {
		options = append(options, "loglevel="+strconv.Itoa(l.LogLevel))
	}
	switch l.WriteBehind {
	case Bypass:
		options = append(options, "write-behind=off")
	case Accept:
		options = append(options, "write-behind=on")
	}
	switch {
	case l.Steal:
		options = append(options, "lock=steal")
	case l.Lock:
		options = append(options, "lock=yes")
	}
	s := l.Volume + "@" + strings.Join(hosts, ",") + l.Path
	if len(options) > 0 {
		s += "?" + strings.Join(options, "&")
	}
	return s
}

// name is the location in messages: without options.
func (l Location) name() string {
	s, _, _ := strings.Cut(Location{Volume: l.Volume, Servers: l.Servers, LogLevel: -1}.String(), "?")
	return s + l.Path
}
