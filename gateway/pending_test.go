package gateway_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"blockgate/backing"
	"blockgate/backing/ram"
	"blockgate/gateway"
	"blockgate/iscsi/initiator"
	"blockgate/scsi/sense"
)

// flaky is an engine that is up or not.
func flaky(up *atomic.Bool) *backing.Registry {
	var reg backing.Registry
	reg.Register("flaky", func(context.Context, string, backing.OpenOptions) (backing.Store, error) {
		if !up.Load() {
			return nil, errors.New("nobody there")
		}
		return ram.New(1 << 20)
	})
	return &reg
}

// A volume whose engine is down is a LUN that is not ready, and the same unit once
// the engine is up: initiators need not log in anew.
func TestPendingVolume(t *testing.T) {
	ctx := t.Context()
	var up atomic.Bool
	g, addr := newGateway(t, gateway.Config{Engines: flaky(&up)})
	cfg := gateway.VolumeConfig{Name: "v", URL: "flaky:x"}
	cfg.Unit.NAA, cfg.Unit.Serial = [16]byte{0x60, 1, 2, 3}, "serial"
	if err := g.AddVolume(ctx, cfg); err == nil {
		t.Fatal("it opened")
	}
	ok(t, g.AddPending(cfg))
	if err := g.AddPending(cfg); !errors.Is(err, gateway.ErrExists) {
		t.Errorf("twice: %v", err)
	}
	ok(t, g.AddTarget(gateway.TargetConfig{Name: name, ACL: gateway.Everyone()}))
	ok(t, g.MapLUN(name, 0, "v"))
	s, err := login(t, addr, initiator.Config{})
	ok(t, err)
	unit := s.Unit(0)
	var e *initiator.StatusError
	if err := unit.TestUnitReady(ctx); !errors.As(err, &e) || e.Sense.Key != sense.NotReady || e.Sense.ASC != 4 || e.Sense.ASCQ != 1 {
		t.Errorf("while the engine is down: %v", err)
	}
	if serial, err := unit.Serial(ctx); err != nil || serial != "serial" {
		t.Errorf("serial number %q", serial)
	}
	if err := g.OpenPending(ctx, "v"); err == nil {
		t.Error("opened without its engine")
	}
	if _, err := g.RefreshVolume(ctx, "v"); !errors.Is(err, gateway.ErrNotFound) {
		t.Errorf("refresh: %v", err)
	}
	if i, err := g.Volume("v"); err != nil || !i.Pending || i.Size != 0 {
		t.Errorf("volume %+v, %v", i, err)
	}
	up.Store(true)
	ok(t, g.OpenPending(ctx, "v"))
	ok(t, g.OpenPending(ctx, "v")) // it is not pending any more
	if err := unit.TestUnitReady(ctx); err != nil {
		t.Errorf("once the engine is up: %v", err)
	}
	if i, _ := g.Volume("v"); i.Pending || i.Size != 1<<20 {
		t.Errorf("volume %+v", i)
	}
	_, err = unit.OpenDisk(ctx)
	ok(t, err)
}

// A pending volume that is removed while its store is being opened leaves nothing
// open, and one that is changed is opened as it is then.
func TestPendingVolumeChanges(t *testing.T) {
	ctx := t.Context()
	inside, release, closed := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var reg backing.Registry
	reg.Register("slow", func(context.Context, string, backing.OpenOptions) (backing.Store, error) {
		inside <- struct{}{}
		<-release
		mem, err := ram.New(1 << 20)
		return closeWatch{mem, closed}, err
	})
	reg.Register("ram", ram.Open)
	g, _ := newGateway(t, gateway.Config{Engines: &reg})
	ok(t, g.AddPending(gateway.VolumeConfig{Name: "v", URL: "slow:x"}))
	opened := make(chan error, 1)
	go func() { opened <- g.OpenPending(ctx, "v") }()
	<-inside
	ok(t, g.RemoveVolume(ctx, "v"))
	if err := <-opened; !errors.Is(err, gateway.ErrNotFound) {
		t.Errorf("opening what was removed: %v", err)
	}
	close(release)
	<-closed

	ok(t, g.AddPending(gateway.VolumeConfig{Name: "w", URL: "none:x"}))
	ok(t, g.UpdateVolume(ctx, gateway.VolumeConfig{Name: "w", URL: "ram:1M"}))
	if i, err := g.Volume("w"); err != nil || i.Pending || i.URL != "ram:1M" {
		t.Errorf("volume %+v, %v", i, err)
	}
}
