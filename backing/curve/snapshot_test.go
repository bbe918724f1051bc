package curve_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/curve"
	"blockgate/backing/curve/nebdfake"
)

// snapRig is a volume of 1 MiB with a snapshot and clone service.
func snapRig(t *testing.T) (*rig, *nebdfake.SnapshotService, *curve.Store, []string) {
	t.Helper()
	r := newRig(t, nebdfake.Options{})
	svc := nebdfake.NewSnapshotService(r.Server, "pool")
	h := httptest.NewServer(svc)
	t.Cleanup(h.Close)
	l := r.volume(1<<20, 4096)
	// The first address is of a server that is not there.
	l.Snapshots = []string{deadAddress(t), h.Listener.Addr().String()}
	return r, svc, open(t, l, exclusive), l.Snapshots
}

// deadAddress is one at which nobody listens.
func deadAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	defer l.Close()
	return l.Addr().String()
}

func TestSnapshots(t *testing.T) {
	_, _, s, _ := snapRig(t)
	ctx := t.Context()
	if c := backing.CapsOf(s); c&backing.CapSnapshot == 0 {
		t.Fatalf("capabilities %s lack snapshot", c)
	}
	for i := range 3 {
		ok(t, s.WriteAt(ctx, fill(8192, byte(i+1)), 0))
		snap, err := s.CreateSnapshot(ctx, fmt.Sprint("s", i))
		ok(t, err)
		if snap.Name != fmt.Sprint("s", i) || snap.ID == "" || snap.Size != 1<<20 || snap.Pause <= 0 || time.Since(snap.Created) > time.Minute {
			t.Errorf("snapshot %+v", snap)
		}
	}
	_, err := s.CreateSnapshot(ctx, "s1")
	is(t, err, backing.ErrExist)
	list, err := s.Snapshots(ctx)
	ok(t, err)
	if len(list) != 3 || list[0].Name != "s0" || list[2].Name != "s2" {
		t.Errorf("list = %+v", list)
	}
	// A clone by name and one by id, each with what was there then.
	for i, from := range []string{"s0", list[1].ID} {
		location, err := s.Clone(ctx, from, fmt.Sprint("clone", i))
		ok(t, err)
		l, err := curve.ParseLocation(location)
		ok(t, err)
		c := open(t, l, exclusive)
		holds(t, c, 0, fill(8192, byte(i+1)))
		ok(t, c.WriteAt(ctx, fill(8192, 9), 0))
		holds(t, s, 0, fill(8192, 3))
		if i == 0 {
			is(t, s.DeleteSnapshot(ctx, "s0"), backing.ErrBusy)
			ok(t, c.Flatten(ctx))
			ok(t, s.DeleteSnapshot(ctx, "s0"))
		}
	}
	_, err = s.Clone(ctx, "s1", "clone1")
	is(t, err, backing.ErrExist)
	_, err = s.Clone(ctx, "s9", "clone9")
	is(t, err, backing.ErrNotExist)
	is(t, s.DeleteSnapshot(ctx, "s0"), backing.ErrNotExist)
	is(t, s.Flatten(ctx), backing.ErrNotExist)
	for _, name := range []string{"", "a\nb", strings.Repeat("x", 300)} {
		if _, err := s.CreateSnapshot(ctx, name); err == nil {
			t.Errorf("a snapshot is named %q", name)
		}
	}
	for _, name := range []string{"", "/", "a:b", "a//b", "//x"} {
		if l, err := s.Clone(ctx, "s1", name); err == nil {
			t.Errorf("a clone is named %q: %s", name, l)
		}
	}
}

// More than one page.
func TestManySnapshots(t *testing.T) {
	_, _, s, _ := snapRig(t)
	for i := range 105 {
		_, err := s.CreateSnapshot(t.Context(), fmt.Sprint("s", i))
		ok(t, err)
	}
	list, err := s.Snapshots(t.Context())
	ok(t, err)
	if len(list) != 105 || list[104].Name != "s104" {
		t.Errorf("%d snapshots, want 105", len(list))
	}
}

