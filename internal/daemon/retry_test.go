package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/backing"
	"blockgate/backing/ram"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/daemon"
	"blockgate/internal/state"
)

// engine is one that is up, or says why not.
type engine struct {
	mu    sync.Mutex
	why   error
	opens atomic.Int32
}

func (e *engine) set(why error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.why = why
}

func (e *engine) registry() *backing.Registry {
	var reg backing.Registry
	reg.Register("flaky", func(context.Context, string, backing.OpenOptions) (backing.Store, error) {
		e.opens.Add(1)
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.why != nil {
			return nil, e.why
		}
		return ram.New(1 << 20)
	})
	return &reg
}

type journal struct {
	mu sync.Mutex
	bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.Buffer.Write(p)
}

func (j *journal) count(s string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.String(), s)
}

// A volume whose engine is down at the start is tried again, less and less often,
// and comes back by itself. The log says each change once.
func TestRetryVolumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		var e engine
		var log journal
		dir := t.TempDir()
		begin := func() *daemon.Daemon {
			d, err := daemon.Start(ctx, daemon.Config{StateDir: dir, Engines: e.registry(), Logger: slog.New(slog.NewTextHandler(&log, nil))})
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		d := begin()
		target := state.Target{Name: iqn, ACL: []state.ACLRule{{All: true}}, LUNs: []state.LUN{{Number: 0, Volume: "v"}}}
		if _, err := d.Apply(ctx, []state.Op{
			{Verb: state.Create, Kind: state.KindVolume, Volume: &state.Volume{Name: "v", URL: "flaky:x"}},
			{Verb: state.Create, Kind: state.KindTarget, Target: &target},
		}); err != nil {
			t.Fatal(err)
		}
		d.Close()

		e.set(errors.New("nobody there"))
		e.opens.Store(0)
		d = begin()
		defer func() { d.Close() }()
		synctest.Wait()
		v, err := d.Volume(ctx, "v")
		if err != nil || v.Status.State != v1.Failed || v.Status.Error != "nobody there" || v.Status.NextAttempt == nil || len(v.Status.UsedBy) != 1 {
			t.Errorf("volume %+v, %v", v.Status, err)
		}
		if s := d.System(ctx); s.Failed != 1 {
			t.Errorf("%d failed", s.Failed)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		// 1+2+4+8+16+32 s, then every minute.
		if n := e.opens.Load(); n < 14 || n > 17 {
			t.Errorf("opened %d times in 10 minutes", n)
		}
		v, _ = d.Volume(ctx, "v")
		if v.Status.Attempts < 13 || time.Until(*v.Status.NextAttempt) > time.Minute {
			t.Errorf("status %+v", v.Status)
		}
		if n := log.count("nobody there"); n != 1 {
			t.Errorf("the reason is in the log %d times", n)
		}
		revision := v.Revision
		e.set(errors.New("still starting"))
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := log.count("still starting"); n != 1 {
			t.Errorf("the new reason is in the log %d times", n)
		}
		if _, err := d.RetryVolume(ctx, "v"); code(err) != state.CodeOpenFailed {
			t.Errorf("retry by hand: %v", err)
		}
		e.set(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		v, _ = d.Volume(ctx, "v")
		if v.Status.State != v1.Online || v.Status.Error != "" || v.Status.NextAttempt != nil || v.Revision != revision {
			t.Errorf("once the engine is up: %+v, revision %d, was %d", v.Status, v.Revision, revision)
		}
		if n := log.count("runs again"); n != 1 {
			t.Errorf("that it runs again is in the log %d times", n)
		}
		if s := d.System(ctx); s.Failed != 0 {
			t.Errorf("%d failed", s.Failed)
		}
		n := e.opens.Load()
		time.Sleep(time.Hour)
		if e.opens.Load() != n {
			t.Error("a volume that runs is opened again")
		}
	})
}

