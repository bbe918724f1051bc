package curve_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/curve"
	"blockgate/backing/curve/nebdfake"
)

func fill(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }

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

func holds(t testing.TB, s backing.Store, off int64, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	ok(t, s.ReadAt(t.Context(), got, off))
	if !bytes.Equal(got, want) {
		t.Fatalf("at %d: got %x…, want %x…", off, got[:8], want[:8])
	}
}

// came waits for an event that another goroutine announces.
func came(t testing.TB, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		t.Fatalf("did not happen: %s", what)
	}
}

// once does a fault to the first request of a method; seen is closed then.
func once(method string, f nebdfake.Fault) (fn func(nebdfake.Request) nebdfake.Fault, seen chan struct{}) {
	seen = make(chan struct{})
	var first sync.Once
	return func(r nebdfake.Request) (out nebdfake.Fault) {
		if r.Method == method {
			first.Do(func() {
				out = f
				close(seen)
			})
		}
		return out
	}, seen
}

// What goes wrong once is tried again and nobody sees it.
func TestTriedAgain(t *testing.T) {
	for _, method := range []string{"Read", "Write", "Flush", "GetInfo", "KeepAlive"} {
		for name, f := range map[string]nebdfake.Fault{
			"CloseBefore": {Kind: nebdfake.CloseBefore}, "CloseAfter": {Kind: nebdfake.CloseAfter},
			"Torn": {Kind: nebdfake.Torn, Bytes: 1}, "TornLate": {Kind: nebdfake.Torn, Bytes: 4000},
			"Stopping": {Kind: nebdfake.BRPC, Code: 2003}, "Overcrowded": {Kind: nebdfake.BRPC, Code: 1011},
		} {
			t.Run(method+"/"+name, func(t *testing.T) {
				r := newRig(t, nebdfake.Options{})
				s := open(t, r.volume(1<<20, 4096), exclusive)
				ok(t, s.WriteAt(t.Context(), fill(8192, 1), 0))
				fn, seen := once(method, f)
				r.SetFault(fn)
				ok(t, s.WriteAt(t.Context(), fill(4096, 2), 0))
				holds(t, s, 0, append(fill(4096, 2), fill(4096, 1)...))
				ok(t, s.Flush(t.Context()))
				if _, err := s.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
				came(t, method, seen)
				holds(t, s, 0, append(fill(4096, 2), fill(4096, 1)...))
			})
		}
	}
}

// So it is while the volume is being opened.
func TestOpenTriedAgain(t *testing.T) {
	for _, method := range []string{"OpenFile", "CloseFile", "GetInfo"} {
		for name, f := range map[string]nebdfake.Fault{
			"CloseBefore": {Kind: nebdfake.CloseBefore}, "CloseAfter": {Kind: nebdfake.CloseAfter}, "Stopping": {Kind: nebdfake.BRPC, Code: 2003},
		} {
			t.Run(method+"/"+name, func(t *testing.T) {
				r := newRig(t, nebdfake.Options{})
				fn, seen := once(method, f)
				r.SetFault(fn)
				s := open(t, r.volume(1<<20, 4096), exclusive)
				came(t, method, seen)
				ok(t, s.WriteAt(t.Context(), fill(4096, 2), 0))
			})
		}
	}
}

// A write whose connection is torn may be carried out later, on a server that
// lives. It must not be sent again, acknowledged, and then overwrite what was
// written after it.
func TestLostWriteDoesNotComeLater(t *testing.T) {
	for name, first := range map[string]nebdfake.Fault{
		"Plain": {}, "Overcrowded": {Kind: nebdfake.BRPC, Code: 1011}, "NoMethod": {Kind: nebdfake.BRPC, Code: 1002},
		"Torn": {Kind: nebdfake.CloseBefore},
	} {
		t.Run(name, func(t *testing.T) { lostWrite(t, first) })
	}
}

