package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"blockgate/nbd"
	"blockgate/nbd/client"
	"blockgate/nbd/client/nbdfake"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var modern = nbdfake.Options{Flags: nbdfake.All, Mode: nbd.Structured, Allocation: true, Size: 1 << 20}

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

func open(t testing.TB, cfg client.Config) *client.Client {
	t.Helper()
	c, err := client.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func is(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error = %v, want %v", err, want)
	}
}

func fill(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }

// A server that crashes forgets what was not flushed. Who uses the client does not
// notice, whatever was under way.
func TestCrashLosesNothing(t *testing.T) {
	srv := start(t, modern)
	cfg := quick(srv)
	cfg.Unflushed = 300 << 10 // flushes by itself now and then
	c := open(t, cfg)
	const workers, part = 4, 256 << 10
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for w := range workers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			base := int64(w * part)
			want := make([]byte, part)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				n := 1 + r.IntN(20000)
				if r.IntN(4) == 0 {
					n = 70000
				}
				off := int64(r.IntN(part - n))
				var err error
				switch r.IntN(8) {
				case 0:
					err = c.Flush(t.Context())
				case 1:
					err = c.WriteZeroes(t.Context(), base+off, int64(n), 0)
					clear(want[off:][:n])
				case 2:
					copy(want[off:], fill(n, byte(i)))
					err = c.WriteAt(t.Context(), want[off:][:n], base+off, nbd.FlagFUA)
				case 3:
					// Given up at some time, and written once more.
					ctx, cancel := context.WithCancel(t.Context())
					go cancel()
					_ = c.WriteAt(ctx, fill(n, 0xee), base+off, 0)
					fallthrough
				default:
					copy(want[off:], fill(n, byte(i)))
					err = c.WriteAt(t.Context(), want[off:][:n], base+off, 0)
				}
				if err != nil {
					t.Error(err)
					return
				}
				got := make([]byte, part)
				if err := c.ReadAt(t.Context(), got, base); err != nil || !bytes.Equal(got, want) {
					t.Errorf("worker %d, step %d: content differs (%v)", w, i, err)
					return
				}
			}
		})
	}
	for i := range 25 {
		// Some work is done in between.
		for srv.Seen(nbd.CmdRead) < (i+1)*8 && !t.Failed() {
			ok(t, c.ReadAt(t.Context(), make([]byte, 1), 0))
		}
		srv.Crash()
		ok(t, srv.Restart())
	}
	close(stop)
	wg.Wait()
	ok(t, c.Flush(t.Context()))
	got, safe := make([]byte, modern.Size), make([]byte, modern.Size)
	srv.Content(got, 0)
	srv.Durable(safe, 0)
	if !bytes.Equal(got, safe) {
		t.Error("Flush left something that is not durable")
	}
}

// With nothing kept the loss of a server is told at the next flush, and from then
// on; not if everything had been flushed, or was written with FUA.
func TestNothingKept(t *testing.T) {
	srv := start(t, modern)
	cfg := quick(srv)
	cfg.Unflushed = -1
	c := open(t, cfg)
	restart := func() {
		srv.Crash()
		ok(t, srv.Restart())
		ok(t, c.ReadAt(t.Context(), make([]byte, 1), 0)) // it is back
	}
	ok(t, c.WriteAt(t.Context(), fill(100, 1), 0, 0))
	ok(t, c.Flush(t.Context()))
	ok(t, c.WriteAt(t.Context(), fill(100, 2), 0, nbd.FlagFUA))
	restart()
	ok(t, c.Flush(t.Context()))

	ok(t, c.WriteAt(t.Context(), fill(100, 3), 0, 0))
	restart()
	is(t, c.Flush(t.Context()), client.ErrFailed)
	is(t, c.Flush(t.Context()), client.ErrFailed)
	is(t, c.WriteAt(t.Context(), fill(1, 1), 0, 0), client.ErrFailed)
	ok(t, c.ReadAt(t.Context(), make([]byte, 1), 0))
	if s := c.Status(); s.State != client.Failed || s.Reason == "" {
		t.Errorf("status = %+v", s)
	}
}

