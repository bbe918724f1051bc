package nbd_test

import (
	"context"
	"flag"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"blockgate/backing"
	"blockgate/backing/nbd"
	"blockgate/backing/storetest"
	proto "blockgate/nbd"
	"blockgate/nbd/client"
	"blockgate/nbd/client/nbdfake"
)

func TestMain(m *testing.M) {
	// The conformance runs on five kinds of server; -rapid.checks still counts.
	if err := flag.Set("rapid.checks", "15"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// start starts a server on a unix socket.
func start(t testing.TB, o nbdfake.Options) *nbdfake.Server {
	t.Helper()
	s := nbdfake.New(o)
	if err := s.Start("unix", filepath.Join(t.TempDir(), "nbd")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// quick is a configuration for tests: nobody is far away.
func quick(s *nbdfake.Server) client.Config {
	network, address := s.Addr()
	return client.Config{Dial: client.Dialer(network, address), Backoff: time.Millisecond, Settle: time.Millisecond}
}

func open(t testing.TB, cfg client.Config, o backing.OpenOptions) *nbd.Store {
	t.Helper()
	s, err := nbd.OpenAt(t.Context(), cfg, "nbd+unix:///?socket=test", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

var servers = []struct {
	name string
	o    nbdfake.Options
}{
	{"Extended", nbdfake.Options{Flags: nbdfake.All, Mode: proto.Extended, Allocation: true, Pieces: 1000}},
	{"Old", nbdfake.Options{Flags: proto.HasFlags | proto.SendFlush, Old: true}},
	{"Blocks", nbdfake.Options{
		Flags: nbdfake.All, Mode: proto.Structured, Allocation: true,
		BlockSize: &proto.BlockSize{Min: 4096, Preferred: 8192, MaxPayload: 64 << 10},
	}},
}

func TestStore(t *testing.T) {
	for _, k := range servers {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			storetest.Run(t, func(t *testing.T) backing.Store {
				k.o.Size = storetest.Size
				return open(t, quick(start(t, k.o)), backing.OpenOptions{})
			})
		})
	}
}

// What holds of a store holds as well of one whose server is lost again and again.
func TestStoreOverLosses(t *testing.T) {
	k := servers[0].o
	k.Mode = proto.Structured
	k.Size = storetest.Size
	storetest.Run(t, func(t *testing.T) backing.Store {
		s := start(t, k)
		s.SetFault(losses())
		return open(t, quick(s), backing.OpenOptions{})
	})
}

// losses loses some connections, but not those on which a client that was lost is
// at writing again what was not flushed: there would be no end.
func losses() func(proto.Request) nbdfake.Fault {
	var mu sync.Mutex
	reads, due := 0, false
	kind := func() nbdfake.Kind { return [...]nbdfake.Kind{nbdfake.Drop, nbdfake.Undone, nbdfake.Torn}[reads/13%3] }
	return func(r proto.Request) (f nbdfake.Fault) {
		mu.Lock()
		defer mu.Unlock()
		if r.Type == proto.CmdRead || r.Type == proto.CmdFlush {
			reads++
			if due = reads%13 == 12; reads%13 == 0 {
				f.Kind = kind()
			}
		} else if due { // the first one after it
			due, f.Kind = false, kind()
		}
		return f
	}
}

func TestCapabilities(t *testing.T) {
	const rest = backing.CapRefresh
	for name, k := range map[string]struct {
		o    nbdfake.Options
		ro   bool
		want backing.Caps
	}{
		"least":     {nbdfake.Options{Flags: proto.HasFlags}, false, rest},
		"all":       {nbdfake.Options{Flags: nbdfake.All, Mode: proto.Structured, Allocation: true}, false, rest | backing.CapExtents | backing.CapWriteZeroes | backing.CapDiscard | backing.CapWriteFUA},
		"trim only": {nbdfake.Options{Flags: proto.HasFlags | proto.SendTrim}, false, rest},
		"no trim":   {nbdfake.Options{Flags: proto.HasFlags | proto.SendWriteZeroes}, false, rest | backing.CapWriteZeroes},
		"read-only": {nbdfake.Options{Flags: nbdfake.All | proto.ReadOnly, Mode: proto.Structured, Allocation: true}, false, rest | backing.CapExtents},
		"opened so": {nbdfake.Options{Flags: nbdfake.All}, true, rest},
	} {
		k.o.Size = 1 << 20
		s := open(t, quick(start(t, k.o)), backing.OpenOptions{ReadOnly: k.ro})
		if got := backing.CapsOf(s); got != k.want {
			t.Errorf("%s: capabilities %v, want %v", name, got, k.want)
		}
		if ro := k.ro || k.o.Flags&proto.ReadOnly != 0; s.Info().ReadOnly != ro {
			t.Errorf("%s: read-only is %v", name, !ro)
		}
	}
}

func TestGrow(t *testing.T) {
	srv := start(t, nbdfake.Options{Flags: nbdfake.All, Mode: proto.Structured, Allocation: true, Size: 1 << 20})
	s := open(t, quick(srv), backing.OpenOptions{})
	want := []byte("before")
	ok(t, s.WriteAt(t.Context(), want, 5))
	srv.Change(func(o *nbdfake.Options) { o.Size = 3 << 20 })
	if n, err := s.Refresh(t.Context()); err != nil || n != 3<<20 || s.Size() != n {
		t.Fatalf("Refresh = %d, %v; Size = %d", n, err, s.Size())
	}
	got := make([]byte, 6)
	ok(t, s.ReadAt(t.Context(), got, 5))
	if string(got) != "before" {
		t.Errorf("reads %q after it grew", got)
	}
	ok(t, s.WriteAt(t.Context(), want, 3<<20-6))
	srv.Change(func(o *nbdfake.Options) { o.Size = 2 << 20 })
	if n, err := s.Refresh(t.Context()); err == nil || n != 3<<20 {
		t.Errorf("Refresh of an export that shrank = %d, %v", n, err)
	}
}

// What is not flushed when the connections are replaced is not lost, and not taken
// for it.
func TestGrowUnflushed(t *testing.T) {
	srv := start(t, nbdfake.Options{Flags: nbdfake.All, Size: 1 << 20})
	cfg := quick(srv)
	cfg.Unflushed = -1
	s := open(t, cfg, backing.OpenOptions{})
	ok(t, s.WriteAt(t.Context(), []byte("before"), 5))
	srv.Change(func(o *nbdfake.Options) { o.Size = 3 << 20 })
	_, err := s.Refresh(t.Context())
	ok(t, err)
	ok(t, s.Flush(t.Context()))
	if h := s.Health(); h.State != backing.Healthy {
		t.Errorf("health = %+v", h)
	}
}

func TestHealth(t *testing.T) {
	srv := start(t, nbdfake.Options{Flags: nbdfake.All, Size: 1 << 20})
	s := open(t, quick(srv), backing.OpenOptions{Stall: -1})
	if h := s.Health(); h != (backing.Health{}) {
		t.Errorf("health = %+v at first", h)
	}
	told := make(chan backing.Change, 100)
	stop := s.Notify(func(c backing.Change) { told <- c })
	until := func(want backing.State) backing.Health {
		t.Helper()
		for {
			if h := s.Health(); h.State == want {
				return h
			}
			if c := <-told; c != backing.HealthChanged {
				t.Errorf("told of %b", c)
			}
		}
	}
	srv.Stop()
	if h := until(backing.Stalled); h.Since.IsZero() || !strings.Contains(h.Reason, "nbd+unix:///") {
		t.Errorf("health = %+v", h)
	}
	ok(t, srv.Restart())
	if h := until(backing.Healthy); h.Reason != "" || h.Since.IsZero() {
		t.Errorf("health = %+v", h)
	}
	stop()
	for len(told) > 0 {
		<-told
	}
	srv.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.Flush(ctx); !isErr(err, context.DeadlineExceeded) {
		t.Errorf("Flush without a server: %v", err)
	}
	if len(told) > 0 {
		t.Error("told after stop")
	}
}

// Opened with Sync, what was written is durable, with FUA and without.
func TestSync(t *testing.T) {
	for _, flags := range []proto.TransmissionFlags{nbdfake.All, nbdfake.All &^ proto.SendFUA} {
		srv := start(t, nbdfake.Options{Flags: flags, Size: 1 << 20})
		s := open(t, quick(srv), backing.OpenOptions{Sync: true})
		ok(t, s.WriteAt(t.Context(), []byte("kept"), 100))
		got := make([]byte, 4)
		if srv.Durable(got, 100); string(got) != "kept" {
			t.Errorf("flags %#x: not durable", uint16(flags))
		}
	}
}

// The server grows while it is away: that is told, and not taken over unasked.
func TestGrowOverLoss(t *testing.T) {
	srv := start(t, nbdfake.Options{Flags: nbdfake.All, Size: 1 << 20})
	s := open(t, quick(srv), backing.OpenOptions{})
	told := make(chan backing.Change, 16)
	stop := s.Notify(func(c backing.Change) { told <- c })
	defer stop()
	srv.Stop()
	srv.Change(func(o *nbdfake.Options) { o.Size = 2 << 20 })
	ok(t, srv.Restart())
	for c := range told {
		if c&backing.SizeChanged != 0 {
			break
		}
	}
	if s.Size() != 1<<20 {
		t.Errorf("size is %d before Refresh", s.Size())
	}
	if n, err := s.Refresh(t.Context()); err != nil || n != 2<<20 {
		t.Errorf("Refresh = %d, %v", n, err)
	}
	ok(t, s.WriteAt(t.Context(), make([]byte, 512), 2<<20-512))
}

func TestOpenErrors(t *testing.T) {
	srv := start(t, nbdfake.Options{Flags: nbdfake.All, Size: 1 << 20, Export: "disk"})
	_, socket := srv.Addr()
	for rest, want := range map[string]error{
		"///disk?socket=" + socket:                  nil,
		"///other?socket=" + socket:                 backing.ErrNotExist,
		"///disk?socket=" + socket + "&color=green": errAny,
		"///disk?socket=" + socket + ".not":         errAny,
		"///disk":                                   errAny,
		"//host/disk?socket=/a":                     errAny,
		"///d?socket=/a&tls-ca=/tmp":                errAny,
	} {
		s, err := nbd.Opener("nbd+unix")(t.Context(), rest, backing.OpenOptions{})
		switch {
		case err == nil:
			s.Close()
			if want != nil {
				t.Errorf("%s: opened", rest)
			}
		case want == nil, want != errAny && !isErr(err, want):
			t.Errorf("%s: %v, want %v", rest, err, want)
		}
	}
	_, err := nbd.Opener("nbd+unix")(t.Context(), "///disk?socket="+socket, backing.OpenOptions{Create: true, CreateSize: 1})
	if !isErr(err, backing.ErrSizeMismatch) {
		t.Errorf("Create of another size: %v", err)
	}
}