// lostWrite does a fault to the first close that is to wait for the write.
func lostWrite(t *testing.T, first nebdfake.Fault) {
	r := newRig(t, nebdfake.Options{})
	s := open(t, r.volume(1<<20, 4096), exclusive)
	release := make(chan struct{})
	held, seen := once("Write", nebdfake.Fault{Kind: nebdfake.Late, Before: true, Until: release})
	drained := make(chan struct{})
	var closes atomic.Int32
	r.SetFault(func(q nebdfake.Request) nebdfake.Fault {
		if q.Method == "CloseFile" {
			switch closes.Add(1) {
			case 1:
				return first
			case 2:
				close(drained)
			}
		}
		return held(q)
	})
	done := make(chan error, 1)
	go func() { done <- s.WriteAt(context.Background(), fill(4096, 1), 0) }()
	came(t, "the write", seen)
	r.Drop()
	if first.Kind == nebdfake.None {
		// It hangs, so there is no second one unless its connection goes too.
		for closes.Load() == 0 {
			select {
			case err := <-done:
				t.Fatalf("the write returned: %v", err)
			case <-time.After(time.Millisecond):
			}
		}
		r.Drop()
	}
	came(t, "the close that waits for the write", drained)
	select {
	case err := <-done:
		t.Fatalf("the write returned (%v) while the first one was under way still", err)
	default:
	}
	close(release)
	ok(t, <-done)
	ok(t, s.WriteAt(t.Context(), fill(4096, 2), 0))
	holds(t, s, 0, fill(4096, 2))
}

// The same for what an earlier process had under way: it does not come after
// Open has returned.
func TestOpenWaitsForAnEarlierClient(t *testing.T) {
	r := newRig(t, nebdfake.Options{})
	l := r.volume(1<<20, 4096)
	first, err := curve.OpenAt(t.Context(), l, exclusive, curve.Config{CloseTimeout: time.Millisecond, ClientConf: "/nonexistent"})
	ok(t, err)
	release := make(chan struct{})
	fn, seen := once("Write", nebdfake.Fault{Kind: nebdfake.Late, Before: true, Until: release})
	r.SetFault(fn)
	done := make(chan error, 1)
	go func() { done <- first.WriteAt(context.Background(), fill(4096, 1), 0) }()
	came(t, "the write", seen)
	ok(t, first.Close())
	is(t, <-done, backing.ErrClosed)

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := curve.OpenAt(ctx, l, exclusive, quick); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Open while a write is under way: %v, want that it waits", err)
	}
	close(release)
	s := open(t, l, exclusive)
	holds(t, s, 0, fill(4096, 1))
	ok(t, s.WriteAt(t.Context(), fill(4096, 2), 0))
	holds(t, s, 0, fill(4096, 2))
}

// A write that is never answered fails by its deadline and takes the volume out of
// service until the server is known to be done with it.
func TestUnansweredWrite(t *testing.T) {
	r := newRig(t, nebdfake.Options{DropOnError: true})
	l := r.volume(1<<20, 4096)
	l.Timeout = 200 * time.Millisecond
	s := open(t, l, exclusive)
	fn, _ := once("Write", nebdfake.Fault{Kind: nebdfake.Fail})
	r.SetFault(fn)
	begin := time.Now()
	is(t, s.WriteAt(t.Context(), fill(4096, 1), 0), curve.ErrUnanswered)
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("that took %v", d)
	}
	is(t, s.Status(), curve.ErrSuspended)
	// At once, although nothing would answer.
	is(t, s.WriteAt(t.Context(), fill(4096, 1), 8192), curve.ErrSuspended)
	is(t, s.ReadAt(t.Context(), make([]byte, 4096), 0), curve.ErrSuspended)
	// The dropped request holds the file's lock for ever: only a new server helps.
	r.restart(t)
	recovered(t, s)
	ok(t, s.WriteAt(t.Context(), fill(4096, 2), 0))
	holds(t, s, 0, fill(4096, 2))
}

