package gateway_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/layer/base"
	"blockgate/backing/layer/fault"
	"blockgate/backing/ram"
	"blockgate/gateway"
	"blockgate/iscsi/initiator"
	"blockgate/scsi"
	"blockgate/scsi/sense"
)

// ailing is an engine whose first store has what faults say, and that opens one at a
// time.
type ailing struct {
	rule  fault.Rule
	mu    sync.Mutex
	first *fault.Store
	open  bool
}

type locked struct {
	backing.Store
	a *ailing
}

func (l locked) Close() error {
	l.a.mu.Lock()
	defer l.a.mu.Unlock()
	l.a.open = false
	return l.Store.Close()
}

func (a *ailing) registry() *backing.Registry {
	var reg backing.Registry
	reg.Register("ailing", func(context.Context, string, backing.OpenOptions) (backing.Store, error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.open {
			return nil, backing.ErrBusy
		}
		a.open = true
		mem, err := ram.New(1 << 20)
		if err != nil {
			return nil, err
		}
		if a.first == nil {
			a.first = fault.New(mem, 1, a.rule)
			return locked{a.first, a}, nil
		}
		return locked{mem, a}, nil
	})
	return &reg
}

// A store that has failed for good is opened anew under the initiators.
func TestReopenFailedVolume(t *testing.T) {
	ctx := t.Context()
	a := &ailing{rule: fault.Rule{Op: base.Flush, Action: fault.Fail}}
	g, addr := newGateway(t, gateway.Config{Engines: a.registry()})
	export(t, g, gateway.VolumeConfig{Name: "v", URL: "ailing:x"}, gateway.TargetConfig{Name: name, ACL: gateway.Everyone()})
	s, err := login(t, addr, initiator.Config{})
	ok(t, err)
	d := disk(t, s, 0)
	if err := d.Flush(ctx); err == nil {
		t.Fatal("flushed")
	}
	if i, _ := g.Volume("v"); i.Health.State != scsi.HealthFailed {
		t.Fatalf("health %+v", i.Health)
	}
	if err := d.WriteAt(ctx, block(1), 0); err == nil {
		t.Error("a failed store takes writes")
	}
	ok(t, g.ReopenVolume(ctx, "v"))
	ok(t, d.WriteAt(ctx, block(1), 0))
	ok(t, d.Flush(ctx))
	if i, _ := g.Volume("v"); i.Health.State != scsi.HealthOK || i.Pending {
		t.Errorf("%+v", i)
	}
	if err := g.ReopenVolume(ctx, "w"); !errors.Is(err, gateway.ErrNotFound) {
		t.Errorf("of none: %v", err)
	}
}

// A store that hangs while it is to be opened in another way leaves a unit that is
// not ready, and can be opened when it has let go.
func TestChangeOfHungVolume(t *testing.T) {
	ctx := t.Context()
	a := &ailing{rule: fault.Rule{Op: base.Read, Off: 1 << 19, Action: fault.Stick}}
	g, addr := newGateway(t, gateway.Config{Engines: a.registry(), CloseTimeout: 200 * time.Millisecond})
	cfg := gateway.VolumeConfig{Name: "v", URL: "ailing:x"}
	export(t, g, cfg, gateway.TargetConfig{Name: name, ACL: gateway.Everyone()})
	s, err := login(t, addr, initiator.Config{})
	ok(t, err)
	d := disk(t, s, 0)
	read := make(chan struct{})
	go func() {
		defer close(read)
		_ = d.ReadAt(ctx, make([]byte, 512), 1<<19) // it ends with its unit, one way or the other
	}()
	ok(t, a.first.WaitHeld(ctx, 1))
	cfg.Sync = true
	var linger *gateway.LingerError
	if err := g.UpdateVolume(ctx, cfg); !errors.As(err, &linger) {
		t.Errorf("update: %v", err)
	}
	if i, _ := g.Volume("v"); !i.Pending {
		t.Error("the volume is not pending")
	}
	var e *initiator.StatusError
	if err := s.Unit(0).TestUnitReady(ctx); !errors.As(err, &e) || e.Sense.Key != sense.NotReady || e.Sense.ASC != 4 || e.Sense.ASCQ != 1 {
		t.Errorf("meanwhile: %v", err)
	}
	if err := g.OpenPending(ctx, "v"); !errors.Is(err, backing.ErrBusy) {
		t.Errorf("while the old one hangs: %v", err)
	}
	a.first.Clear()
	for end := time.Now().Add(10 * time.Second); g.OpenPending(ctx, "v") != nil; {
		if time.Now().After(end) {
			t.Fatal("it cannot be opened any more")
		}
		ok(t, s.Ping(ctx, nil))
	}
	ok(t, s.Unit(0).TestUnitReady(ctx))
	ok(t, disk(t, s, 0).ReadAt(ctx, make([]byte, 512), 1<<19))
	ok(t, s.Logout(ctx))
	<-read
}
