package gateway

import (
	"path"
	"strings"
	"testing"
)

func TestNamePatterns(t *testing.T) {
	const name = "iqn.1993-08.org.debian:01:abc"
	for pattern, want := range map[string]bool{
		name: true, "*": true, "iqn.1993-08.org.debian:*": true, "*:01:abc": true, "iqn.*debian*abc": true, name + "*": true,
		"iqn.1993-08.org.debian:01:ab?": true, "??n*": true, "***": true,
		"": false, "iqn": false, "iqn.1993-08.org.debian:01:abcd": false, name + "?": false, "*x*": false, "iqn.2*": false, "?": false,
		"IQN.1993-08.org.debian:01:abc": false,
	} {
		if got := glob(pattern, name); got != want {
			t.Errorf("%q: %v", pattern, got)
		}
	}
}

// FuzzNamePattern compares with path.Match where the two mean the same.
func FuzzNamePattern(f *testing.F) {
	f.Add("iqn.*:0?", "iqn.2025-01.io:01")
	f.Add("a*a*a*b", "aaaaaaaaaaaaaaaa")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if strings.ContainsAny(pattern, "[]\\/") || strings.Contains(name, "/") || len(pattern) > 64 || len(name) > 64 {
			return
		}
		for _, c := range []byte(pattern + name) {
			if c >= 0x80 {
				return
			}
		}
		if want, err := path.Match(pattern, name); err != nil || glob(pattern, name) != want {
			t.Errorf("%q %q: %v, %v", pattern, name, want, err)
		}
	})
}
