package rbd

import (
	"fmt"
	"net/url"
	"strings"
)

// Location names an image, or a snapshot of one, and the cluster it is in.
type Location struct {
	Pool, Namespace, Image, Snap string

	Conf    string // the configuration file; empty: where Ceph looks for it
	ID      string // the client is client.ID; empty: admin
	Cluster string // the cluster's name; empty: ceph
	Secret  string // the number of a libvirt secret that has the client's key
	// Steal says that a lock which another client has is taken from it, which is
	// fenced off by that.
	Steal bool
	// NoLock leaves the exclusive lock alone: images without that feature, and
	// images that somebody else guards.
	NoLock bool
	// Cache turns on librbd's cache, which keeps acknowledged writes in this
	// process until they are flushed.
	Cache bool
}

const wantLocation = "want [POOL[/NAMESPACE]/]IMAGE[@SNAPSHOT][?conf=FILE&id=USER&cluster=NAME]"

// ParseLocation reads
//
//	[POOL[/NAMESPACE]/]IMAGE[@SNAPSHOT][?key=value&…]
//
// The pool is rbd if none is named. The options are conf, id, cluster, secret,
// steal=yes, lock=no and cache=yes; values may be percent-encoded.
func ParseLocation(s string) (Location, error) {
	var l Location
	bad := func(format string, a ...any) (Location, error) {
		return Location{}, fmt.Errorf("rbd: %q: %s; %s", s, fmt.Sprintf(format, a...), wantLocation)
	}
	path, options, _ := strings.Cut(s, "?")
	path, snap, has := strings.Cut(path, "@")
	if has && snap == "" {
		return bad("no snapshot after the @")
	}
	l.Snap = snap
	parts := strings.Split(path, "/")
	switch len(parts) {
	case 1:
		l.Pool, l.Image = "rbd", parts[0]
	case 2:
		l.Pool, l.Image = parts[0], parts[1]
	case 3:
		l.Pool, l.Namespace, l.Image = parts[0], parts[1], parts[2]
		if l.Namespace == "" {
			return bad("the namespace is empty")
		}
	default:
		return bad("more than three parts")
	}
	if l.Pool == "" || l.Image == "" {
		return bad("no pool or no image is named")
	}
	if strings.ContainsAny(s, "\x00") || strings.Contains(l.Snap, "@") || len(s) > 4096 {
		return bad("these are no names of Ceph's")
	}
	if options == "" {
		return l, nil
	}
	for _, kv := range strings.Split(options, "&") {
		key, value, _ := strings.Cut(kv, "=")
		value, err := url.PathUnescape(value)
		if err != nil || strings.ContainsRune(value, 0) {
			return bad("option %s has no valid value", key)
		}
		if value == "" {
			return bad("option %s has no value", key)
		}
		switch key {
		case "conf":
			l.Conf = value
		case "id":
			l.ID = value
		case "cluster":
			l.Cluster = value
		case "secret":
			l.Secret = value
		case "steal", "lock", "cache":
			if value != "yes" && value != "no" {
				return bad("option %s is yes or no", key)
			}
			switch key {
			case "steal":
				l.Steal = value == "yes"
			case "lock":
				l.NoLock = value == "no"
			case "cache":
				l.Cache = value == "yes"
			}
		default:
			return bad("there is no option %q", key)
		}
	}
	if strings.ContainsAny(l.Secret, "/") {
		return bad("a secret is named by its number (UUID)")
	}
	return l, nil
}

// Spec is the image as Ceph's tools name it: pool/namespace/image@snapshot.
func (l *Location) Spec() string {
	s := l.Pool + "/"
	if l.Namespace != "" {
		s += l.Namespace + "/"
	}
	s += l.Image
	if l.Snap != "" {
		s += "@" + l.Snap
	}
	return s
}

// Clone is where an image of the same pool and cluster is.
func (l *Location) Clone(name string) string {
	c := *l
	c.Image, c.Snap = name, ""
	s := c.Spec()
	sep := "?"
	add := func(key, value string) {
		if value != "" {
			s += sep + key + "=" + strings.ReplaceAll(url.PathEscape(value), "&", "%26")
			sep = "&"
		}
	}
	add("conf", l.Conf)
	add("id", l.ID)
	add("cluster", l.Cluster)
	add("secret", l.Secret)
	if l.NoLock {
		add("lock", "no")
	}
	if l.Cache {
		add("cache", "yes")
	}
	return s
}
