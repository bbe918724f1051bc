package sheepdog_test

import (
	"errors"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/sheepdog"
	"blockgate/backing/sheepdog/sheepfake"
)

// changes collects what a store tells.
func changes(t *testing.T, s *sheepdog.Store) <-chan backing.Change {
	c := make(chan backing.Change, 100)
	stop := s.Notify(func(x backing.Change) { c <- x })
	t.Cleanup(stop)
	return c
}

// until waits for a change after which the store is in a state.
func until(t *testing.T, s *sheepdog.Store, c <-chan backing.Change, want backing.State) backing.Health {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		if h := s.Health(); h.State == want {
			return h
		}
		select {
		case <-c:
		case <-timeout:
			t.Fatalf("health %+v, want %v", s.Health(), want)
		}
	}
}

// A sheep that goes away is noticed without anybody reading, and its return too.
func TestHealth(t *testing.T) {
	r := newRig(t, 1, sheepfake.Options{})
	s := r.create(t, mib)
	ok(t, s.WriteAt(t.Context(), fill(512, 1), 0))
	c := changes(t, s)
	if h := s.Health(); h != (backing.Health{}) {
		t.Errorf("at first %+v", h)
	}
	r.sheep[0].Stop()
	if h := until(t, s, c, backing.Stalled); h.Since.IsZero() || h.Reason == "" {
		t.Errorf("without a sheep %+v", h)
	}
	ok(t, r.sheep[0].Start())
	until(t, s, c, backing.Healthy)

	// A sheep that is there, but whose cluster is halted.
	halted := func(sheepfake.Request) sheepfake.Fault {
		return sheepfake.Fault{Kind: sheepfake.Answer, Result: 0x19} // SD_RES_HALT
	}
	r.SetFault(halted)
	done := make(chan error, 1)
	go func() { done <- s.ReadAt(t.Context(), make([]byte, 512), 0) }()
	until(t, s, c, backing.Stalled)
	r.SetFault(nil)
	ok(t, <-done)
	until(t, s, c, backing.Healthy)
}

// OpenOptions.Stall is how long calls wait where the location says nothing.
func TestStall(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, 1, sheepfake.Options{})
	l := r.location("disk", 0)
	l.Timeout = 0
	s := r.open(t, l, backing.OpenOptions{Create: true, CreateSize: mib, Stall: 20 * time.Millisecond})
	defer s.Close()
	ok(t, s.WriteAt(ctx, fill(512, 1), 0))
	r.sheep[0].Stop()
	if err := s.ReadAt(ctx, make([]byte, 512), 0); !errors.Is(err, backing.ErrStalled) {
		t.Errorf("read: %v", err)
	}
	s.SetStall(-1)
	c := changes(t, s)
	done := make(chan error, 1)
	go func() { done <- s.WriteAt(ctx, fill(512, 1), 0) }()
	until(t, s, c, backing.Stalled)
	select {
	case err := <-done:
		t.Errorf("a write that may wait for ever: %v", err)
	case <-time.After(100 * time.Millisecond): // five times the limit before
	}
	ok(t, r.sheep[0].Start())
	ok(t, <-done)
	expect(t, s, 0, fill(512, 1))
}

// Who has the lock is told; one that loses what it is to have alone has failed.
func TestLockedBy(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, 2, sheepfake.Options{Locks: true})
	s := r.open(t, r.location("disk", 0), exclusive)
	defer s.Close()
	c := changes(t, s)
	if by := s.Info().LockedBy; by != "this gateway" {
		t.Errorf("locked by %q", by)
	}
	l := r.location("disk", 1)
	l.Shared = true
	other := r.open(t, l, exclusive)
	defer other.Close()
	if by, want := other.Info().LockedBy, "sheep "+r.sheep[0].ID().String(); by != want {
		t.Errorf("locked by %q, want %q", by, want)
	}
	// Somebody gives our lock away (dog vdi lock unlock), and another takes it.
	r.Unlock("disk")
	ok(t, other.TakeOver(ctx))
	if by := other.Info().LockedBy; by != "this gateway" {
		t.Errorf("locked by %q", by)
	}
	// It shows when the connection is made anew.
	r.sheep[0].Stop()
	ok(t, r.sheep[0].Start())
	h := until(t, s, c, backing.Failed)
	if !errors.Is(s.WriteAt(ctx, fill(512, 2), 0), backing.ErrBusy) || h.Reason == "" {
		t.Errorf("health %+v", h)
	}
	if by, want := s.Info().LockedBy, "sheep "+r.sheep[1].ID().String(); by != want {
		t.Errorf("locked by %q, want %q", by, want)
	}
	ok(t, other.Close())
	ok(t, s.WriteAt(ctx, fill(512, 2), 0))
	until(t, s, c, backing.Healthy)
}
