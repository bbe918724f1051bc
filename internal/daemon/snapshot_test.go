package daemon_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"blockgate/backing"
	"blockgate/backing/ram"
	"blockgate/internal/api/client"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/daemon"
	"blockgate/internal/state"
)

// snappy is an engine of memory with snapshots by name, whose clones are there but
// cannot be opened if they are called bad.
type snappy struct {
	*ram.Store
	mu    sync.Mutex
	names []string
	deny  error
}

func (s *snappy) CreateSnapshot(_ context.Context, name string) (backing.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.names, name) {
		return backing.Snapshot{}, backing.ErrExist
	}
	s.names = append(s.names, name)
	return backing.Snapshot{Name: name}, nil
}

func (s *snappy) Snapshots(context.Context) ([]backing.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var l []backing.Snapshot
	for _, n := range s.names {
		l = append(l, backing.Snapshot{Name: n})
	}
	return l, s.deny
}

func (s *snappy) DeleteSnapshot(context.Context, string) error { return backing.ErrBusy }

func (s *snappy) Clone(_ context.Context, snapshot, name string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.names, snapshot) {
		return "", backing.ErrNotExist
	}
	return name, nil
}

func snappyDaemon(t *testing.T) (*client.Client, *snappy) {
	t.Helper()
	var (
		reg  backing.Registry
		last *snappy
	)
	reg.Register("snappy", func(_ context.Context, rest string, _ backing.OpenOptions) (backing.Store, error) {
		if rest == "bad" {
			return nil, errors.New("out of order")
		}
		mem, err := ram.New(1 << 20)
		s := &snappy{Store: mem}
		if last == nil {
			last = s
		}
		return s, err
	})
	reg.Register("ram", ram.Open)
	sock := filepath.Join(t.TempDir(), "s")
	d, err := daemon.Start(t.Context(), daemon.Config{Socket: sock, Engines: &reg})
	if err != nil {
		t.Fatal(err)
	}
	c := client.New(sock)
	t.Cleanup(func() {
		c.Close()
		d.Close()
	})
	must(c.CreateVolume(t.Context(), state.Volume{Name: "v", URL: "snappy:v", BlockSize: 4096, Unit: state.UnitParams{Vendor: "ACME", SCSIID: "me"}}))(t)
	return c, last
}

// A clone has the settings of its volume and an identity of its own. What fails
// half-way says what is left.
func TestClone(t *testing.T) {
	ctx := t.Context()
	c, _ := snappyDaemon(t)
	must(c.CreateSnapshot(ctx, "v", "s"))(t)
	from := must(c.Volume(ctx, "v"))(t)
	got := must(c.CloneVolume(ctx, "v", v1.Clone{Name: "w", Snapshot: "s"}))(t)
	if got.URL != "snappy:w" || got.BlockSize != 4096 || got.Unit.Vendor != "ACME" || got.Snapshot != nil || got.Status.State != v1.Online ||
		got.Unit.NAA == from.Unit.NAA || got.Unit.Serial == from.Unit.Serial || got.Unit.SCSIID != "" {
		t.Errorf("clone %+v", got)
	}
	got = must(c.CloneVolume(ctx, "v", v1.Clone{Name: "x", Snapshot: "new", MakeSnapshot: true, StoreName: "y"}))(t)
	if got.URL != "snappy:y" || got.Snapshot == nil || got.Snapshot.Name != "new" {
		t.Errorf("clone %+v", got)
	}

	// The engine makes it, but it does not open: nothing is lost silently.
	_, err := c.CloneVolume(ctx, "v", v1.Clone{Name: "z", Snapshot: "newer", MakeSnapshot: true, StoreName: "bad"})
	wantCode(t, err, state.CodeOpenFailed)
	for _, want := range []string{"out of order", "snappy:bad", `"newer"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %s", err, want)
		}
	}
	if e := state.ErrorOf(err); !strings.Contains(e.Hint, "blockgate volume create z 'snappy:bad'") {
		t.Errorf("hint %q", e.Hint)
	}
	_, err = c.Volume(ctx, "z")
	wantCode(t, err, state.CodeVolumeNotFound)

	// Refused before anything is made.
	_, err = c.CloneVolume(ctx, "v", v1.Clone{Name: "w", Snapshot: "unmade", MakeSnapshot: true})
	wantCode(t, err, state.CodeVolumeExists)
	_, err = c.CloneVolume(ctx, "v", v1.Clone{Name: "q"})
	wantCode(t, err, state.CodeInvalidRequest)
	for _, s := range must(c.Snapshots(ctx, "v"))(t) {
		if s.Name == "unmade" {
			t.Error("a snapshot was made for a clone that was refused")
		}
	}
}

// The list of all leaves out what has no snapshots, and names what could not be asked.
func TestAllSnapshots(t *testing.T) {
	ctx := t.Context()
	c, engine := snappyDaemon(t)
	must(c.CreateVolume(ctx, state.Volume{Name: "m", URL: "ram:1M"}))(t)
	must(c.CreateVolume(ctx, state.Volume{Name: "u", URL: "snappy:u"}))(t)
	for _, v := range []string{"v", "u"} {
		must(c.CreateSnapshot(ctx, v, "b"))(t)
		must(c.CreateSnapshot(ctx, v, "a"))(t)
	}
	names := func() (l []string) {
		for _, s := range must(c.AllSnapshots(ctx))(t).Snapshots {
			l = append(l, s.Volume+"@"+s.Name)
		}
		return l
	}
	if got := names(); !slices.Equal(got, []string{"u@b", "u@a", "v@b", "v@a"}) {
		t.Errorf("snapshots %v", got)
	}
	engine.mu.Lock()
	engine.deny = errors.New("not now")
	engine.mu.Unlock()
	all := must(c.AllSnapshots(ctx))(t)
	if len(all.Snapshots) != 2 || len(all.Warnings) != 1 || !strings.Contains(all.Warnings[0], `volume "v"`) {
		t.Errorf("with one that does not answer: %+v", all)
	}
	_, err := c.DeleteSnapshot(ctx, "u", "a")
	wantCode(t, err, state.CodeSnapshotInUse)
	_, err = c.CreateSnapshot(ctx, "m", "s")
	wantCode(t, err, state.CodeNoSnapshots)
}