// What failed can be changed, deleted and made anew while it is tried again.
func TestChangeFailedVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		var e engine
		dir := t.TempDir()
		begin := func() *daemon.Daemon {
			d, err := daemon.Start(ctx, daemon.Config{StateDir: dir, Engines: e.registry()})
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		d := begin()
		for _, name := range []string{"a", "b"} {
			if _, err := d.Apply(ctx, []state.Op{{Verb: state.Create, Kind: state.KindVolume, Volume: &state.Volume{Name: name, URL: "flaky:x"}}}); err != nil {
				t.Fatal(err)
			}
		}
		target := state.Target{Name: iqn, LUNs: []state.LUN{{Number: 0, Volume: "a"}, {Number: 1, Volume: "b"}}}
		if _, err := d.Apply(ctx, []state.Op{{Verb: state.Create, Kind: state.KindTarget, Target: &target}}); err != nil {
			t.Fatal(err)
		}
		d.Close()
		e.set(errors.New("nobody there"))
		d = begin()
		defer func() { d.Close() }()

		// A change that does not open it either is refused and leaves it failed.
		a, _ := d.Volume(ctx, "a")
		change := a.Volume
		change.Unit.Vendor = "OTHER"
		if _, err := d.Apply(ctx, []state.Op{{Verb: state.Update, Kind: state.KindVolume, Volume: &change}}); code(err) != state.CodeOpenFailed {
			t.Errorf("change of a failed volume: %v", err)
		}
		if _, err := d.Apply(ctx, []state.Op{{Verb: state.Delete, Kind: state.KindVolume, Name: "b", Force: true}}); err != nil {
			t.Error(err)
		}
		e.set(nil)
		if _, err := d.Apply(ctx, []state.Op{{Verb: state.Update, Kind: state.KindVolume, Volume: &change}}); err != nil {
			t.Error(err)
		}
		if _, err := d.Apply(ctx, []state.Op{{Verb: state.Create, Kind: state.KindVolume, Volume: &state.Volume{Name: "b", URL: "flaky:x"}}}); err != nil {
			t.Error(err)
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		for _, v := range d.Volumes(ctx) {
			if v.Status.State != v1.Online {
				t.Errorf("%s: %+v", v.Name, v.Status)
			}
		}
		if got, _ := d.Target(ctx, iqn); len(got.LUNs) != 1 || len(got.Status.FailedLUNs) != 0 {
			t.Errorf("target %+v", got)
		}
	})
}

// Engines that hang do not hold up the start beyond a limit, however many there are,
// and what they have not opened by then is opened later.
func TestStartWithHungEngines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		var hang atomic.Bool
		var reg backing.Registry
		reg.Register("slow", func(ctx context.Context, _ string, _ backing.OpenOptions) (backing.Store, error) {
			if hang.Load() {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return ram.New(1 << 20)
		})
		dir := t.TempDir()
		d, err := daemon.Start(ctx, daemon.Config{StateDir: dir, Engines: &reg})
		if err != nil {
			t.Fatal(err)
		}
		const n = 500
		var ops []state.Op
		for i := range n {
			ops = append(ops, state.Op{Verb: state.Create, Kind: state.KindVolume, Volume: &state.Volume{Name: fmt.Sprint("v", i), URL: "slow:x"}})
		}
		if _, err := d.Apply(ctx, ops); err != nil {
			t.Fatal(err)
		}
		d.Close()
		hang.Store(true)
		begin := time.Now()
		if d, err = daemon.Start(ctx, daemon.Config{StateDir: dir, Engines: &reg}); err != nil {
			t.Fatal(err)
		}
		defer func() { d.Close() }()
		if took := time.Since(begin); took > 31*time.Second {
			t.Errorf("the start took %v", took)
		}
		if s := d.System(ctx); s.Failed != n {
			t.Errorf("%d failed", s.Failed)
		}
		hang.Store(false)
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if s := d.System(ctx); s.Failed != 0 {
			t.Errorf("%d still failed", s.Failed)
		}
	})
}
