package tgt

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

func TestNAAOfSCSIID(t *testing.T) {
	for id, want := range map[string]string{
		// These three are what tgt 1.0.85 answers on page 83h.
		"naa.6001405abcdef":                    "6000000000000000aa06001405abcdef",
		"IET     00010001":                     "60000000000000000e00000000010001",
		"volume-ABCDEF01-2345-6789-abcd-ef012": "6e0abcdef0102345067890abcd0ef012",
		"":                                     "60000000000000000000000000000000",
	} {
		if got := naaOf(id); got != want {
			t.Errorf("naaOf(%q) = %s, want %s", id, got, want)
		}
	}
}

func TestSplitParams(t *testing.T) {
	for list, want := range map[string][]pair{
		"":                           nil,
		",":                          nil,
		"a=1":                        {{"a", "1"}},
		"a=1,,b=2,":                  {{"a", "1"}, {"b", "2"}},
		"a=b=c":                      {{"a", "b=c"}},
		"online=0,path=/x,y,z.img":   {{"online", "0"}, {"path", "/x,y,z.img"}},
		"path=/x,y.img,vendor_id= V": {{"path", "/x,y.img"}, {"vendor_id", " V"}},
	} {
		got, err := splitParams(list)
		if d := cmp.Diff(want, got, cmp.AllowUnexported(pair{})); d != "" || err != nil {
			t.Errorf("splitParams(%q): %v\n%s", list, err, d)
		}
	}
	for _, list := range []string{"a", "a=", "=1", "a=1,b", "path", "b,path=/x"} {
		if got, err := splitParams(list); err == nil {
			t.Errorf("splitParams(%q) = %v, want an error", list, got)
		}
	}
}

func TestModePage(t *testing.T) {
	var u state.UnitParams
	set := func(s string) {
		t.Helper()
		if err := setModePage(&u, s); err != nil {
			t.Fatalf("%s: %v", s, asFailure(err).detail)
		}
	}
	off := "8:0:18:0x10:0:0xff:0xff:0:0:0xff:0xff:0xff:0xff:0x80:0x14:0:0:0:0:0:0" // as tgt-admin sends for "write-cache off"
	set(off)
	if u.WriteCache == nil || *u.WriteCache {
		t.Error("the write cache is on after a caching page without WCE")
	}
	set("0x0a:0:10:6:0x10:0:0:0:0:0:0:2:0")
	if u.SenseFormat != 1 {
		t.Error("D_SENSE of the control page has no effect")
	}
	set(strings.Replace(off, "0x10", "0x14", 1))
	if !*u.WriteCache {
		t.Error("the write cache is off after a caching page with WCE")
	}
	if len(u.ModePages) != 2 {
		t.Errorf("pages kept: %q, want each once", u.ModePages)
	}
	before := len(u.ModePages)
	for _, bad := range []string{"", "8", "8:0", "8:0:2:1", "8:0:1:1:1", "8:0:1:256", "8:0:1:x", "8:0:0", "0x1c:0:1:0", "10:0:10:0:0:8:0:0:0:0:0:0:0"} {
		if err := setModePage(&u, bad); err == nil {
			t.Errorf("mode_page=%s is accepted", bad)
		}
	}
	if len(u.ModePages) != before {
		t.Error("a refused page is kept")
	}
}

func TestUnitParamsNotAtOnce(t *testing.T) {
	v := &v1.Volume{Volume: state.Volume{Name: "tgt-1-1", URL: "file:/x", Bstype: "rdwr"}}
	if _, err := setUnitParam(v, "/", "path", "/y"); err == nil {
		t.Error("path= of a unit that is online is accepted")
	}
	v.Status.PreventRemoval = true
	if _, err := setUnitParam(v, "/", "online", "0"); err == nil || err.Error() != msgPreventsRemoval {
		t.Errorf("online=0 while removal is prevented: %v", err)
	}
	v.Volume.Unit.Offline = true
	refresh, err := setUnitParam(v, "/", "path", "/x")
	if err != nil || !refresh || v.Volume.Unit.Offline {
		t.Errorf("the same path again: refresh %v, offline %v, %v", refresh, v.Volume.Unit.Offline, err)
	}
	v.URL = ""
	if _, err := setUnitParam(v, "/", "online", "1"); err == nil {
		t.Error("a unit without medium goes online")
	}
}

func FuzzUnitParams(f *testing.F) {
	f.Add("scsi_id=naa.6001405abcdef,scsi_sn=x,online=0,path=/a,b")
	f.Add("mode_page=8:0:18:0x10:0:0xff,removable=1,lbppbe=-1")
	f.Add("vendor_id=ÄÖÜ,disksize=auto,=,")
	f.Fuzz(func(t *testing.T, list string) {
		v := &v1.Volume{Volume: state.Volume{Name: "tgt-1-1", URL: "file:/x", Bstype: "rdwr"}}
		if _, err := setUnitParams(v, "/", list); err != nil {
			if f := asFailure(err); f.message != msgInvalid || f.detail == "" {
				t.Fatalf("%q: %q, %q", list, f.message, f.detail)
			}
		}
		if n := v.Unit.NAA; n != "" && (len(n) != 32 || n[0] != '6') {
			t.Fatalf("%q: NAA %q", list, n)
		}
	})
}
