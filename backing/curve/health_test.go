package curve_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/curve"
	"blockgate/backing/curve/nebdfake"
)

// until waits for a change after which the store is in a state.
func until(t *testing.T, s *curve.Store, c <-chan backing.Change, want backing.State) backing.Health {
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

func changes(t *testing.T, s *curve.Store) <-chan backing.Change {
	c := make(chan backing.Change, 100)
	t.Cleanup(s.Notify(func(x backing.Change) { c <- x }))
	return c
}

// A nebd-server that goes away is noticed without anybody reading, and its return
// too. Calls wait as long as OpenOptions.Stall says.
func TestHealth(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, nebdfake.Options{})
	l := r.volume(1<<20, 4096)
	l.Timeout = 0
	ok(t, os.Mkdir(filepath.Join(r.dir, "lock"), 0o755)) // as nebd's package does
	s := open(t, l, backing.OpenOptions{Exclusive: true, Stall: 30 * time.Millisecond})
	c := changes(t, s)
	if h, by := s.Health(), s.Info().LockedBy; h != (backing.Health{}) || by != "this gateway" {
		t.Errorf("at first %+v, locked by %q", h, by)
	}
	r.Stop()
	if h := until(t, s, c, backing.Stalled); h.Since.IsZero() || h.Reason == "" {
		t.Errorf("without a server %+v", h)
	}
	is(t, s.ReadAt(ctx, make([]byte, 4096), 0), backing.ErrStalled)
	s.SetStall(-1)
	done := make(chan error, 1)
	go func() { done <- s.WriteAt(ctx, fill(4096, 1), 0) }()
	select {
	case err := <-done:
		t.Errorf("a write that may wait for ever: %v", err)
	case <-time.After(150 * time.Millisecond): // five times the limit before
	}
	ok(t, r.Start(r.socket))
	ok(t, <-done)
	until(t, s, c, backing.Healthy)
	holds(t, s, 0, fill(4096, 1))
}

// A volume that is suspended for a write without an answer says so, also if calls
// may wait for ever: an answer that was lost does not come by waiting.
func TestHealthSuspended(t *testing.T) {
	r := newRig(t, nebdfake.Options{DropOnError: true})
	l := r.volume(1<<20, 4096)
	l.Timeout = 100 * time.Millisecond
	s := open(t, l, backing.OpenOptions{Exclusive: true, Stall: -1})
	c := changes(t, s)
	fn, _ := once("Write", nebdfake.Fault{Kind: nebdfake.Fail})
	r.SetFault(fn)
	err := s.WriteAt(t.Context(), fill(4096, 1), 0)
	if !errors.Is(err, curve.ErrUnanswered) || !errors.Is(err, backing.ErrStalled) {
		t.Errorf("write: %v", err)
	}
	if h := until(t, s, c, backing.Stalled); !strings.Contains(h.Reason, "suspended") {
		t.Errorf("health %+v", h)
	}
	is(t, s.ReadAt(t.Context(), make([]byte, 4096), 0), backing.ErrStalled)
	r.restart(t)
	until(t, s, c, backing.Healthy)
}
