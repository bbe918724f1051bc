package glfs

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseLocation(t *testing.T) {
	host := func(h string) []Server { return []Server{{Host: h, Port: DefaultPort}} }
	for _, c := range []struct {
		in   string
		want Location
	}{
		{"vol@host/a.img", Location{Volume: "vol", Servers: host("host"), Path: "/a.img"}},
		{"vol@host:/dir/a.img", Location{Volume: "vol", Servers: host("host"), Path: "/dir/a.img"}},
		{"vol@host:a.img", Location{Volume: "vol", Servers: host("host"), Path: "/a.img"}},
		{"vol@host:24x/a.img", Location{Volume: "vol", Servers: host("host"), Path: "/24x/a.img"}},
		{"vol@host:24008/a.img", Location{Volume: "vol", Servers: []Server{{Host: "host", Port: 24008}}, Path: "/a.img"}},
		{"vol@h1,h2:24009,[::1]/a", Location{Volume: "vol", Servers: []Server{{Host: "h1", Port: DefaultPort}, {Host: "h2", Port: 24009}, {Host: "::1", Port: DefaultPort}}, Path: "/a"}},
		{"vol@[fe80::1]:24010/a", Location{Volume: "vol", Servers: []Server{{Host: "fe80::1", Port: 24010}}, Path: "/a"}},
		{"vol@[fe80::1]:a", Location{Volume: "vol", Servers: host("fe80::1"), Path: "/a"}},
		{"vol@host//x/./y/../z", Location{Volume: "vol", Servers: host("host"), Path: "/x/z"}},
		{"vol@host/../../etc", Location{Volume: "vol", Servers: host("host"), Path: "/etc"}},
		{"vol@/a?socket=/run/gd.sock", Location{Volume: "vol", Servers: []Server{{Socket: "/run/gd.sock"}}, Path: "/a"}},
		{"//host/vol/d/a", Location{Volume: "vol", Servers: host("host"), Path: "/d/a"}},
		{"//host:1/vol/a", Location{Volume: "vol", Servers: []Server{{Host: "host", Port: 1}}, Path: "/a"}},
		{"vol@host/what?.img", Location{Volume: "vol", Servers: host("host"), Path: "/what?.img"}},
		{"vol@host/a?logfile=/l;loglevel=7", Location{Volume: "vol", Servers: host("host"), Path: "/a", LogFile: "/l", LogLevel: 7}},
		{"vol@host/a?write-behind=on&lock=yes", Location{Volume: "vol", Servers: host("host"), Path: "/a", WriteBehind: Accept, Lock: true}},
		{"vol@host/a?lock=steal", Location{Volume: "vol", Servers: host("host"), Path: "/a", Lock: true, Steal: true}},
		{"vol@host/a?write-behind=off", Location{Volume: "vol", Servers: host("host"), Path: "/a", WriteBehind: Bypass}},
	} {
		if !strings.Contains(c.in, "loglevel") {
			c.want.LogLevel = -1
		}
		got, err := ParseLocation(c.in)
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%q (-want +got):\n%s", c.in, d)
		}
		again, err := ParseLocation(got.String())
		if err != nil || cmp.Diff(got, again) != "" {
			t.Errorf("%q becomes %q, which is %+v (%v)", c.in, got, again, err)
		}
	}
}

func TestParseLocationErrors(t *testing.T) {
	for in, part := range map[string]string{
		"":                          "no @",
		"vol":                       "no @",
		"vol@":                      "names no file",
		"vol@host":                  "names no file",
		"vol@host/":                 "names no file",
		"vol@host:24007":            "names no file",
		"vol@/a":                    "names no server",
		"@host/a":                   "names no volume",
		"a/b@host/a":                "names no volume",
		"vol@host:0/a":              "port",
		"vol@host:70000/a":          "port",
		"vol@h1,,h2/a":              "is no host",
		"vol@[nonsense:x]/a":        "is no host",
		"vol@host/.meta/version":    "no file of the volume",
		"vol@host/a\nb":             "line break",
		"//host/vol":                "names no file",
		"//host/vol/":               "names no file",
		"vol@host/a?loglevel=10":    "want 0 to 9",
		"vol@host/a?logfile=":       "no path",
		"vol@host/a?lock=1":         "want yes, no or steal",
		"vol@host/a?write-behind=1": "want off or on",
		"vol@host/a?socket=x":       "absolute",
		"vol@host/a?lock=yes&x=1":   `unknown option "x"`,
	} {
		l, err := ParseLocation(in)
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q: %+v, %v; want an error with %q", in, l, err, part)
		}
	}
}

func FuzzParseLocation(f *testing.F) {
	for _, s := range []string{"vol@host/a.img", "v@h:24007,[::1]:1/a?logfile=/x;loglevel=3", "//h/v/p?lock=yes", "v@/a?socket=/s&write-behind=on", "v@[", "v@h:9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLocation(s)
		if err != nil {
			return
		}
		if l.Volume == "" || len(l.Servers) == 0 || !strings.HasPrefix(l.Path, "/") || strings.ContainsRune(s, 0) {
			t.Fatalf("%q: %+v", s, l)
		}
		again, err := ParseLocation(l.String())
		if err != nil {
			t.Fatalf("%q becomes %q: %v", s, l, err)
		}
		if d := cmp.Diff(l, again); d != "" {
			t.Fatalf("%q becomes %q (-first +second):\n%s", s, l, d)
		}
	})
}
