package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"blockgate/internal/api/client"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/daemon"
	"blockgate/internal/state"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childState); dir != "" {
		os.Exit(child(dir))
	}
	goleak.VerifyTestMain(m)
}

const iqn = "iqn.2025-01.io.example:t"

// start runs a daemon in dir and gives a client of it.
func start(t *testing.T, dir string, portals ...state.Portal) (*daemon.Daemon, *client.Client) {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "s")
	d, err := daemon.Start(t.Context(), daemon.Config{StateDir: dir, Socket: sock, Portals: portals, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	c := client.New(sock)
	t.Cleanup(func() {
		c.Close()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d, c
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func code(err error) string {
	var e *state.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return fmt.Sprint(err)
}

func wantCode(t *testing.T, err error, want string) {
	t.Helper()
	if got := code(err); got != want {
		t.Errorf("error code %s (%v), want %s", got, err, want)
	}
}

func TestRoundTrip(t *testing.T) {
	ctx := t.Context()
	dir := filepath.Join(t.TempDir(), "state")
	d, c := start(t, dir, state.Portal{Address: "127.0.0.1:0", Group: 1})
	img := filepath.Join(t.TempDir(), "a.img")

	v := must(c.CreateVolume(ctx, state.Volume{Name: "a", URL: "file:" + img, Size: 1 << 20}))(t)
	if v.Status.State != v1.Online || v.Status.Size != 1<<20 || len(v.Unit.NAA) != 32 || v.Unit.NAA[0] != '6' || v.Unit.Serial == "" {
		t.Errorf("created volume: %+v", v)
	}
	if st, err := os.Stat(img); err != nil || st.Size() != 1<<20 {
		t.Errorf("the file: %v, %v", st, err)
	}
	must(c.CreateAccount(ctx, state.Account{User: "joe", Secret: "correct horse"}))(t)
	must(c.CreateTarget(ctx, state.Target{Name: iqn, ACL: []state.ACLRule{{All: true}}, Accounts: []string{"joe"}}))(t)
	must(c.AddLUN(ctx, iqn, state.LUN{Number: 3, Volume: "a"}))(t)
	must(c.UpdateTarget(ctx, iqn, func(t *state.Target) error { t.Alias = "one"; return nil }))(t)
	tgt := must(c.Target(ctx, iqn))(t)
	if tgt.ID != 1 || tgt.Alias != "one" || tgt.PortIDs[1] == 0 || len(tgt.LUNs) != 1 {
		t.Errorf("target: %+v", tgt)
	}
	luns := must(c.LUNs(ctx, iqn))(t)
	if len(luns) != 1 || luns[0].Number != 3 || luns[0].Volume.Status.UsedBy[0].Target != iqn {
		t.Errorf("luns: %+v", luns)
	}
	ps := must(c.Portals(ctx))(t)
	if len(ps) != 1 || !ps[0].Runtime || ps[0].Bound != d.Bound()[0].Bound.String() {
		t.Errorf("portals: %+v", ps)
	}

	// What is in the way is said, with a code.
	_, err := c.CreateVolume(ctx, state.Volume{Name: "a", URL: "ram:1M"})
	wantCode(t, err, state.CodeVolumeExists)
	_, err = c.DeleteVolume(ctx, "a", false)
	wantCode(t, err, state.CodeVolumeInUse)
	_, err = c.DeleteAccount(ctx, "joe", false)
	wantCode(t, err, state.CodeAccountInUse)
	_, err = c.AddLUN(ctx, iqn, state.LUN{Number: 3, Volume: "a"})
	wantCode(t, err, state.CodeLUNExists)
	_, err = c.Volume(ctx, "b")
	wantCode(t, err, state.CodeVolumeNotFound)
	_, err = c.CreateVolume(ctx, state.Volume{Name: "b", URL: "file:" + img})
	wantCode(t, err, state.CodeOpenFailed) // the same file twice
	_, err = c.CreateVolume(ctx, state.Volume{Name: "b", URL: "bogus:x"})
	wantCode(t, err, state.CodeUnknownEngine)
	_, err = c.CloseSession(ctx, 99)
	wantCode(t, err, state.CodeSessionNotFound)

	// Everything is there again after a restart, the same as before.
	before := must(c.Volume(ctx, "a"))(t)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	_, c = start(t, dir)
	if diff := cmp.Diff(before, must(c.Volume(ctx, "a"))(t)); diff != "" {
		t.Error("volume after the restart (-before +after):", diff)
	}
	if diff := cmp.Diff(tgt.Target, must(c.Target(ctx, iqn))(t).Target); diff != "" {
		t.Error("target after the restart:", diff)
	}
	if acc := must(c.Accounts(ctx))(t); len(acc) != 1 || acc[0].User != "joe" {
		t.Errorf("accounts: %+v", acc)
	}
	if ps := must(c.Portals(ctx))(t); len(ps) != 0 {
		t.Errorf("a portal of the command line was kept: %+v", ps)
	}
	// Deleting by force takes the LUN away too; an account that protected a
	// target does not leave it open.
	must(c.DeleteVolume(ctx, "a", true))(t)
	must(c.DeleteAccount(ctx, "joe", true))(t)
	if tgt := must(c.Target(ctx, iqn))(t); len(tgt.LUNs) != 0 || !tgt.Offline {
		t.Errorf("target after deleting by force: %+v", tgt)
	}
	must(c.DeleteTarget(ctx, iqn, false))(t)
	if _, err := os.Stat(img); err != nil {
		t.Error("deleting a volume must not touch its data:", err)
	}
}

// A transaction whose last step fails leaves nothing of its first ones.
func TestTransactionIsAtomic(t *testing.T) {
	ctx := t.Context()
	_, c := start(t, t.TempDir())
	must(c.CreateTarget(ctx, state.Target{Name: iqn}))(t)
	before := must(c.Targets(ctx))(t)
	_, err := c.Apply(ctx,
		state.Op{Verb: state.Create, Kind: state.KindVolume, Volume: &state.Volume{Name: "good", URL: "ram:1M"}},
		state.Op{Verb: state.Create, Kind: state.KindLUN, Name: iqn, LUN: &state.LUN{Number: 1, Volume: "good"}},
		state.Op{Verb: state.Create, Kind: state.KindVolume, Volume: &state.Volume{Name: "bad", URL: "file:/nonexistent/x.img"}},
	)
	wantCode(t, err, state.CodeOpenFailed)
	if !strings.Contains(err.Error(), `volume "bad"`) {
		t.Errorf("the error does not name the object: %v", err)
	}
	if vs := must(c.Volumes(ctx))(t); len(vs) != 0 {
		t.Errorf("left behind: %+v", vs)
	}
	after := must(c.Targets(ctx))(t)
	if diff := cmp.Diff(before[0].Target, after[0].Target); diff != "" {
		t.Error(diff)
	}
	// The names are free again, and the same in one that succeeds works.
	must(c.Apply(ctx,
		state.Op{Verb: state.Create, Kind: state.KindVolume, Volume: &state.Volume{Name: "good", URL: "ram:1M"}},
		state.Op{Verb: state.Create, Kind: state.KindLUN, Name: iqn, LUN: &state.LUN{Number: 1, Volume: "good"}},
	))(t)
	if luns := must(c.LUNs(ctx, iqn))(t); len(luns) != 1 || luns[0].Volume.Status.State != v1.Online {
		t.Errorf("luns: %+v", luns)
	}
}

// A store that is missing at the start fails its volume alone, and is back when
// it is asked for.
func TestMissingStore(t *testing.T) {
	ctx := t.Context()
	dir, files := t.TempDir(), t.TempDir()
	d, c := start(t, dir)
	must(c.CreateTarget(ctx, state.Target{Name: iqn, ACL: []state.ACLRule{{All: true}}}))(t)
	for i, n := range []string{"a", "b"} {
		must(c.CreateVolume(ctx, state.Volume{Name: n, URL: "file:" + filepath.Join(files, n), Size: 1 << 20}))(t)
		must(c.AddLUN(ctx, iqn, state.LUN{Number: uint64(i), Volume: n}))(t)
	}
	d.Close()
	if err := os.Rename(filepath.Join(files, "a"), filepath.Join(files, "away")); err != nil {
		t.Fatal(err)
	}
	_, c = start(t, dir)
	vs := must(c.Volumes(ctx))(t)
	if vs[0].Status.State != v1.Failed || vs[0].Status.Error == "" || vs[1].Status.State != v1.Online {
		t.Errorf("volumes: %+v", vs)
	}
	if got := must(c.Target(ctx, iqn))(t).Status.FailedLUNs; len(got) != 1 || got[0] != 0 {
		t.Errorf("failed LUNs: %v", got)
	}
	if _, err := os.Stat(filepath.Join(files, "a")); err == nil {
		t.Error("a missing store was made anew, empty")
	}
	_, err := c.RetryVolume(ctx, "a")
	wantCode(t, err, state.CodeOpenFailed)
	if err := os.Rename(filepath.Join(files, "away"), filepath.Join(files, "a")); err != nil {
		t.Fatal(err)
	}
	if v := must(c.RetryVolume(ctx, "a"))(t); v.Status.State != v1.Online {
		t.Errorf("after the retry: %+v", v.Status)
	}
	if s := must(c.System(ctx))(t); s.Failed != 0 {
		t.Errorf("%d failed", s.Failed)
	}
}

func TestStateIsNoVolume(t *testing.T) {
	dir := t.TempDir()
	_, c := start(t, dir)
	_, err := c.CreateVolume(t.Context(), state.Volume{Name: "oops", URL: "file:" + filepath.Join(dir, "x", "..", state.FileName)})
	wantCode(t, err, state.CodeOpenFailed)
	if err == nil || !strings.Contains(err.Error(), "the daemon's own state") {
		t.Error(err)
	}
}

// Memory that was grown has its size again after a restart; a file that was cut
// off stays as it is.
func TestSizesAfterRestart(t *testing.T) {
	ctx := t.Context()
	dir, img := t.TempDir(), filepath.Join(t.TempDir(), "a")
	d, c := start(t, dir)
	must(c.CreateVolume(ctx, state.Volume{Name: "a", URL: "file:" + img, Size: 2 << 20}))(t)
	must(c.CreateVolume(ctx, state.Volume{Name: "m", URL: "ram:1M"}))(t)
	must(c.ResizeVolume(ctx, "m", 3<<20))(t)
	d.Close()
	if err := os.Truncate(img, 1<<20); err != nil {
		t.Fatal(err)
	}
	_, c = start(t, dir)
	vs := must(c.Volumes(ctx))(t)
	if got := []int64{vs[0].Status.Size, vs[1].Status.Size}; got[0] != 1<<20 || got[1] != 3<<20 {
		t.Errorf("sizes %d, want the file as it is and the memory as it was", got)
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	dir := t.TempDir()
	start(t, dir)
	_, err := daemon.Start(t.Context(), daemon.Config{StateDir: dir})
	wantCode(t, err, state.CodeStateLocked)
	if !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("the error does not name the process: %v", err)
	}
	sock := filepath.Join(t.TempDir(), "s")
	d, err := daemon.Start(t.Context(), daemon.Config{Socket: sock})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	_, err = daemon.Start(t.Context(), daemon.Config{Socket: sock})
	wantCode(t, err, state.CodeListenFailed)
}

func TestPortals(t *testing.T) {
	ctx := t.Context()
	d, c := start(t, t.TempDir(), state.Portal{Address: "127.0.0.1:0", Group: 1})
	taken := d.Bound()[0].Bound.String()
	_, err := c.CreatePortal(ctx, state.Portal{Address: taken})
	wantCode(t, err, state.CodeListenFailed)
	_, err = c.CreatePortal(ctx, state.Portal{Address: strings.Replace(taken, "127.0.0.1", "0.0.0.0", 1)})
	wantCode(t, err, state.CodeListenFailed)
	if err == nil || !strings.Contains(err.Error(), "portal "+taken+" has that port already") {
		t.Error(err)
	}
	if len(must(c.Portals(ctx))(t)) != 1 {
		t.Error("a portal that cannot be bound was kept")
	}
	_, err = daemon.Start(ctx, daemon.Config{Portals: []state.Portal{{Address: taken, Group: 1}}})
	wantCode(t, err, state.CodeListenFailed)
}

func TestUnreachable(t *testing.T) {
	c := client.New(filepath.Join(t.TempDir(), "none"))
	_, err := c.System(context.Background())
	wantCode(t, err, state.CodeUnreachable)
}

// manyTargets makes n targets of one LUN each.
func manyTargets(n int) []state.Op {
	ops := make([]state.Op, 0, 2*n)
	for i := range n {
		name := fmt.Sprintf("v%d", i)
		ops = append(ops,
			state.Op{Verb: state.Create, Kind: state.KindVolume, Volume: &state.Volume{Name: name, URL: "null:1G"}},
			state.Op{Verb: state.Create, Kind: state.KindTarget, Target: &state.Target{
				Name: fmt.Sprintf("iqn.2025-01.io.example:%d", i), ACL: []state.ACLRule{{All: true}},
				LUNs: []state.LUN{{Number: 1, Volume: name}}, ControllerLUN0: true}})
	}
	return ops
}

func TestLoadTenThousand(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	const n = 10000
	ctx := t.Context()
	dir := t.TempDir()
	_, c := start(t, dir)
	must(c.Apply(ctx, manyTargets(n)...))(t)
	if got := must(c.Targets(ctx))(t); len(got) != n {
		t.Fatalf("%d targets", len(got))
	}
}

// BenchmarkTenThousand measures what the size of an installation costs: the
// start with ten thousand targets of one LUN, and their list through the API.
func BenchmarkTenThousand(b *testing.B) {
	dir, ctx := b.TempDir(), b.Context()
	sock := filepath.Join(b.TempDir(), "s")
	cfg := daemon.Config{StateDir: dir, Socket: sock}
	d, err := daemon.Start(ctx, cfg)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := d.Apply(ctx, manyTargets(10000)); err != nil {
		b.Fatal(err)
	}
	d.Close()
	b.Run("start", func(b *testing.B) {
		for b.Loop() {
			d, err := daemon.Start(ctx, cfg)
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			d.Close()
			b.StartTimer()
		}
	})
	d, err = daemon.Start(ctx, cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	c := client.New(sock)
	defer c.Close()
	b.Run("list", func(b *testing.B) {
		for b.Loop() {
			if l, err := c.Targets(ctx); err != nil || len(l) != 10000 {
				b.Fatal(len(l), err)
			}
		}
	})
	b.Run("create", func(b *testing.B) {
		i := 0
		for b.Loop() {
			i++
			if _, err := c.CreateTarget(ctx, state.Target{Name: fmt.Sprintf("iqn.2025-01.io.example:new%d", i)}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