// A snapshot has every write that returned before, and none that began after it
// returned; each under way all or nothing, although Curve takes it late.
func TestSnapshotUnderWrites(t *testing.T) {
	_, _, s, _ := snapRig(t)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var last [4]atomic.Int64
	for w := range last {
		wg.Go(func() {
			for i := int64(1); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := s.WriteAt(t.Context(), fill(8192, byte(i)), int64(w)*8192); err != nil {
					t.Error(err)
					return
				}
				last[w].Store(i)
			}
		})
	}
	for round := range 5 {
		name := fmt.Sprint("s", round)
		var before, after [4]int64
		for w := range last {
			before[w] = last[w].Load()
		}
		_, err := s.CreateSnapshot(t.Context(), name)
		ok(t, err)
		for w := range last {
			after[w] = last[w].Load() + 1
		}
		location, err := s.Clone(t.Context(), name, "c"+name)
		ok(t, err)
		l, err := curve.ParseLocation(location)
		ok(t, err)
		c := open(t, l, backing.OpenOptions{ReadOnly: true})
		got := make([]byte, 8192)
		for w := range last {
			ok(t, c.ReadAt(t.Context(), got, int64(w)*8192))
			if got[0] != got[8191] {
				t.Errorf("half a write is in the snapshot")
			}
			// Modulo 256, as that is what is written.
			if d := byte(got[0]) - byte(before[w]); int64(d) > after[w]-before[w] {
				t.Errorf("writer %d: the snapshot has write %d, want %d to %d (mod 256)", w, got[0], byte(before[w]), byte(after[w]))
			}
		}
		ok(t, c.Close())
	}
	close(stop)
	wg.Wait()
}

// lateContext is over as soon as somebody has been refused, who does not know yet.
type lateContext struct {
	context.Context
	over atomic.Bool
}

func (c *lateContext) Done() <-chan struct{} { return nil }

func (c *lateContext) Err() error {
	if c.over.Load() {
		return context.DeadlineExceeded
	}
	return nil
}

// A call whose time is over says so, also if an address was refused at that moment.
func TestSnapshotServiceOutOfTime(t *testing.T) {
	r, _, _, addrs := snapRig(t)
	ctx := &lateContext{Context: t.Context()}
	cfg := quick
	cfg.Dial = func(_ context.Context, network, address string) (net.Conn, error) {
		if network == "tcp" {
			ctx.over.Store(true)
			return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
		}
		return net.Dial(network, address)
	}
	l := r.volume(1<<20, 4096)
	l.Snapshots = addrs
	s, err := curve.OpenAt(t.Context(), l, backing.OpenOptions{ReadOnly: true}, cfg)
	ok(t, err)
	defer s.Close()
	_, err = s.Snapshots(ctx)
	is(t, err, context.DeadlineExceeded)
	is(t, err, syscall.ECONNREFUSED)
}