// recovered waits until the volume is in service.
func recovered(t testing.TB, s *curve.Store) {
	t.Helper()
	late := time.After(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for s.Status() != nil {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("still out of service: %v", s.Status())
		}
	}
}

// A server that merely lost the request lets it recover by itself.
func TestSwallowedWriteRecovers(t *testing.T) {
	r := newRig(t, nebdfake.Options{})
	l := r.volume(1<<20, 4096)
	l.Timeout = 200 * time.Millisecond
	var out atomic.Int32
	cfg := quick
	cfg.OnStatus = func(why error) {
		if why != nil {
			out.Add(1)
		}
	}
	s, err := curve.OpenAt(t.Context(), l, exclusive, cfg)
	ok(t, err)
	defer s.Close()
	fn, _ := once("Write", nebdfake.Fault{Kind: nebdfake.Swallow})
	r.SetFault(fn)
	is(t, s.WriteAt(t.Context(), fill(4096, 1), 0), curve.ErrUnanswered)
	recovered(t, s)
	ok(t, s.WriteAt(t.Context(), fill(4096, 2), 0))
	if out.Load() == 0 {
		t.Error("nobody was told that the volume was out of service")
	}
}

// A read that is never answered fails, and no more than that: closing the volume
// would hang, and there is nothing to wait for.
func TestUnansweredRead(t *testing.T) {
	r := newRig(t, nebdfake.Options{DropOnError: true})
	l := r.volume(1<<20, 4096)
	l.Timeout = 200 * time.Millisecond
	cfg := quick
	cfg.CloseTimeout = 20 * time.Millisecond
	s, err := curve.OpenAt(t.Context(), l, exclusive, cfg)
	ok(t, err)
	ok(t, s.WriteAt(t.Context(), fill(8192, 1), 0))
	release := make(chan struct{})
	var n atomic.Int32
	r.SetFault(func(q nebdfake.Request) nebdfake.Fault {
		if q.Method == "Read" {
			switch n.Add(1) {
			case 1:
				return nebdfake.Fault{Kind: nebdfake.Fail}
			case 2:
				return nebdfake.Fault{Kind: nebdfake.Late, Until: release}
			}
		}
		return nebdfake.Fault{}
	})
	p := fill(4096, 0xee)
	is(t, s.ReadAt(t.Context(), p, 0), curve.ErrUnanswered)
	is(t, s.ReadAt(t.Context(), p, 0), curve.ErrUnanswered)
	ok(t, s.Status())
	// The answer that comes after all finds nobody, and the connection goes on.
	keep := bytes.Clone(p)
	close(release)
	for range 20 {
		holds(t, s, 4096, fill(4096, 1))
	}
	if !bytes.Equal(p, keep) {
		t.Error("a late answer went into a buffer that was given back")
	}
	ok(t, s.WriteAt(t.Context(), fill(4096, 2), 0))
	begin := time.Now()
	ok(t, s.Close())
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("Close took %v on a volume that cannot be closed", d)
	}
}

func TestRefusals(t *testing.T) {
	r := newRig(t, nebdfake.Options{})
	s := open(t, r.volume(1<<20, 4096), exclusive)
	fn, _ := once("Write", nebdfake.Fault{Kind: nebdfake.Fail})
	r.SetFault(fn)
	if err := s.WriteAt(t.Context(), fill(4096, 1), 0); err == nil || errors.Is(err, curve.ErrUnanswered) {
		t.Errorf("a write that failed: %v", err)
	}
	ok(t, s.Status())
	fn, _ = once("Read", nebdfake.Fault{Kind: nebdfake.BRPC, Code: 1002})
	r.SetFault(fn)
	is(t, s.ReadAt(t.Context(), make([]byte, 4096), 0), backing.ErrNotSupported)
	ok(t, s.WriteAt(t.Context(), fill(4096, 2), 0))
}

