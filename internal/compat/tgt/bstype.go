package tgt

import (
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"blockgate/internal/compat/tgtconf"
	"blockgate/internal/state"
)

// bstype is a kind of backing store in tgt's words.
type bstype struct {
	name   string
	scheme string // of the engine that serves it
	flags  bool   // takes --bsoflags
	kind   string // of its units, as the listing names it; empty: disk
}

// bstypes are listed in tgt's order, with those of its modules and forks at the
// end.
func bstypes() []bstype {
	return []bstype{
		{name: "sheepdog", scheme: "sheepdog"},
		{name: "bsg", scheme: "bsg", kind: "passthrough"},
		{name: "sg", scheme: "sg", kind: "passthrough"},
		{name: "null", scheme: "null"},
		{name: "ssc", scheme: "ssc", kind: "tape"},
		{name: "smc", scheme: "smc", flags: true, kind: "changer"},
		{name: "mmc", scheme: "file", flags: true, kind: "cd/dvd"},
		{name: "rdwr", scheme: "file", flags: true},
		{name: "aio", scheme: "file"},
		{name: "rbd", scheme: "rbd", flags: true},
		{name: "glfs", scheme: "gluster", flags: true},
		{name: "curve", scheme: "curve", flags: true},
		{name: "longhorn", scheme: "longhorn"},
	}
}

func findBstype(name string) (bstype, bool) {
	all := bstypes()
	i := slices.IndexFunc(all, func(b bstype) bool { return b.name == name })
	if i < 0 {
		return bstype{}, false
	}
	return all[i], true
}

// defaultBstype is what a device type has without --bstype.
func defaultBstype(device string) string {
	switch device {
	case "cd":
		return "mmc"
	case "tape":
		return "ssc"
	case "changer":
		return "smc"
	case "pt":
		return "sg"
	}
	return "rdwr"
}

// store fills in which store a volume has: its URL and how it is opened. An
// empty path is a unit without medium. The path is kept as it was given, since
// scripts look for it in the listing; a relative one is taken from dir, the
// directory of tgtadm.
func (b *bstype) store(v *state.Volume, dir, path, flags string) error {
	v.Bstype, v.BackingStore, v.URL = b.name, path, ""
	v.Direct, v.Sync = b.name == "aio", false
	if flags != "" {
		if !b.flags {
			return refuse("bstype %s has no --bsoflags", b.name)
		}
		for _, f := range strings.Split(flags, ":") {
			switch f {
			case "sync":
				v.Sync = true
			case "direct":
				v.Direct = true
			default:
				return refuse("bsoflags are sync, direct or sync:direct, not %q", flags)
			}
		}
	}
	if path == "" {
		return nil
	}
	var err error
	v.URL, err = b.url(dir, path)
	return err
}

// options adds what --bsopts say of a store to its URL, in tgt's form
// "key=value;…". A store that takes none ignores them, as tgt does.
func (b *bstype) options(v *state.Volume, opts string) error {
	if opts == "" || v.URL == "" {
		return nil
	}
	var url string
	var err error
	switch b.name {
	case "rbd":
		url, err = tgtconf.RBDOptions(v.URL, opts)
	case "glfs":
		url, err = tgtconf.GlusterOptions(v.URL, opts)
	default:
		return nil
	}
	if err != nil {
		return refuse("%v", err)
	}
	v.URL = url
	return nil
}

func (b *bstype) url(dir, path string) (string, error) {
	switch b.name {
	case "rdwr", "aio", "mmc":
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		return "file:" + filepath.Clean(path), nil
	case "null":
		return "null:1T", nil
	case "sg", "bsg", "ssc", "smc":
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		if _, err := os.Stat(path); err != nil {
			return "", refuse("%v", err)
		}
	case "rbd":
		if !strings.Contains(path, "/") {
			path = "rbd/" + path
		}
		return "rbd:" + path, nil
	case "glfs": // volume@host:file
		volume, rest, ok := strings.Cut(path, "@")
		host, file, ok2 := strings.Cut(rest, ":")
		if !ok || !ok2 || volume == "" || host == "" || file == "" {
			return "", refuse("glfs wants --backing-store volume@host:file, not %q", path)
		}
		return "gluster:" + volume + "@" + host + "/" + strings.TrimPrefix(file, "/"), nil
	}
	return b.scheme + ":" + path, nil
}

// flagsShown is what the listing says after "Backing store flags: ".
func flagsShown(v *state.Volume) string {
	if v.Bstype == "aio" {
		return "" // it is always direct, and tgt does not say so
	}
	switch {
	case v.Sync && v.Direct:
		return "sync:direct"
	case v.Sync:
		return "sync"
	case v.Direct:
		return "direct"
	}
	return ""
}

// shown are a volume's bstype and path as tgt would list them, also for volumes
// that were not made by tgtadm.
func shown(v *state.Volume) (kind, path string) {
	kind, path = v.Bstype, v.BackingStore
	if kind == "" {
		scheme, rest, _ := strings.Cut(v.URL, ":")
		kind = scheme
		for _, b := range bstypes() {
			if b.scheme == scheme && b.kind == "" {
				kind = b.name
				break
			}
		}
		path = v.URL
		if scheme == "file" {
			path = rest
		} else if u, err := url.Parse(v.URL); err == nil && u.User != nil {
			path = u.Redacted()
		}
	}
	if path == "" {
		path = "None"
	}
	return kind, path
}