func TestSnapshotFailures(t *testing.T) {
	r, svc, s, addrs := snapRig(t)
	ctx := t.Context()
	for code, want := range map[int]error{-20: backing.ErrBusy, -19: backing.ErrExist, -8: backing.ErrNotExist} {
		svc.Fail("CreateSnapshot", code)
		_, err := s.CreateSnapshot(ctx, "x")
		is(t, err, want)
	}
	svc.Fail("CreateSnapshot", 0)
	// The service makes it, and its answer is lost: nothing stays behind.
	svc.Lose("CreateSnapshot")
	if _, err := s.CreateSnapshot(ctx, "lost"); err == nil {
		t.Error("a snapshot nobody knows of was reported as taken")
	}
	if svc.Calls("CreateSnapshot") != 4 || svc.Calls("CancelSnapshot") != 1 {
		t.Errorf("asked %d times to create and %d times to cancel, want 4 and 1", svc.Calls("CreateSnapshot"), svc.Calls("CancelSnapshot"))
	}
	svc.Fail("Take", -1)
	if _, err := s.CreateSnapshot(ctx, "x"); err == nil {
		t.Error("a snapshot that failed was reported as taken")
	}
	svc.Fail("Take", 0)
	if _, err := s.Clone(ctx, "x", "cx"); err == nil {
		t.Error("cloned a snapshot that failed")
	}
	// It may fail after it was taken, while it is copied.
	svc.Fail("Copy", -1)
	_, err := s.CreateSnapshot(ctx, "w")
	ok(t, err)
	if _, err := s.Clone(ctx, "w", "cw"); err == nil || errors.Is(err, backing.ErrNotExist) {
		t.Errorf("cloned a snapshot that failed: %v", err)
	}
	svc.Fail("Copy", 0)
	ok(t, s.DeleteSnapshot(ctx, "w"))
	// One that is not taken in time is removed, and writes go on.
	svc.Stick(true)
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	_, err = s.CreateSnapshot(short, "y")
	is(t, err, context.DeadlineExceeded)
	// By itself it does not hold up writes for ever either.
	impatient := quick
	impatient.MaxPause = 20 * time.Millisecond
	l := r.volume(1<<20, 4096)
	l.Snapshots = addrs
	s2, err := curve.OpenAt(ctx, l, exclusive, impatient)
	ok(t, err)
	defer s2.Close()
	_, err = s2.CreateSnapshot(ctx, "y")
	is(t, err, backing.ErrBusy)
	svc.Stick(false)
	if svc.Calls("CancelSnapshot") == 0 {
		t.Error("it was not removed")
	}
	ok(t, s.WriteAt(ctx, fill(4096, 1), 0))
	_, err = s.CreateSnapshot(ctx, "z")
	ok(t, err)
	svc.Fail("Install", -1)
	if _, err := s.Clone(ctx, "z", "bad"); err == nil || svc.Calls("CleanCloneTask") == 0 {
		t.Errorf("a clone that failed: %v", err)
	}
	svc.Fail("Install", 0)
	svc.Fail("GetFileSnapshotInfo", -7)
	if _, err := s.Snapshots(ctx); err == nil || !strings.Contains(err.Error(), "-7") {
		t.Errorf("wrong user: %v", err)
	}
	// Without the service's address there is none of it.
	l = r.volume(1<<20, 4096)
	bare := open(t, l, exclusive)
	if backing.CapsOf(bare)&backing.CapSnapshot != 0 {
		t.Error("claims snapshots without a service")
	}
	_, err = bare.Snapshots(ctx)
	is(t, err, backing.ErrNotSupported)
}

// Answers that make no sense are errors and cost no memory to speak of.
func TestSnapshotServiceTalksNonsense(t *testing.T) {
	r := newRig(t, nebdfake.Options{})
	body := ""
	status := http.StatusOK
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	defer h.Close()
	l := r.volume(1<<20, 4096)
	l.Snapshots = []string{h.Listener.Addr().String()}
	s := open(t, l, exclusive)
	for _, body = range []string{"", "{", `{"Code":"x"}`, `{"Code":[]}`, "<html>", strings.Repeat(" ", 5<<20),
		`{"Code":"0","TotalCount":"9","Snapshots":{}}`, `{"Code":"-1","Message":"boom"}`} {
		if _, err := s.Snapshots(t.Context()); err == nil || errors.Is(err, backing.ErrNotExist) {
			t.Errorf("%.40q: %v", body, err)
		}
	}
	status, body = 500, `{"Code":"0"}`
	if _, err := s.Snapshots(t.Context()); err == nil {
		t.Error("status 500 is no error")
	}
	status, body = 200, `{"Code":"0","TotalCount":3,"Snapshots":[]}`
	if l, err := s.Snapshots(t.Context()); err != nil || len(l) != 0 {
		t.Errorf("a list that ends early: %v, %v", l, err)
	}
}