// Descriptors outlive the server, or do not.
func TestReopen(t *testing.T) {
	r := newRig(t, nebdfake.Options{})
	s := open(t, r.volume(1<<20, 4096), exclusive)
	ok(t, s.WriteAt(t.Context(), fill(4096, 1), 0))
	r.restart(t)
	holds(t, s, 0, fill(4096, 1))
	ok(t, s.WriteAt(t.Context(), fill(4096, 2), 0))
	r.Forget()
	ok(t, s.WriteAt(t.Context(), fill(4096, 3), 4096))
	holds(t, s, 0, append(fill(4096, 2), fill(4096, 3)...))
	r.Expire()
	holds(t, s, 0, append(fill(4096, 2), fill(4096, 3)...))
	r.Stop()
	r.Forget()
	ok(t, r.Start(r.socket))
	holds(t, s, 4096, fill(4096, 3))
}

// A server that is away for longer than the limit is an error, and only then.
func TestServerAway(t *testing.T) {
	r := newRig(t, nebdfake.Options{})
	l := r.volume(1<<20, 4096)
	l.Timeout = 100 * time.Millisecond
	s := open(t, l, exclusive)
	r.Stop()
	if err := s.WriteAt(t.Context(), fill(4096, 1), 0); err == nil || errors.Is(err, curve.ErrSuspended) {
		t.Fatalf("a write without a server: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	is(t, s.ReadAt(ctx, make([]byte, 4096), 0), context.Canceled)
	ok(t, r.Start(r.socket))
	recovered(t, s)
	ok(t, s.WriteAt(t.Context(), fill(4096, 1), 0))
	r.Stop()
	ok(t, s.Close())
	is(t, s.Close(), backing.ErrClosed)
}

func TestHeartbeats(t *testing.T) {
	r := newRig(t, nebdfake.Options{})
	beats, again := make(chan struct{}, 1000), make(chan struct{})
	var n, opens atomic.Int32
	r.SetFault(func(q nebdfake.Request) nebdfake.Fault {
		switch q.Method {
		case "KeepAlive":
			beats <- struct{}{}
			if n.Add(1) == 3 {
				return nebdfake.Fault{Kind: nebdfake.Swallow}
			}
		case "OpenFile":
			// Open takes two, as it closes in between.
			if opens.Add(1) == 3 {
				close(again)
			}
		}
		return nebdfake.Fault{}
	})
	cfg := quick
	cfg.Heartbeat, cfg.HeartbeatTimeout = time.Millisecond, 50*time.Millisecond
	s, err := curve.OpenAt(t.Context(), r.volume(1<<20, 4096), exclusive, cfg)
	ok(t, err)
	defer s.Close()
	for range 3 {
		came(t, "a heartbeat", beats)
	}
	if r.Heartbeats() == 0 {
		t.Error("no heartbeat named the volume")
	}
	came(t, "a new connection after a heartbeat was not answered", again)
	ok(t, s.WriteAt(t.Context(), fill(4096, 1), 0))
}

// The lock is the one that nebd's clients take.
func TestLock(t *testing.T) {
	r := newRig(t, nebdfake.Options{})
	dir := filepath.Join(r.dir, "lock")
	ok(t, os.Mkdir(dir, 0o755))
	l := r.volume(1<<20, 4096)
	s := open(t, l, exclusive)
	if _, err := os.Stat(filepath.Join(dir, "cbd:pool++"+l.Volume[1:]+"_user_")); err != nil {
		t.Error(err)
	}
	_, err := curve.OpenAt(t.Context(), l, exclusive, quick)
	is(t, err, backing.ErrBusy)
	open(t, l, backing.OpenOptions{ReadOnly: true, Exclusive: true})
	l.NoLock = true
	open(t, l, backing.OpenOptions{})
	l.NoLock = false
	ok(t, s.Close())
	open(t, l, exclusive)
}
