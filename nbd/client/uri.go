package client

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"blockgate/nbd"
)

// Schemes are those of the URIs that ParseURI takes.
var schemes = []string{"nbd", "nbd+unix", "nbds", "nbds+unix"}

// URI is an export as users name it, in the form of the NBD project's doc/uri.md
// with the parameters of libnbd, or in QEMU's older one:
//
//	nbd://HOST[:PORT]/EXPORT            nbd+unix:///EXPORT?socket=PATH
//	nbds://[USER@]HOST[:PORT]/EXPORT    nbds+unix://[USER@]/EXPORT?socket=PATH
//	nbd:HOST:PORT[:exportname=EXPORT]   nbd:unix:PATH[:exportname=EXPORT]
//
// Parameters of nbds: tls-certificates=DIR, tls-psk-file=FILE, tls-username=USER,
// tls-hostname=NAME.
type URI struct {
	Network, Address string // as net.Dial takes them
	Export           string
	TLS              bool
	Certificates     string // directory; see LoadTLS
	PSKFile          string
	User             string // whose key of PSKFile
	Hostname         string // in the server's certificate, if not the one in Address

	// Params are those that are not defined here, for the caller to take.
	Params url.Values
}

// ParseURI reads a URI. The error names what is wrong with it.
func ParseURI(s string) (*URI, error) {
	u, err := parseURI(s)
	if err != nil {
		return nil, fmt.Errorf("NBD URI %q: %w", s, err)
	}
	return u, nil
}

func parseURI(s string) (*URI, error) {
	scheme, rest, ok := strings.Cut(s, ":")
	scheme = strings.ToLower(scheme)
	if !ok || !slices.Contains(schemes, scheme) {
		return nil, fmt.Errorf("want one of the schemes %s", strings.Join(schemes, ", "))
	}
	if scheme == "nbd" && !strings.HasPrefix(rest, "//") {
		return parseOld(rest)
	}
	p, err := url.Parse(scheme + ":" + rest)
	if err != nil {
		var detail *url.Error
		if errors.As(err, &detail) {
			err = detail.Err
		}
		return nil, err
	}
	if p.Fragment != "" || p.Opaque != "" {
		return nil, errors.New("want //HOST/EXPORT or ///EXPORT behind the scheme")
	}
	q, err := url.ParseQuery(p.RawQuery)
	if err != nil {
		return nil, err
	}
	u := &URI{Export: strings.TrimPrefix(p.Path, "/"), TLS: strings.HasPrefix(scheme, "nbds"), User: p.User.Username(), Params: q}
	if !nbd.ValidName(u.Export) {
		return nil, fmt.Errorf("the export's name is not UTF-8, or longer than %d bytes", nbd.MaxString)
	}
	if _, has := p.User.Password(); has {
		return nil, errors.New("a password has no place in it")
	}
	take := func(name string) string {
		v := q.Get(name)
		q.Del(name)
		return v
	}
	socket := take("socket")
	if strings.HasSuffix(scheme, "+unix") {
		if socket == "" || p.Host != "" {
			return nil, errors.New("want ///EXPORT?socket=PATH behind the scheme")
		}
		u.Network, u.Address = "unix", socket
	} else {
		if socket != "" || p.Hostname() == "" {
			return nil, fmt.Errorf("want //HOST/EXPORT behind the scheme; a socket goes with %s+unix", scheme)
		}
		port := p.Port()
		if port == "" {
			port = strconv.Itoa(nbd.DefaultPort)
		}
		u.Network, u.Address = "tcp", net.JoinHostPort(p.Hostname(), port)
		u.Hostname = p.Hostname()
	}
	if !u.TLS {
		for name := range q {
			if strings.HasPrefix(name, "tls-") {
				return nil, fmt.Errorf("%s needs the scheme nbds: nothing would be encrypted", name)
			}
		}
		return u, nil
	}
	u.Certificates, u.PSKFile = take("tls-certificates"), take("tls-psk-file")
	if v := take("tls-username"); v != "" {
		u.User = v
	}
	if v := take("tls-hostname"); v != "" {
		u.Hostname = v
	}
	if u.Certificates != "" && u.PSKFile != "" {
		return nil, errors.New("tls-certificates and tls-psk-file exclude each other")
	}
	return u, nil
}

// parseOld reads what is behind "nbd:" in QEMU's older form.
func parseOld(rest string) (*URI, error) {
	u := &URI{Params: url.Values{}}
	rest, u.Export, _ = strings.Cut(rest, ":exportname=")
	if !nbd.ValidName(u.Export) {
		return nil, fmt.Errorf("the export's name is not UTF-8, or longer than %d bytes", nbd.MaxString)
	}
	if path, ok := strings.CutPrefix(rest, "unix:"); ok && path != "" {
		u.Network, u.Address = "unix", path
		return u, nil
	}
	host, port, err := net.SplitHostPort(rest)
	if _, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || host == "" {
		return nil, errors.New("want nbd://HOST/EXPORT, nbd:HOST:PORT or nbd:unix:PATH")
	}
	u.Network, u.Address, u.Hostname = "tcp", net.JoinHostPort(host, port), host
	return u, nil
}

// String names server and export, without parameters.
func (u *URI) String() string {
	scheme := "nbd"
	if u.TLS {
		scheme = "nbds"
	}
	p := url.URL{Scheme: scheme, Host: u.Address, Path: "/" + u.Export}
	if u.Network == "unix" {
		p.Scheme, p.Host = scheme+"+unix", ""
		p.RawQuery = "socket=" + strings.ReplaceAll(url.QueryEscape(u.Address), "%2F", "/")
		return p.Scheme + "://" + p.EscapedPath() + "?" + p.RawQuery
	}
	return p.String()
}

// Config makes the Config that reaches the export. It reads the files of TLS.
func (u *URI) Config() (Config, error) {
	cfg := Config{Dial: Dialer(u.Network, u.Address), Export: u.Export}
	if !u.TLS {
		return cfg, nil
	}
	secure, err := u.secure()
	if err != nil {
		return cfg, err
	}
	cfg.Secure = secure
	return cfg, nil
}
