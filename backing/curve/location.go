package curve

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Where nebd is if nobody says otherwise.
const (
	DefaultSocket     = "/data/nebd/nebd.sock"
	DefaultClientConf = "/etc/nebd/nebd-client.conf"
)

// DefaultTimeout is as long as hosts wait for a command before they send it again.
const DefaultTimeout = 60 * time.Second

// Location names a volume and how to reach it.
type Location struct {
	Pool   string
	Volume string // path, "/vol"
	User   string
	Conf   string // libcurve's configuration, for nebd-server to read; empty: its own

	// Socket is nebd-server's. Empty: what DefaultClientConf names, or else
	// DefaultSocket.
	Socket string
	// Timeout is how long a request may take, over all attempts, before it fails.
	// 0: nebd-server may take DefaultTimeout for an answer, and is waited for as
	// long as OpenOptions.Stall says (0: DefaultTimeout) if it is not there.
	Timeout time.Duration
	// Snapshots are the addresses (host:port) of the snapshot and clone service,
	// tried in turn.
	Snapshots []string
	// Discard says that space may be given back. Curve does not tell the other
	// hosts that have the volume open, whose writes are lost then.
	Discard bool
	// NoLock leaves the lock of this host alone.
	NoLock bool

	lockDir string
}

const locationForm = "cbd:POOL//VOLUME_USER_[:CLIENT.CONF]"

// ParseLocation reads what nebd's clients call a file name, and what curve-tgt's
// --backing-store has:
//
//	cbd:POOL//VOLUME_USER_[:CLIENT.CONF]
//
// After that may come options of our own, "?key=value&…": socket=PATH of
// nebd-server; timeout=30s; snapshot=HOST:PORT of the snapshot and clone service
// (may be repeated); discard=yes; lock=no. A question mark that no known option
// follows is part of the name.
func ParseLocation(s string) (Location, error) {
	var l Location
	bad := func(why string) (Location, error) {
		return Location{}, fmt.Errorf("curve: %q: %s; want %s", s, why, locationForm)
	}
	text := s
	if i := strings.LastIndexByte(s, '?'); i >= 0 && isOptions(s[i+1:]) {
		text = s[:i]
		if err := l.options(s[i+1:]); err != nil {
			return Location{}, fmt.Errorf("curve: %q: %w", s, err)
		}
	}
	rest, ok := strings.CutPrefix(text, "cbd:")
	if !ok {
		return bad(`it does not begin with "cbd:"`)
	}
	pool, rest, ok := strings.Cut(rest, "//")
	if !ok || pool == "" || strings.ContainsAny(pool, "/:") {
		return bad(`a pool and "//" have to follow "cbd:"`)
	}
	l.Pool = pool
	rest, conf, has := strings.Cut(rest, ":")
	if has && (conf == "" || strings.Contains(conf, ":")) {
		return bad("what follows the volume is the path of one file")
	}
	l.Conf = conf
	rest, ok = strings.CutSuffix(rest, "_")
	i := strings.LastIndexByte(rest, '_')
	if !ok || i < 1 || i == len(rest)-1 {
		return bad(`the volume's user has to be between "_" at its end`)
	}
	l.Volume, l.User = "/"+rest[:i], rest[i+1:]
	if strings.ContainsAny(text, "\x00\r\n") || len(text) > 1024 ||
		strings.Contains(l.Volume, "//") || strings.HasSuffix(l.Volume, "/") {
		return bad("it has a zero, a line break, an empty path element or more than 1024 bytes")
	}
	return l, nil
}

var optionNames = [...]string{"socket", "timeout", "snapshot", "discard", "lock"}

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
		switch key {
		case "socket":
			if !filepath.IsAbs(value) {
				return fmt.Errorf("option socket=%s: want an absolute path", value)
			}
			l.Socket = value
		case "timeout":
			d, err := time.ParseDuration(value)
			if err != nil || d < time.Second || d > time.Hour {
				return fmt.Errorf("option timeout=%s: want a duration from 1s to 1h", value)
			}
			l.Timeout = d
		case "snapshot":
			if _, _, err := net.SplitHostPort(value); err != nil {
				return fmt.Errorf("option snapshot=%s: want HOST:PORT", value)
			}
			l.Snapshots = append(l.Snapshots, value)
		case "discard", "lock":
			if value != "yes" && value != "no" {
				return fmt.Errorf("option %s=%s: want yes or no", key, value)
			}
			if key == "discard" {
				l.Discard = value == "yes"
			} else {
				l.NoLock = value == "no"
			}
		default:
			return fmt.Errorf("unknown option %q, there are %s", key, strings.Join(optionNames[:], ", "))
		}
	}
	return nil
}

// Name is the volume as nebd has it, without our options.
func (l Location) Name() string {
	s := "cbd:" + l.Pool + "/" + l.Volume + "_" + l.User + "_"
	if l.Conf != "" {
		s += ":" + l.Conf
	}
	return s
}

// String is the location as ParseLocation reads it.
func (l Location) String() string {
	var o []string
	if l.Socket != "" && l.Socket != DefaultSocket {
		o = append(o, "socket="+l.Socket)
	}
	if l.Timeout != 0 {
		o = append(o, "timeout="+l.Timeout.String())
	}
	for _, a := range l.Snapshots {
		o = append(o, "snapshot="+a)
	}
	if l.Discard {
		o = append(o, "discard=yes")
	}
	if l.NoLock {
		o = append(o, "lock=no")
	}
	s := l.Name()
	if len(o) > 0 {
		s += "?" + strings.Join(o, "&")
	}
	return s
}

// complete fills in what the location does not say, from nebd's configuration for
// clients if there is one.
func (l *Location) complete(conf string) error {
	if conf == "" {
		conf = DefaultClientConf
	}
	if l.Socket == "" {
		f, err := os.Open(conf)
		switch {
		case err == nil:
			l.Socket, l.lockDir, err = readClientConf(f)
			f.Close()
			if err != nil {
				return fmt.Errorf("curve: %s: %w", conf, err)
			}
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("curve: %w", err)
		}
	}
	if l.Socket == "" {
		l.Socket = DefaultSocket
	}
	if l.lockDir == "" {
		l.lockDir = filepath.Join(filepath.Dir(l.Socket), "lock")
	}
	return nil
}

// readClientConf finds nebd-server's socket and the directory of lock files in
// nebd-client.conf; what it does not name is empty.
func readClientConf(r io.Reader) (socket, lockDir string, err error) {
	sc := bufio.NewScanner(io.LimitReader(r, 1<<20))
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), "#")
		key, value, _ := strings.Cut(line, "=")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "nebdserver.serverAddress":
			socket = strings.TrimPrefix(value, "unix:")
		case "metacache.fileLockPath":
			lockDir = value
		}
	}
	return socket, lockDir, sc.Err()
}
