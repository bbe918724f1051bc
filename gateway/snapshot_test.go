package gateway_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/backing"
	"blockgate/backing/ram"
	"blockgate/backing/sheepdog"
	"blockgate/backing/sheepdog/sheepfake"
	"blockgate/gateway"
	"blockgate/iscsi/initiator"
	"blockgate/scsi/sense"
)

// sheep is a cluster with one VDI and the URL of it.
func sheep(t *testing.T) (c *sheepfake.Cluster, url string) {
	t.Helper()
	c = sheepfake.New(sheepfake.Options{Copies: 1, BlockShift: 22})
	t.Cleanup(func() { c.Close() })
	sock := t.TempDir() + "/s"
	if _, err := c.Start("unix", sock); err != nil {
		t.Fatal(err)
	}
	s, err := sheepdog.Open(t.Context(), "unix:"+sock+":disk", backing.OpenOptions{Create: true, CreateSize: 64 << 20})
	ok(t, err)
	ok(t, s.Close())
	return c, "sheepdog:unix:" + sock + ":disk"
}

func block(b byte) []byte {
	p := make([]byte, 4096)
	for i := range p {
		p[i] = b
	}
	return p
}

func disk(t *testing.T, s *initiator.Session, lun uint64) *initiator.Disk {
	t.Helper()
	d, err := s.Unit(lun).OpenDisk(t.Context())
	ok(t, err)
	return d
}

// A snapshot is what it was, read-only for initiators; a clone begins with it and
// goes its own way.
func TestSnapshotAndClone(t *testing.T) {
	ctx := t.Context()
	_, url := sheep(t)
	g, addr := newGateway(t, gateway.Config{})
	export(t, g, gateway.VolumeConfig{Name: "v", URL: url}, gateway.TargetConfig{Name: name, ACL: gateway.Everyone()})
	s, err := login(t, addr, initiator.Config{})
	ok(t, err)
	d := disk(t, s, 0)
	ok(t, d.WriteAt(ctx, block(1), 0))

	snap, err := g.CreateSnapshot(ctx, "v", "monday")
	ok(t, err)
	if snap.Name != "monday" || snap.Size != 64<<20 || snap.Pause <= 0 || snap.Created.IsZero() {
		t.Errorf("snapshot %+v", snap)
	}
	ok(t, d.WriteAt(ctx, block(2), 0))
	if _, err := g.CreateSnapshot(ctx, "v", "monday"); !errors.Is(err, backing.ErrExist) {
		t.Errorf("one of the same name: %v", err)
	}
	list, err := g.Snapshots(ctx, "v")
	if err != nil || len(list) != 1 || list[0].Name != "monday" {
		t.Errorf("list %v, %v", list, err)
	}
	clone, err := g.Clone(ctx, "v", "monday", "copy")
	ok(t, err)
	for lun, u := range []string{1: clone, 2: url + ":monday"} {
		if u == "" {
			continue
		}
		v := strings.Repeat("x", lun)
		ok(t, g.AddVolume(ctx, gateway.VolumeConfig{Name: v, URL: u}))
		ok(t, g.MapLUN(name, uint64(lun), v))
	}
	got := make([]byte, 4096)
	for lun, want := range []byte{2, 1, 1} {
		d := disk(t, s, uint64(lun))
		ok(t, d.ReadAt(ctx, got, 0))
		if got[0] != want {
			t.Errorf("LUN %d has %d, want %d", lun, got[0], want)
		}
		err := d.WriteAt(ctx, block(9), 1<<20)
		switch {
		case lun != 2 && err != nil:
			t.Errorf("LUN %d: %v", lun, err)
		case lun == 2 && !initiator.IsSense(err, sense.DataProtect):
			t.Errorf("a write to a snapshot: %v, want DATA PROTECT", err)
		}
	}
	if i, _ := g.Volume("xx"); !i.ReadOnly {
		t.Error("the snapshot does not say that it is read-only")
	}
	if _, err := g.CreateSnapshot(ctx, "xx", "more"); !errors.Is(err, backing.ErrNotSupported) {
		t.Errorf("a snapshot of a snapshot: %v", err)
	}
	ok(t, g.DeleteSnapshot(ctx, "v", "monday"))
	if err := g.DeleteSnapshot(ctx, "v", "monday"); !errors.Is(err, backing.ErrNotExist) {
		t.Errorf("deleting it twice: %v", err)
	}
	ok(t, g.AddVolume(ctx, gateway.VolumeConfig{Name: "m", URL: "ram:1M"}))
	if _, err := g.Snapshots(ctx, "m"); !errors.Is(err, backing.ErrNotSupported) {
		t.Errorf("snapshots of memory: %v", err)
	}
}

// stuck is a store whose snapshots do not end.
type stuck struct {
	*ram.Store
	release, closed chan struct{}
}

func (s stuck) Close() error { close(s.closed); return s.Store.Close() }

func (s stuck) CreateSnapshot(context.Context, string) (backing.Snapshot, error) {
	<-s.release
	return backing.Snapshot{}, nil
}
func (s stuck) Snapshots(ctx context.Context) ([]backing.Snapshot, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
func (s stuck) DeleteSnapshot(context.Context, string) error          { return nil }
func (s stuck) Clone(context.Context, string, string) (string, error) { return "", nil }

// An engine that hangs holds up its caller for the time limit, and is not closed
// while it is inside.
func TestHungSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem, err := ram.New(1 << 20)
		ok(t, err)
		st := stuck{mem, make(chan struct{}), make(chan struct{})}
		g, err := gateway.New(gateway.Config{SnapshotTimeout: time.Minute, CloseTimeout: time.Second})
		ok(t, err)
		ok(t, g.AddVolume(t.Context(), gateway.VolumeConfig{Name: "v", Store: st}))
		begin := time.Now()
		var hang *gateway.HangError
		if _, err := g.CreateSnapshot(t.Context(), "v", "s"); !errors.As(err, &hang) || !strings.Contains(hang.Doing, `"s"`) {
			t.Errorf("snapshot: %v", err)
		}
		if d := time.Since(begin); d < time.Minute || d > 2*time.Minute {
			t.Errorf("it took %v", d)
		}
		if _, err := g.Snapshots(t.Context(), "v"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("list: %v", err)
		}
		var l *gateway.LingerError
		if err := g.RemoveVolume(t.Context(), "v"); !errors.As(err, &l) {
			t.Errorf("remove: %v", err)
		}
		select {
		case <-st.closed:
			t.Error("the store was closed with a call inside")
		default:
		}
		close(st.release)
		<-st.closed
		ok(t, g.Close())
	})
}
