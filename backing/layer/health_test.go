package layer_test

import (
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/ram"
)

// remote is a store over something that may go away.
type remote struct {
	backing.Store
	health backing.Health
	fn     func(backing.Change)
	limit  time.Duration
}

func (r *remote) Health() backing.Health       { return r.health }
func (r *remote) SetStall(limit time.Duration) { r.limit = limit }
func (r *remote) Notify(fn func(backing.Change)) func() {
	r.fn = fn
	return func() { r.fn = nil }
}

// What a store knows of itself is known through every layer.
func TestHealthPassesThrough(t *testing.T) {
	mem, err := ram.New(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	r := &remote{Store: mem}
	top := wrap(t, r, []spec{
		{"delay", map[string]string{"read": "1ms"}}, {"readonly", nil}, {"fault", map[string]string{"rule": "op=flush count=1 error=EIO"}},
	})
	defer top.Close()
	if h := backing.HealthOf(top); h.State != backing.Healthy {
		t.Errorf("a healthy store is %v: %s", h.State, h.Reason)
	}
	var got []backing.Change
	stop := backing.NotifyOf(top, func(c backing.Change) { got = append(got, c) })
	r.health = backing.Health{State: backing.Stalled, Reason: "no answer"}
	r.fn(backing.HealthChanged | backing.SizeChanged)
	if len(got) != 1 || got[0] != backing.HealthChanged|backing.SizeChanged {
		t.Errorf("told of %v", got)
	}
	if h := backing.HealthOf(top); h != r.health {
		t.Errorf("a stalled store is %v", h)
	}
	if stop(); r.fn != nil {
		t.Error("still notified after stop")
	}
	backing.SetStall(top, time.Minute)
	if r.limit != time.Minute {
		t.Errorf("the store's limit is %v", r.limit)
	}
	if err := top.Flush(t.Context()); err == nil {
		t.Fatal("no error injected")
	}
	if h := backing.HealthOf(top); h.State != backing.Failed || h.Reason == "" || h.Since.IsZero() {
		t.Errorf("after a flush that failed the store is %+v", h)
	}
}

// A store that depends on nothing is healthy, with layers and without.
func TestHealthOfPlainStore(t *testing.T) {
	mem, err := ram.New(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	top := wrap(t, mem, []spec{{"readonly", nil}})
	defer top.Close()
	for _, s := range []backing.Store{mem, top} {
		if h := backing.HealthOf(s); h != (backing.Health{}) {
			t.Errorf("%T: %+v", s, h)
		}
		backing.NotifyOf(s, func(backing.Change) { t.Error("told of a change") })()
		backing.SetStall(s, time.Second)
	}
}
