package initiator

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"blockgate/iscsi"
)

// URL names a portal, a target on it, or a logical unit of the target, in the
// form that libiscsi, QEMU and fio use:
//
//	iscsi://[user[%secret]@]host[:port][/target-name[/lun]][?option=value&…]
//
// Options are target_user and target_password (mutual CHAP), header_digest and
// data_digest (none, crc32c, or both with a comma in order of preference).
type URL struct {
	Addr   string // "host:port"
	Target string // "" when the URL names a portal only
	LUN    uint64 // logical unit number, valid if HasLUN
	HasLUN bool
	Auth   *iscsi.Account
	Mutual *iscsi.Account

	HeaderDigests, DataDigests []string
}

// ParseURL reads a URL. Its errors never quote a secret.
func ParseURL(s string) (*URL, error) {
	rest, ok := strings.CutPrefix(s, "iscsi://")
	if !ok {
		return nil, fmt.Errorf("not an iSCSI URL: it must begin with iscsi://")
	}
	u := new(URL)
	rest, query, _ := strings.Cut(rest, "?")
	authority, path, _ := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		// The '%' between user and secret is libiscsi's and no escape.
		user, secret, _ := strings.Cut(authority[:i], "%")
		if user == "" {
			return nil, fmt.Errorf("iSCSI URL: no user before the secret")
		}
		u.Auth = &iscsi.Account{User: user, Secret: secret}
		authority = authority[i+1:]
	}
	var err error
	if u.Addr, err = hostPort(authority); err != nil {
		return nil, err
	}
	if path != "" {
		name, lun, hasLUN := strings.Cut(path, "/")
		if u.Target = name; name == "" {
			return nil, fmt.Errorf("iSCSI URL: the target name is empty")
		}
		if hasLUN && lun != "" {
			if u.LUN, err = strconv.ParseUint(lun, 10, 64); err != nil {
				return nil, fmt.Errorf("iSCSI URL: LUN %q is not a number", lun)
			}
			u.HasLUN = true
		}
	}
	return u, u.options(query)
}

func hostPort(s string) (string, error) {
	addr := withPort(s)
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" {
		return "", fmt.Errorf("iSCSI URL: %q is not a host or host:port", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("iSCSI URL: %q is not a port", port)
	}
	return addr, nil
}

func (u *URL) options(query string) error {
	values, err := url.ParseQuery(query)
	if err != nil {
		return fmt.Errorf("iSCSI URL: options are not key=value pairs")
	}
	for key, v := range values {
		value := v[len(v)-1]
		switch key {
		case "target_user", "target_password":
			if u.Mutual == nil {
				u.Mutual = new(iscsi.Account)
			}
			if key == "target_user" {
				u.Mutual.User = value
			} else {
				u.Mutual.Secret = value
			}
		case "header_digest":
			u.HeaderDigests, err = digests(value)
		case "data_digest":
			u.DataDigests, err = digests(value)
		default:
			err = fmt.Errorf("iSCSI URL: unknown option %q", key)
		}
		if err != nil {
			return err
		}
	}
	if u.Mutual != nil && u.Mutual.User == "" {
		return fmt.Errorf("iSCSI URL: target_password without target_user")
	}
	if u.Mutual != nil && u.Auth == nil {
		return fmt.Errorf("iSCSI URL: target_user needs a user and a secret for the initiator, too")
	}
	return nil
}

func digests(s string) (list []string, err error) {
	for d := range strings.SplitSeq(s, ",") {
		switch strings.ToLower(d) {
		case "none":
			list = append(list, "None")
		case "crc32c":
			list = append(list, "CRC32C")
		default:
			return nil, fmt.Errorf("iSCSI URL: digest %q is neither none nor crc32c", d)
		}
	}
	return list, nil
}

// Config is a configuration for what the URL names.
func (u *URL) Config() Config {
	return Config{
		Addrs: []string{u.Addr}, TargetName: u.Target, Auth: u.Auth, Mutual: u.Mutual,
		HeaderDigests: u.HeaderDigests, DataDigests: u.DataDigests,
	}
}

// String gives the URL without secrets.
func (u *URL) String() string {
	var b strings.Builder
	b.WriteString("iscsi://")
	if u.Auth != nil {
		b.WriteString(u.Auth.User + "@")
	}
	b.WriteString(u.Addr)
	if u.Target != "" {
		b.WriteString("/" + u.Target)
	}
	if u.HasLUN {
		b.WriteString("/" + strconv.FormatUint(u.LUN, 10))
	}
	return b.String()
}
