package glfs

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/backing"
	"blockgate/backing/storetest"
)

func TestStore(t *testing.T) {
	for _, c := range []struct {
		name string
		fake func(*fakeVolume)
		opt  backing.OpenOptions
	}{
		{"plain", func(*fakeVolume) {}, backing.OpenOptions{Exclusive: true}},
		{"bricks that know little", func(v *fakeVolume) { v.shard, v.noHoles = true, true }, backing.OpenOptions{Sync: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) backing.Store {
				v := newFake(t)
				c.fake(v)
				o := c.opt
				o.Create, o.CreateSize = true, storetest.Size
				s, err := openFake(t, v, Location{}, o)
				if err != nil {
					t.Fatal(err)
				}
				return s
			})
		})
	}
}

func TestOpen(t *testing.T) {
	const size = 1 << 20
	create := backing.OpenOptions{Create: true, CreateSize: size}
	with := func(v *fakeVolume, n int) *fakeVolume { v.data["/disk"] = bytes.Repeat([]byte{7}, n); return v }
	behind := func(t *testing.T) *fakeVolume {
		v := with(newFake(t), size)
		v.volfile = strings.Replace(v.volfile, "performance/io-cache", "performance/write-behind", 1)
		return v
	}
	const meta = "graphs/active/v1-write-behind/options/pass-through"
	for _, c := range []struct {
		name string
		v    *fakeVolume
		loc  Location
		opt  backing.OpenOptions
		is   error  // nil: none
		says string // part of the error
	}{
		{name: "not there", v: newFake(t), is: backing.ErrNotExist, says: "vol@host/disk"},
		{name: "made", v: newFake(t), opt: create},
		{name: "made half-way", v: with(newFake(t), 0), opt: create},
		{name: "empty", v: with(newFake(t), 0), says: "empty"},
		{name: "there", v: with(newFake(t), size), opt: create},
		{name: "another size", v: with(newFake(t), 512), opt: create, is: backing.ErrSizeMismatch},
		{name: "read-only is not made", v: newFake(t), opt: backing.OpenOptions{Create: true, CreateSize: size, ReadOnly: true}, is: backing.ErrNotExist},
		{name: "write-behind", v: behind(t), is: backing.ErrNotSupported, says: "gluster volume set vol performance.write-behind off"},
		{name: "write-behind, read-only", v: behind(t), opt: backing.OpenOptions{ReadOnly: true}},
		{name: "write-behind accepted", v: behind(t), loc: Location{WriteBehind: Accept}},
		{name: "write-behind not bypassed", v: behind(t), loc: Location{WriteBehind: Bypass}, is: backing.ErrNotSupported, says: "does not keep write-behind out"},
		{name: "write-behind bypassed", v: func() *fakeVolume { v := behind(t); v.meta[meta] = "true"; return v }(), loc: Location{WriteBehind: Bypass}},
		{name: "nonsense for a description", v: func() *fakeVolume { v := behind(t); v.volfile = "x"; return v }(), says: "description"},
		{name: "locked", v: func() *fakeVolume { v := with(newFake(t), size); v.other = true; return v }(), opt: backing.OpenOptions{Exclusive: true}, is: backing.ErrBusy},
		{name: "locked, and not asked for", v: func() *fakeVolume { v := with(newFake(t), size); v.other = true; return v }()},
		{name: "locked, and stolen", v: func() *fakeVolume { v := with(newFake(t), size); v.other, v.enforce = true, true; return v }(), loc: Location{Lock: true, Steal: true}},
		{name: "locked, and not stolen", v: func() *fakeVolume { v := with(newFake(t), size); v.other, v.enforce = true, true; return v }(), loc: Location{Lock: true}, is: backing.ErrBusy},
		{name: "no locks", v: with(newFake(t), size), loc: Location{Lock: true}, is: backing.ErrNotSupported, says: "features.enforce-mandatory-lock on"},
		{name: "away", v: func() *fakeVolume { v := with(newFake(t), size); v.down = syscall.ENOTCONN; return v }(), is: syscall.ENOTCONN},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				before := bytes.Clone(c.v.data["/disk"])
				s, err := openFake(t, c.v, c.loc, c.opt)
				if c.is == nil && c.says == "" {
					if err != nil {
						t.Fatal(err)
					}
					if s.Size() != size {
						t.Errorf("size %d, want %d", s.Size(), size)
					}
					s.Close()
				} else if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
					t.Fatalf("error %v, want %v with %q", err, c.is, c.says)
				}
				if len(before) > 0 && !bytes.Equal(before, c.v.data["/disk"]) {
					t.Error("what was there has changed")
				}
			})
		})
	}
}

func TestOpenHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newFake(t)
		v.data["/disk"] = make([]byte, 4096)
		late := make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := open(ctx, func() (volume, error) { <-late; return v, nil }, Location{Volume: "vol", Path: "/disk"}, Options{})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("error %v", err)
		}
		close(late)
		synctest.Wait()
		if v.detached != 1 {
			t.Error("what was attached too late was not detached")
		}
	})
}

func TestCapabilities(t *testing.T) {
	for _, c := range []struct {
		fake func(*fakeVolume)
		ro   bool
		want string
	}{
		{func(*fakeVolume) {}, false, "discard,write-zeroes,extents,resize,refresh,write-fua,usage"},
		{func(*fakeVolume) {}, true, "extents,refresh,usage"},
		{func(v *fakeVolume) { v.shard = true }, false, "discard,write-zeroes,resize,refresh,write-fua,usage"},
		{func(v *fakeVolume) { v.noHoles = true }, false, "write-zeroes,extents,resize,refresh,write-fua,usage"},
	} {
		v := newFake(t)
		v.data["/disk"] = make([]byte, 1<<20)
		c.fake(v)
		s := mustOpen(t, v, Location{}, backing.OpenOptions{ReadOnly: c.ro})
		if got := backing.CapsOf(s).String(); got != c.want {
			t.Errorf("capabilities %s, want %s", got, c.want)
		}
		if thin := s.Info().Thin; thin != strings.Contains(c.want, "discard") {
			t.Errorf("thin: %v with %s", thin, c.want)
		}
	}
}

func TestDurable(t *testing.T) {
	v := newFake(t)
	v.data["/disk"] = make([]byte, 1<<20)
	s := mustOpen(t, v, Location{}, backing.OpenOptions{})
	p := make([]byte, 4096)
	if err := s.WriteAt(t.Context(), p, 0); err != nil || v.durables != 0 {
		t.Errorf("write: %v, %d of them durable", err, v.durables)
	}
	if err := s.WriteFUA(t.Context(), p, 0); err != nil || v.durables == 0 {
		t.Errorf("write with FUA: %v, %d of them durable", err, v.durables)
	}
	if !s.Durable() {
		t.Error("does not outlive the process")
	}
	behind := mustOpen(t, v, Location{WriteBehind: Accept}, backing.OpenOptions{})
	if behind.Durable() {
		t.Error("outlives the process though it writes behind")
	}
}

func TestRefresh(t *testing.T) {
	v := newFake(t)
	v.data["/disk"] = make([]byte, 1<<20)
	s := mustOpen(t, v, Location{}, backing.OpenOptions{})
	var told backing.Change
	defer s.Notify(func(c backing.Change) { told |= c })()
	v.set(func() { v.data["/disk"] = make([]byte, 2<<20) })
	if n, err := s.Refresh(t.Context()); n != 2<<20 || err != nil || s.Size() != n {
		t.Errorf("%d, %v, then %d", n, err, s.Size())
	}
	if told != backing.SizeChanged {
		t.Errorf("told %v", told)
	}
	v.set(func() { v.data["/disk"] = v.data["/disk"][:4096] })
	if err := s.ReadAt(t.Context(), make([]byte, 4096), 1<<20); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("read behind the end: %v", err)
	}
}

// The file grows by another client's hand.
func TestGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newFake(t)
		v.data["/disk"] = make([]byte, 1<<20)
		s, err := openFake(t, v, Location{}, backing.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		var told backing.Change
		defer s.Notify(func(c backing.Change) { told |= c })()
		v.set(func() { v.data["/disk"] = make([]byte, 4<<20) })
		time.Sleep(2 * lookTime)
		synctest.Wait()
		if s.Size() != 4<<20 || told != backing.SizeChanged {
			t.Errorf("size %d, told %v", s.Size(), told)
		}
		v.set(func() { v.data["/disk"] = make([]byte, 1<<20) })
		time.Sleep(2 * lookTime)
		if s.Size() != 4<<20 {
			t.Errorf("size %d of a file that has become shorter", s.Size())
		}
	})
}
