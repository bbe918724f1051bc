package curve_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"blockgate/backing"
	"blockgate/backing/curve"
	"blockgate/backing/curve/nebdfake"
)

var sameLocation = cmpopts.IgnoreUnexported(curve.Location{})

func TestParseLocation(t *testing.T) {
	for s, want := range map[string]curve.Location{
		"cbd:pool//iscsi_test_":                         {Pool: "pool", Volume: "/iscsi", User: "test"},
		"cbd:pool//vol_user_":                           {Pool: "pool", Volume: "/vol", User: "user"},
		"cbd:p1//cinder/volume-1_2_cinder_":             {Pool: "p1", Volume: "/cinder/volume-1_2", User: "cinder"},
		"cbd:pool//vol_user_:/etc/curve/other.conf":     {Pool: "pool", Volume: "/vol", User: "user", Conf: "/etc/curve/other.conf"},
		"cbd:pool//what?_user_":                         {Pool: "pool", Volume: "/what?", User: "user"},
		"cbd:pool//v_u_?socket=/run/n.sock&timeout=30s": {Pool: "pool", Volume: "/v", User: "u", Socket: "/run/n.sock", Timeout: 30 * time.Second},
		"cbd:pool//v_u_?snapshot=10.0.0.1:5555&snapshot=[::1]:5556&discard=yes&lock=no": {
			Pool: "pool", Volume: "/v", User: "u", Snapshots: []string{"10.0.0.1:5555", "[::1]:5556"}, Discard: true, NoLock: true,
		},
	} {
		l, err := curve.ParseLocation(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		if d := cmp.Diff(want, l, sameLocation); d != "" {
			t.Errorf("%s: %s", s, d)
		}
		if l.String() != s {
			t.Errorf("%s comes back as %s", s, l)
		}
	}
	for _, s := range []string{
		"", "pool//vol_user_", "test:pool//vol_user_", "cbd:", "cbd:pool", "cbd:pool/vol_user_", "cbd://vol_user_", "cbd:pool//",
		"cbd:pool//vol", "cbd:pool//vol_user", "cbd:pool//vol__", "cbd:pool//_user_", "cbd:pool//vol_user_:", "cbd:pool//vol_user_:a:b",
		"cbd:pool//a//b_user_", "cbd:pool///a_user_", "cbd:pool//a/_user_", "cbd:pool//a\n_user_", "cbd:po/ol//a_user_",
		"cbd:pool//v_u_?timeout=1ms", "cbd:pool//v_u_?timeout=x", "cbd:pool//v_u_?socket=n.sock", "cbd:pool//v_u_?snapshot=host",
		"cbd:pool//v_u_?discard=maybe", "cbd:pool//v_u_?lock=no&speed=9",
	} {
		if l, err := curve.ParseLocation(s); err == nil {
			t.Errorf("%q is taken for %+v", s, l)
		}
	}
}

func FuzzParseLocation(f *testing.F) {
	f.Add("cbd:pool//iscsi_test_")
	f.Add("cbd:pool//v_u_:/etc/c.conf?snapshot=10.0.0.1:5555&discard=yes&lock=no&timeout=30s&socket=/x")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := curve.ParseLocation(s)
		if err != nil {
			return
		}
		back, err := curve.ParseLocation(l.String())
		if err != nil {
			t.Fatalf("%q is written as %q: %v", s, l, err)
		}
		// What is the default is not written.
		for _, x := range []*curve.Location{&l, &back} {
			if x.Socket == curve.DefaultSocket {
				x.Socket = ""
			}
		}
		if d := cmp.Diff(l, back, sameLocation); d != "" {
			t.Fatalf("%q is written as %q: %s", s, l, d)
		}
	})
}

// nebd's own configuration says where its socket and locks are.
func TestClientConf(t *testing.T) {
	r := newRig(t, nebdfake.Options{})
	l := r.volume(1<<20, 4096)
	l.Socket = ""
	locks := filepath.Join(r.dir, "l")
	ok(t, os.Mkdir(locks, 0o755))
	conf := filepath.Join(r.dir, "nebd-client.conf")
	ok(t, os.WriteFile(conf, []byte("# nebd\nnebdserver.serverAddress="+r.socket+" # here\n\nmetacache.fileLockPath = "+locks+"\nlog.path=/x\n"), 0o644))
	cfg := quick
	cfg.ClientConf = conf
	s, err := curve.OpenAt(t.Context(), l, exclusive, cfg)
	ok(t, err)
	defer s.Close()
	_, err = curve.OpenAt(t.Context(), l, exclusive, cfg)
	is(t, err, backing.ErrBusy)
}

func TestOpenErrors(t *testing.T) {
	r := newRig(t, nebdfake.Options{})
	l := r.volume(1<<20, 4096)
	_, err := curve.OpenAt(t.Context(), l, backing.OpenOptions{Create: true, CreateSize: 2 << 20}, quick)
	is(t, err, backing.ErrSizeMismatch)
	none := l
	none.Volume = "/none"
	if _, err := curve.OpenAt(t.Context(), none, backing.OpenOptions{Create: true, CreateSize: 1 << 20}, quick); err == nil {
		t.Error("a volume that is not there was opened")
	}
	none.Socket = filepath.Join(r.dir, "none")
	if _, err := curve.OpenAt(t.Context(), none, exclusive, quick); err == nil {
		t.Error("opened without a server")
	}
	if _, err := curve.Open(t.Context(), "cbd:pool", exclusive); err == nil {
		t.Error("opened without a volume")
	}
	odd := l
	odd.Volume = "/odd"
	r.Create(odd.Name(), 1<<20+100, 512)
	if _, err := curve.OpenAt(t.Context(), odd, exclusive, quick); err == nil {
		t.Error("opened a volume with part of a block")
	}
}

func TestReadOnlyAndInfo(t *testing.T) {
	r := newRig(t, nebdfake.Options{})
	l := r.volume(1<<20, 4096)
	s := open(t, l, backing.OpenOptions{ReadOnly: true, Exclusive: true})
	is(t, s.WriteAt(t.Context(), fill(4096, 1), 0), backing.ErrReadOnly)
	is(t, s.WriteZeroes(t.Context(), 0, 4096, false), backing.ErrReadOnly)
	is(t, s.Resize(t.Context(), 2<<20), backing.ErrReadOnly)
	if c := backing.CapsOf(s) & backing.CapsModify; c != 0 {
		t.Errorf("a read-only store claims %s", c)
	}
	w := open(t, l, exclusive)
	if i := w.Info(); i.PhysicalBlock != 4096 || i.Engine != "curve" || i.Thin || i.DiscardGranularity != 0 {
		t.Errorf("info %+v", i)
	}
	is(t, w.Discard(t.Context(), 0, 4096), backing.ErrNotSupported)
	// Curve's own tools may extend it.
	ok(t, w.Resize(t.Context(), 2<<20))
	if n, err := s.Refresh(t.Context()); err != nil || n != 2<<20 || s.Size() != n {
		t.Errorf("Refresh = %d, %v", n, err)
	}
	if err := w.Resize(t.Context(), 2<<20+4096); err == nil {
		t.Error("extended by part of a segment")
	}
	is(t, w.Resize(t.Context(), 2<<20+100), backing.ErrNotSupported)
}
