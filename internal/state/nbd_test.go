package state

import (
	"strings"
	"testing"
)

func TestNBDPortals(t *testing.T) {
	for addr, want := range map[string]string{
		"127.0.0.1": "127.0.0.1:10809", "[::1]": "[::1]:10809", "10.0.0.1:7": "10.0.0.1:7", "unix:/run//x/../nbd": "unix:/run/nbd",
		"unix:nbd": "", "host": "", "unix:/" + strings.Repeat("x", 107): "", "unix:": "", "127.0.0.1:99999": "",
	} {
		got, err := ParseNBDPortal(addr)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", addr, got, err)
		}
	}
	for _, c := range []struct {
		p    NBDPortal
		tls  string
		fine bool
	}{
		{NBDPortal{}, "", true},
		{NBDPortal{CertFile: "/c", KeyFile: "/k"}, TLSRequired, true},
		{NBDPortal{CertFile: "/c", KeyFile: "/k", ClientCAFile: "/a", TLS: TLSOptional}, TLSOptional, true},
		{NBDPortal{PSKFile: "/p"}, TLSRequired, true},
		{NBDPortal{PSKFile: "/p", CertFile: "/c", KeyFile: "/k"}, "", false},
		{NBDPortal{CertFile: "/c"}, "", false}, {NBDPortal{ClientCAFile: "/c"}, "", false}, {NBDPortal{TLS: TLSRequired}, "", false},
		{NBDPortal{TLS: "on", PSKFile: "/p"}, "", false}, {NBDPortal{PSKFile: "p"}, "", false},
	} {
		c.p.Address = "10.0.0.1"
		if err := c.p.normalize(); (err == nil) != c.fine || c.fine && c.p.TLS != c.tls {
			t.Errorf("%+v: %v", c.p, err)
		}
	}
}

func TestExports(t *testing.T) {
	s := emptySnapshot()
	plan := func(wantCode string, ops ...Op) {
		t.Helper()
		p, err := s.Plan(ops)
		code := ""
		if e := ErrorOf(err); err != nil {
			code = e.Code
		}
		if code != wantCode {
			t.Fatalf("%+v: %v, want code %q", ops, err, wantCode)
		}
		if err == nil {
			s = p.New
		}
	}
	export := func(v Verb, e Export) Op { return Op{Verb: v, Kind: KindExport, Export: &e} }
	all := []ACLRule{{All: true}}
	plan(CodeVolumeNotFound, export(Create, Export{Name: "a", Volume: "v"}))
	plan("", Op{Verb: Create, Kind: KindVolume, Volume: &Volume{Name: "v", URL: "ram:1M"}}, export(Create, Export{Name: "a", Volume: "v", ACL: all}))
	plan(CodeExportExists, export(Create, Export{Name: "a", Volume: "v"}))
	plan(CodeInvalidName, export(Create, Export{Name: "-a", Volume: "v"}))
	plan(CodeInvalidValue, export(Create, Export{Name: "b", Volume: "v", ACL: []ACLRule{{All: true, LUNs: []uint64{1}}}}))
	plan(CodeInvalidValue, export(Create, Export{Name: "b", Volume: "v", ACL: []ACLRule{{Address: "10.0.0.1/8"}}}))
	plan(CodeACLExists, export(Create, Export{Name: "b", Volume: "v", ACL: append(all, all...)}))
	plan("", export(Create, Export{Name: "b", Volume: "v", Default: true}))
	plan(CodeInvalidValue, export(Update, Export{Name: "a", Volume: "v", Default: true}))
	// The default changes hands in one transaction.
	plan("", export(Update, Export{Name: "b", Volume: "v"}), export(Update, Export{Name: "a", Volume: "v", Default: true}))
	plan(CodeVolumeInUse, Op{Verb: Delete, Kind: KindVolume, Name: "v"})
	plan(CodeExportNotFound, Op{Verb: Delete, Kind: KindExport, Name: "none"})
	plan("", Op{Verb: Delete, Kind: KindExport, Name: "b"})
	if l := s.ExportsOf("v"); len(l) != 1 || l[0] != "a" {
		t.Errorf("%q", l)
	}
	before := s
	plan("", Op{Verb: Delete, Kind: KindVolume, Name: "v", Force: true})
	if len(s.Exports()) != 0 || len(before.Exports()) != 1 {
		t.Errorf("%d exports, and %d before", len(s.Exports()), len(before.Exports()))
	}
}
