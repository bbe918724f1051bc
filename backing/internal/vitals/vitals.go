// Package vitals keeps how a store fares, for stores that are backing.Healther and
// backing.Notifier.
package vitals

import (
	"sync"
	"sync/atomic"
	"time"

	"blockgate/backing"
)

// Monitor keeps a store's health and tells of changes. The zero Monitor is
// healthy. It is safe for concurrent use.
type Monitor struct {
	ill atomic.Bool // not healthy; for who asks at every call

	mu     sync.Mutex
	health backing.Health

	telling sync.Mutex // held while fns are called
	fns     map[int]func(backing.Change)
	next    int
}

// Health is backing.Healther's.
func (m *Monitor) Health() backing.Health {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.health
}

// Ill reports whether the store is other than healthy. It costs next to nothing.
func (m *Monitor) Ill() bool { return m.ill.Load() }

// Set takes over a state and its reason, and tells if they differ from those
// before. Failed stays until Recover.
func (m *Monitor) Set(s backing.State, reason string) {
	m.mu.Lock()
	old := m.health
	if old.State == backing.Failed && s != backing.Failed || old.State == s && (s == backing.Healthy || old.Reason == reason) {
		m.mu.Unlock()
		return
	}
	m.put(s, reason)
	m.mu.Unlock()
	m.Tell(backing.HealthChanged)
}

// Recover makes a store healthy that was stalled or failed.
func (m *Monitor) Recover() {
	m.mu.Lock()
	if m.health.State == backing.Healthy {
		m.mu.Unlock()
		return
	}
	m.put(backing.Healthy, "")
	m.mu.Unlock()
	m.Tell(backing.HealthChanged)
}

func (m *Monitor) put(s backing.State, reason string) {
	if m.health.State != s {
		m.health.Since = time.Now()
	}
	m.health.State, m.health.Reason = s, reason
	m.ill.Store(s != backing.Healthy)
}

// Notify is backing.Notifier's.
func (m *Monitor) Notify(fn func(backing.Change)) (stop func()) {
	m.telling.Lock()
	defer m.telling.Unlock()
	if m.fns == nil {
		m.fns = make(map[int]func(backing.Change))
	}
	m.next++
	id := m.next
	m.fns[id] = fn
	return func() {
		m.telling.Lock()
		defer m.telling.Unlock()
		delete(m.fns, id)
	}
}

// Tell calls those who want to know of changes.
func (m *Monitor) Tell(c backing.Change) {
	m.telling.Lock()
	defer m.telling.Unlock()
	for _, fn := range m.fns {
		fn(c)
	}
}

// Forever stands for a limit of time that there is none.
const Forever = 1<<63 - 1

// Limit is how long a store's calls wait: what its location says, or else as
// backing.OpenOptions.Stall has it, of which 0 is def.
func Limit(location, stall, def time.Duration) time.Duration {
	switch {
	case location > 0:
		return location
	case stall > 0:
		return stall
	case stall < 0:
		return Forever
	}
	return def
}

// Deadline is the time after d, which may be Forever.
func Deadline(d time.Duration) time.Time {
	return time.Now().Add(min(d, 100*365*24*time.Hour))
}
