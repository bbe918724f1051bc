package tgtconf

import (
	"fmt"
	"strings"
)

// GlusterOptions adds the bsopts of tgt's glfs store to the URL of a file:
// "logfile=FILE;loglevel=N", and, which tgt does not know, "write-behind=off" (or on)
// and "lock=yes"; each at most once. An empty one is as if it were not there.
func GlusterOptions(url, opts string) (string, error) {
	names := map[string]bool{"logfile": true, "loglevel": true, "write-behind": true, "lock": true}
	sep := "?"
	for opt := range strings.SplitSeq(opts, ";") {
		key, value, _ := strings.Cut(strings.TrimSpace(opt), "=")
		switch {
		case key == "" || value == "" && names[key]:
			continue
		case !names[key]:
			return "", fmt.Errorf("glfs has no bsopts %q, only logfile, loglevel, write-behind and lock", key)
		case strings.ContainsAny(value, "?&"):
			return "", fmt.Errorf("bsopts %s=%s: ? and & are not possible", key, value)
		}
		delete(names, key)
		url += sep + key + "=" + value
		sep = "&"
	}
	return url, nil
}
