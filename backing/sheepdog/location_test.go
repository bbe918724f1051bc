package sheepdog

import (
	"reflect"
	"testing"
	"time"
)

func TestParseLocation(t *testing.T) {
	unix := []Gateway{{"unix", "/sheep_store/sock"}}
	tcp := []Gateway{{"tcp", "10.0.0.1:7000"}}
	for s, want := range map[string]Location{
		"unix:/sheep_store/sock:tgt0":             {Gateways: unix, Name: "tgt0"},
		"unix:/sheep_store/sock:tgt0:monday":      {Gateways: unix, Name: "tgt0", Tag: "monday"},
		"unix:/sheep_store/sock:tgt0:3":           {Gateways: unix, Name: "tgt0", SnapID: 3},
		"tcp:10.0.0.1:7000:vdi":                   {Gateways: tcp, Name: "vdi"},
		"tcp:10.0.0.1:7000:vdi:a:b":               {Gateways: tcp, Name: "vdi", Tag: "a:b"},
		"tcp:10.0.0.1:7000:vdi:7":                 {Gateways: tcp, Name: "vdi", SnapID: 7},
		"tcp:[2001:db8::1]:7000:vdi:7x":           {Gateways: []Gateway{{"tcp", "[2001:db8::1]:7000"}}, Name: "vdi", Tag: "7x"},
		"tcp:10.0.0.1:7000:what?":                 {Gateways: tcp, Name: "what?"},
		"tcp:10.0.0.1:7000:what?x=1":              {Gateways: tcp, Name: "what?x=1"},
		"tcp:10.0.0.1:7000:v?timeout=30s&lock=no": {Gateways: tcp, Name: "v", Timeout: 30 * time.Second, NoLock: true},
		"unix:/sheep_store/sock:v:t?shared=yes&fence=yes&gateway=tcp:10.0.0.1:7000": {
			Gateways: append(unix[:1:1], tcp...), Name: "v", Tag: "t", Shared: true, Fence: true},
	} {
		got, err := ParseLocation(s)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("ParseLocation(%q) = %+v, %v; want %+v", s, got, err, want)
			continue
		}
		if back, err := ParseLocation(got.String()); err != nil || !reflect.DeepEqual(back, want) {
			t.Errorf("%q is written %q and read back as %+v, %v", s, got.String(), back, err)
		}
	}
	for _, s := range []string{
		"", "vdi", "unix", "unix:", "unix::v", "unix:/s", "unix:/s:", "unix:/s::t", "unix:/s:v:", "unix:/s:v:0", "udp:h:1:v",
		"tcp:h:v", "tcp:h:0:v", "tcp:h:70000:v", "tcp::7000:v", "tcp:[::1]7000:v", "tcp:h:7000", "tcp:h:7000:",
		"unix:/s:v\x00", "unix:/s:v?timeout=1", "unix:/s:v?timeout=0s", "unix:/s:v?lock=maybe", "unix:/s:v?gateway=h:1",
		"unix:/s:v?gateway=tcp:h:1:w", "unix:/s:v?lock=no&x=y",
	} {
		if l, err := ParseLocation(s); err == nil {
			t.Errorf("ParseLocation(%q) = %+v, want an error", s, l)
		}
	}
}

func FuzzParseLocation(f *testing.F) {
	for _, s := range []string{"unix:/sheep_store/sock:tgt0:tag", "tcp:[::1]:7000:v:3?gateway=unix:/a%26b&timeout=2s", "tcp:h:1:v?shared=yes"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLocation(s)
		if err != nil {
			return
		}
		if len(l.Gateways) == 0 || l.Name == "" || l.Tag != "" && l.SnapID != 0 {
			t.Errorf("%q is %+v", s, l)
		}
		back, err := ParseLocation(l.String())
		if err != nil || !reflect.DeepEqual(back, l) {
			// A timeout that is the default is not written.
			l.Timeout, back.Timeout = 0, 0
			if err != nil || !reflect.DeepEqual(back, l) {
				t.Errorf("%q is written %q and read back as %+v, %v; want %+v", s, l.String(), back, err, l)
			}
		}
	})
}