// The server is lost while it flushes: the flush counts only if it is done again.
func TestLostDuringFlush(t *testing.T) {
	for _, kept := range []int64{0, -1} {
		srv := start(t, modern)
		cfg := quick(srv)
		cfg.Unflushed = kept
		c := open(t, cfg)
		ok(t, c.WriteAt(t.Context(), fill(100, 7), 0, 0))
		crashed := make(chan struct{})
		var once sync.Once
		srv.SetFault(func(r nbd.Request) (f nbdfake.Fault) {
			if r.Type == nbd.CmdFlush {
				once.Do(func() {
					f.Kind = nbdfake.Drop
					go func() {
						defer close(crashed)
						srv.Crash()
						if err := srv.Restart(); err != nil {
							t.Error(err)
						}
					}()
				})
			}
			return f
		})
		err := c.Flush(t.Context())
		<-crashed
		if kept < 0 {
			is(t, err, client.ErrFailed)
			continue
		}
		ok(t, err)
		got := make([]byte, 100)
		srv.Durable(got, 0)
		if !bytes.Equal(got, fill(100, 7)) {
			t.Error("what was flushed is not durable")
		}
	}
}

// A flush that the server says has failed is never made good again.
func TestFailedFlush(t *testing.T) {
	srv := start(t, modern)
	c := open(t, quick(srv))
	srv.SetFault(func(r nbd.Request) (f nbdfake.Fault) {
		if r.Type == nbd.CmdFlush {
			f = nbdfake.Fault{Kind: nbdfake.Refuse, Errno: nbd.EIO}
		}
		return f
	})
	ok(t, c.WriteAt(t.Context(), fill(10, 1), 0, 0))
	is(t, c.Flush(t.Context()), client.ErrFailed)
	srv.SetFault(nil)
	is(t, c.Flush(t.Context()), client.ErrFailed)
}

// Who gives up gets his buffer back at once, and what he has sent cannot come
// after what is written later.
func TestAbandonedWrite(t *testing.T) {
	srv := start(t, modern)
	c := open(t, quick(srv))
	for _, n := range []int{1000, 100 << 10} {
		release, arrived := make(chan struct{}), make(chan struct{})
		var once sync.Once
		srv.SetFault(func(r nbd.Request) (f nbdfake.Fault) {
			if r.Type == nbd.CmdWrite {
				once.Do(func() {
					f = nbdfake.Fault{Kind: nbdfake.Slow, Until: release}
					close(arrived)
				})
			}
			return f
		})
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("aborted")
		p := fill(n, 1)
		failed := make(chan error, 1)
		go func() { failed <- c.WriteAt(ctx, p, 5000, 0) }()
		<-arrived
		cancel(why)
		is(t, <-failed, why)
		clear(p) // ours again
		second := make(chan error, 1)
		go func() { second <- c.WriteAt(t.Context(), fill(n, 2), 5000, 0) }()
		// What does not overlap is not held up.
		ok(t, c.WriteAt(t.Context(), fill(100, 3), 0, 0))
		select {
		case err := <-second:
			t.Fatalf("a write overtook one that is under way (%v)", err)
		default:
		}
		close(release)
		ok(t, <-second)
		got := make([]byte, n)
		srv.Content(got, 5000)
		if !bytes.Equal(got, fill(n, 2)) {
			t.Error("an abandoned write came after a later one")
		}
	}
}

// What was sent on a lost connection may be done late; it must not come after what
// is written later.
func TestLateWrite(t *testing.T) {
	srv := start(t, modern)
	cfg := quick(srv)
	cfg.Settle = 300 * time.Millisecond
	c := open(t, cfg)
	release, arrived := make(chan struct{}), make(chan struct{})
	free := sync.OnceFunc(func() { close(release) })
	defer free()
	var once sync.Once
	srv.SetFault(func(r nbd.Request) (f nbdfake.Fault) {
		if r.Type == nbd.CmdWrite {
			once.Do(func() {
				f = nbdfake.Fault{Kind: nbdfake.Slow, Until: release}
				close(arrived)
			})
		}
		return f
	})
	first := make(chan error, 1)
	go func() { first <- c.WriteAt(t.Context(), fill(1000, 1), 5000, 0) }()
	<-arrived
	srv.HangUp()
	ok(t, <-first) // sent again
	second := make(chan error, 1)
	go func() { second <- c.WriteAt(t.Context(), fill(1000, 2), 5500, 0) }()
	for range 50 { // others are free
		ok(t, c.WriteAt(t.Context(), fill(1000, 3), 0, 0))
	}
	select {
	case err := <-second:
		t.Fatalf("a write did not wait for one that may come late (%v)", err)
	default:
	}
	free()
	ok(t, <-second)
	srv.Stop() // all that it does is done
	got := make([]byte, 1500)
	srv.Content(got, 5000)
	if !bytes.Equal(got, append(fill(500, 1), fill(1000, 2)...)) {
		t.Error("a late write came after a newer one")
	}
}

