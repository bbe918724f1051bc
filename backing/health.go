package backing

import (
	"errors"
	"time"
)

// ErrStalled: a call gave up waiting for an engine that does not answer (see
// OpenOptions.Stall). Whether a write was done is not known.
var ErrStalled = errors.New("the engine does not answer")

// State is how a store fares.
type State uint8

// States of a store.
const (
	Healthy State = iota
	// Stalled: its engine does not answer now; calls wait for it, within the
	// store's limit (OpenOptions.Stall).
	Stalled
	// Failed: calls fail until the store is opened again, as after a Flush that
	// failed or when another client has fenced this one off.
	Failed
)

// String is the state in a word: "healthy", "stalled" or "failed".
func (s State) String() string {
	switch s {
	case Stalled:
		return "stalled"
	case Failed:
		return "failed"
	}
	return "healthy"
}

// Health is how a store fares, since when, and why.
type Health struct {
	State  State
	Since  time.Time // of the last change; zero while it has always been healthy
	Reason string    // names what is wrong and where; empty if healthy
}

// Healther is implemented by stores that depend on something that may go away: an
// engine over the network, a process. Health does not block.
type Healther interface{ Health() Health }

// Change is a set of things of a store that changed from outside.
type Change uint8

// What may change.
const (
	SizeChanged   Change = 1 << iota // Size differs; Refresh takes it over where there is one
	HealthChanged                    // Health differs
)

// Notifier is implemented by stores that notice changes by themselves. fn is
// called after each change, from any goroutine and one call at a time; it must not
// block and must not call the store's Close. stop ends that, and returns when fn
// is not running any more; it must not be called from fn.
type Notifier interface {
	Notify(fn func(Change)) (stop func())
}

// Staller is implemented by stores whose limit of waiting (OpenOptions.Stall) can
// be changed while they are open. It holds for calls that begin later, and may for
// those that wait.
type Staller interface{ SetStall(limit time.Duration) }

// HealthOf is the store's Health; a store that tells nothing is Healthy.
func HealthOf(s Store) Health {
	if h, ok := s.(Healther); ok {
		return h.Health()
	}
	return Health{}
}

// NotifyOf is the store's Notify. A store that notices nothing never calls fn.
func NotifyOf(s Store, fn func(Change)) (stop func()) {
	if n, ok := s.(Notifier); ok {
		return n.Notify(fn)
	}
	return func() {}
}

// SetStall is the store's SetStall; a store that has none keeps its limit.
func SetStall(s Store, limit time.Duration) {
	if t, ok := s.(Staller); ok {
		t.SetStall(limit)
	}
}
