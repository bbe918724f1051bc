package gateway_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/ram"
	"blockgate/gateway"
	"blockgate/iscsi/initiator"
	"blockgate/scsi"
	"blockgate/scsi/sense"
)

// engine is a store that another machine serves: it says how it is, notices that
// it was resized there, and has a limit of waiting.
type engine struct {
	*ram.Store
	mu     sync.Mutex
	health backing.Health
	fn     func(backing.Change)
	limit  time.Duration
}

func (e *engine) Health() backing.Health   { e.mu.Lock(); defer e.mu.Unlock(); return e.health }
func (e *engine) SetStall(d time.Duration) { e.mu.Lock(); defer e.mu.Unlock(); e.limit = d }
func (e *engine) Notify(fn func(backing.Change)) func() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.fn = fn
	return func() { e.mu.Lock(); defer e.mu.Unlock(); e.fn = nil }
}

// tell changes something under the mutex and notifies of it, holding it as careless
// engines do.
func (e *engine) tell(c backing.Change, change func()) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	change()
	if e.fn == nil {
		return false
	}
	e.fn(c)
	return true
}

func (e *engine) waitLimit() time.Duration { e.mu.Lock(); defer e.mu.Unlock(); return e.limit }

// What a store notices by itself reaches the initiators, and what its volume's
// policy is reaches the store, with nobody logged out.
func TestStoreNotices(t *testing.T) {
	ctx := t.Context()
	e := &engine{}
	var reg backing.Registry
	reg.Register("far", func(_ context.Context, _ string, o backing.OpenOptions) (s backing.Store, err error) {
		e.limit = o.Stall
		e.Store, err = ram.New(1 << 20)
		return e, err
	})
	g, addr := newGateway(t, gateway.Config{Engines: &reg})
	cfg := gateway.VolumeConfig{Name: "v", URL: "far:x"}
	cfg.Unit.Stall = scsi.StallPolicy{Action: scsi.StallFail, After: 20 * time.Second}
	export(t, g, cfg, gateway.TargetConfig{Name: name, ACL: gateway.Everyone()})
	if e.waitLimit() != 20*time.Second {
		t.Errorf("opened with a limit of %v", e.waitLimit())
	}
	s, err := login(t, addr, initiator.Config{})
	ok(t, err)
	d := disk(t, s, 0)
	if i, _ := g.Volume("v"); i.Health.State != scsi.HealthOK {
		t.Errorf("health %+v", i.Health)
	}
	eventually := func(what string, is func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !is(); {
			if time.Now().After(end) {
				t.Fatalf("%s: never", what)
			}
			_, _ = g.Volume("v") // a lock to wait for
		}
	}

	// Its health, at once: after T of it, commands fail without waiting.
	long := time.Now().Add(-time.Minute)
	e.tell(backing.HealthChanged, func() {
		e.health = backing.Health{State: backing.Stalled, Since: long, Reason: "far away"}
	})
	var st *initiator.StatusError
	eventually("the stall", func() bool {
		err = d.ReadAt(ctx, make([]byte, 512), 0)
		return errors.As(err, &st)
	})
	if st.Sense.Key != sense.AbortedCommand || st.Sense.ASC != 8 || st.Sense.ASCQ != 1 {
		t.Errorf("a read of a stalled store: %v", err)
	}
	if i, _ := g.Volume("v"); i.Health.State != scsi.HealthStalled || i.Health.Reason != "far away" || !i.Health.Since.Equal(long) {
		t.Errorf("health %+v", i.Health)
	}
	e.tell(backing.HealthChanged, func() { e.health = backing.Health{} })
	eventually("the end of the stall", func() bool { return d.ReadAt(ctx, make([]byte, 512), 0) == nil })

	// Its size.
	e.tell(backing.SizeChanged, func() { ok(t, e.Store.Resize(ctx, 2<<20)) })
	eventually("the new size", func() bool { return disk(t, s, 0).Size() == 2<<20 })

	// The policy, while the session goes on.
	cfg.Unit.Stall = scsi.StallPolicy{Action: scsi.StallBusy, After: time.Second}
	ok(t, g.UpdateVolume(ctx, cfg))
	if e.waitLimit() >= 0 {
		t.Errorf("the limit is %v, want none", e.waitLimit())
	}
	ok(t, d.ReadAt(ctx, make([]byte, 512), 0))
	cfg.Unit.Stall.After = time.Nanosecond
	if err := g.UpdateVolume(ctx, cfg); err == nil {
		t.Error("a policy of a nanosecond is taken")
	}

	ok(t, g.UnmapLUN(name, 0))
	ok(t, g.RemoveVolume(ctx, "v"))
	if e.tell(backing.HealthChanged, func() {}) {
		t.Error("the store still has somebody to notify")
	}
}