func TestAbandonedRead(t *testing.T) {
	srv := start(t, modern)
	cfg := quick(srv)
	cfg.Conns, cfg.Stall = 1, 3*time.Second // a torn answer is noticed long before
	c := open(t, cfg)
	ok(t, c.WriteAt(t.Context(), fill(1<<20, 9), 0, 0))
	for _, kind := range []nbdfake.Kind{nbdfake.Late, nbdfake.Stuck} {
		release, arrived := make(chan struct{}), make(chan struct{})
		var once sync.Once
		srv.SetFault(func(r nbd.Request) (f nbdfake.Fault) {
			once.Do(func() {
				f = nbdfake.Fault{Kind: kind, Until: release}
				close(arrived)
			})
			return f
		})
		ctx, cancel := context.WithCancel(t.Context())
		p := make([]byte, 300<<10)
		failed := make(chan error, 1)
		go func() { failed <- c.ReadAt(ctx, p, 0) }()
		<-arrived
		cancel()
		err := <-failed
		clear(p) // the race detector sees who writes to it now
		close(release)
		if kind == nbdfake.Late {
			is(t, err, context.Canceled)
		} else if err == nil {
			t.Error("a READ that was answered in part is a success")
		}
		got := make([]byte, 1000)
		ok(t, c.ReadAt(t.Context(), got, 500))
		if !bytes.Equal(got, fill(1000, 9)) {
			t.Error("the answer to an abandoned READ was mixed up with the next one")
		}
		if !bytes.Equal(p, make([]byte, len(p))) {
			t.Error("an abandoned buffer was touched")
		}
	}
}

// What is kept for calls that were given up is bounded: then giving up waits.
func TestAbandonedAreBounded(t *testing.T) {
	o := modern
	o.Size = 80 << 20
	srv := start(t, o)
	cfg := quick(srv)
	cfg.Stall = -1
	c := open(t, cfg)
	release := make(chan struct{})
	srv.SetFault(func(nbd.Request) nbdfake.Fault { return nbdfake.Fault{Kind: nbdfake.Slow, Until: release} })
	const n = 4 << 20
	p := make([]byte, n)
	given := 0
	waiting := make(chan error, 1)
	for ; given < 20; given++ {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.WriteAt(ctx, p, int64(given*n), 0) }()
		for srv.Seen(nbd.CmdWrite) <= given {
			runtime.Gosched()
		}
		cancel()
		if given == 64/4-1 { // with what else each costs this is one too many
			waiting = done
			break
		}
		is(t, <-done, context.Canceled)
	}
	select {
	case err := <-waiting:
		t.Fatalf("call %d was given up as well (%v)", given, err)
	default:
	}
	srv.SetFault(nil)
	close(release)
	ok(t, <-waiting)
	ok(t, c.WriteAt(t.Context(), p, 0, 0))
}

// Another export in its place is not taken.
func TestNotTheSame(t *testing.T) {
	for name, change := range map[string]func(*nbdfake.Options){
		"smaller":   func(o *nbdfake.Options) { o.Size /= 2 },
		"read-only": func(o *nbdfake.Options) { o.Flags |= nbd.ReadOnly },
		"no flush":  func(o *nbdfake.Options) { o.Flags &^= nbd.SendFlush },
		"blocks":    func(o *nbdfake.Options) { o.BlockSize = &nbd.BlockSize{Min: 512, Preferred: 4096, MaxPayload: 1 << 20} },
		"no status": func(o *nbdfake.Options) { o.Allocation = false },
		"name":      func(o *nbdfake.Options) { o.Export = "other" },
	} {
		t.Run(name, func(t *testing.T) {
			srv := start(t, modern)
			c := open(t, quick(srv))
			srv.Stop()
			srv.Change(change)
			ok(t, srv.Restart())
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			defer cancel()
			is(t, c.WriteAt(ctx, make([]byte, 512), 0, 0), context.DeadlineExceeded)
			srv.Stop()
			srv.Change(func(o *nbdfake.Options) { *o = modern })
			ok(t, srv.Restart())
			ok(t, c.WriteAt(t.Context(), make([]byte, 512), 0, 0))
		})
	}
}

func TestConnections(t *testing.T) {
	srv := start(t, modern)
	cfg := quick(srv)
	cfg.Conns = 3
	if n := open(t, cfg).Conns(); n != 3 {
		t.Errorf("%d connections to a server that keeps them coherent, want 3", n)
	}
	o := modern
	o.Flags &^= nbd.CanMultiConn
	if n := open(t, quick(start(t, o))).Conns(); n != 1 {
		t.Errorf("%d connections to a server that does not, want 1", n)
	}
}

// Server's errors are told as they are, and one connection's answers go on.
func TestServerErrors(t *testing.T) {
	for _, mode := range []nbd.Mode{nbd.Simple, nbd.Structured, nbd.Extended} {
		o := modern
		o.Mode = mode
		srv := start(t, o)
		c := open(t, quick(srv))
		srv.SetFault(func(r nbd.Request) nbdfake.Fault { return nbdfake.Fault{Kind: nbdfake.Refuse, Errno: nbd.ENOSPC} })
		err := c.ReadAt(t.Context(), make([]byte, 10), 77)
		is(t, err, nbd.ENOSPC)
		var e *client.Error
		if !errors.As(err, &e) || mode != nbd.Simple && (e.Offset != 77 || e.Message != "as told") {
			t.Errorf("%v: %+v", mode, e)
		}
		is(t, c.WriteAt(t.Context(), make([]byte, 10), 0, 0), nbd.ENOSPC)
		srv.SetFault(nil)
		ok(t, c.WriteAt(t.Context(), make([]byte, 10), 0, 0))
	}
}

// A server that wants to go is left, and what it refused is asked of its successor.
func TestShutdown(t *testing.T) {
	srv := start(t, modern)
	c := open(t, quick(srv))
	var n int
	var mu sync.Mutex
	srv.SetFault(func(r nbd.Request) (f nbdfake.Fault) {
		mu.Lock()
		defer mu.Unlock()
		if n++; n < 3 {
			f = nbdfake.Fault{Kind: nbdfake.Refuse, Errno: nbd.ESHUTDOWN}
		}
		return f
	})
	ok(t, c.WriteAt(t.Context(), fill(10, 1), 0, 0))
}

func TestList(t *testing.T) {
	o := modern
	o.Export = "disk"
	l, err := client.List(t.Context(), quick(start(t, o)))
	if err != nil || len(l) != 1 || l[0].Name != "disk" || l[0].Size != o.Size || l[0].Flags != o.Flags {
		t.Errorf("List = %+v, %v", l, err)
	}
}

// A server that takes large zeroings apart by refusing them gets smaller ones.
func TestLargeZeroes(t *testing.T) {
	o := modern
	o.Size = 4 << 20
	o.BlockSize = &nbd.BlockSize{Min: 1, Preferred: 4096, MaxPayload: 1 << 20}
	srv := start(t, o)
	c := open(t, quick(srv))
	srv.SetFault(func(r nbd.Request) (f nbdfake.Fault) {
		if r.Type == nbd.CmdWriteZeroes && r.Length > 1<<20 {
			f = nbdfake.Fault{Kind: nbdfake.Refuse, Errno: nbd.EOVERFLOW}
		}
		return f
	})
	ok(t, c.WriteAt(t.Context(), fill(4<<20, 1), 0, 0))
	ok(t, c.WriteZeroes(t.Context(), 100, 4<<20-200, 0))
	got := make([]byte, 4<<20)
	srv.Content(got, 0)
	if want := append(append(fill(100, 1), make([]byte, 4<<20-200)...), fill(100, 1)...); !bytes.Equal(got, want) {
		t.Error("content differs")
	}
	if n := srv.Seen(nbd.CmdWriteZeroes); n != 1+4 {
		t.Errorf("%d requests", n)
	}
}

func ExampleList() {
	uri, err := client.ParseURI("nbd://localhost")
	if err != nil {
		fmt.Println(err)
		return
	}
	cfg, err := uri.Config()
	if err != nil {
		fmt.Println(err)
		return
	}
	exports, err := client.List(context.Background(), cfg)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, e := range exports {
		fmt.Println(e.Name, e.Size, e.Description)
	}
}
