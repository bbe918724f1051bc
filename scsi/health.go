package scsi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"blockgate/backing"
)

// HealthState is how a unit's store fares.
type HealthState uint8

// The states, the worst last.
const (
	HealthOK      HealthState = iota
	HealthFailing             // the latest commands that needed the store all failed
	HealthStalled             // commands wait and none comes back, or the engine says that it does not answer
	HealthFailed              // until the store is opened again, all that write fail at least
)

// String is the state in a word.
func (s HealthState) String() string {
	switch s {
	case HealthFailing:
		return "failing"
	case HealthStalled:
		return "stalled"
	case HealthFailed:
		return "failed"
	}
	return "ok"
}

// Health is how a unit's store fares, from what the unit sees of it and what it
// says of itself (backing.Healther).
type Health struct {
	State  HealthState
	Since  time.Time // zero if HealthOK
	Reason string    // empty if HealthOK
	// Errors is how many commands in a row the store has failed.
	Errors int
	// Inside is how many commands the store has, or soon will.
	Inside int
}

// failingErrors is how many errors in a row make a store failing: a bad block is
// asked for again by itself, and says nothing of the others.
const failingErrors = 3

// unitHealth is what the unit has seen. Under its mutex.
type unitHealth struct {
	stalled   bool
	stalledAt time.Time
	errors    int // in a row
	errorsAt  time.Time
	lastError string
	failed    bool // sticky
	failedAt  time.Time
	engine    backing.Health // what the store said when it was last asked
	told      HealthState    // what the log says
}

// Health tells how the store fares. It does not wait for the store.
func (u *Unit) Health() Health {
	engine := u.engineHealth()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.health.engine = engine
	return u.healthLocked()
}

// engineHealth asks the store. Not under the unit's mutex, which the store's
// notification may be waiting for.
func (u *Unit) engineHealth() backing.Health {
	if u.store == nil {
		return backing.Health{}
	}
	return backing.HealthOf(u.store)
}

func (u *Unit) healthLocked() Health {
	w := &u.health
	engine := &w.engine
	h := Health{Errors: w.errors, Inside: u.stall.inside}
	switch {
	case w.failed:
		h.State, h.Since, h.Reason = HealthFailed, w.failedAt, w.lastError
	case engine.State == backing.Failed:
		h.State, h.Since, h.Reason = HealthFailed, engine.Since, engine.Reason
	case engine.State == backing.Stalled:
		h.State, h.Since, h.Reason = HealthStalled, engine.Since, engine.Reason
	case w.stalled:
		h.State, h.Since, h.Reason = HealthStalled, w.stalledAt, "the store does not answer"
		if t, _ := u.oldestLocked(u.stall.returned); t != nil {
			plural := "s"
			if h.Inside == 1 {
				plural = ""
			}
			h.Reason += fmt.Sprintf(": it has %d command%s, the first of them %s", h.Inside, plural, t.row.Name)
		}
	case w.errors >= failingErrors:
		h.State, h.Since, h.Reason = HealthFailing, w.errorsAt, w.lastError
	}
	return h
}

// StoreHealthChanged has the unit ask the store for its health (backing.Healther)
// now. Whoever watches the store (backing.Notifier) calls it; it does not wait.
func (u *Unit) StoreHealthChanged() {
	engine := u.engineHealth()
	u.mu.Lock()
	u.health.engine = engine
	if engine.State == backing.Healthy {
		u.health.stalled = false // what still waits will say so again
	}
	u.refuseLocked()
	if engine.State == backing.Stalled && !u.stall.armed && !u.closed {
		u.armLocked() // StallFail's time may pass with no command there
	}
	change := u.healthChangeLocked()
	u.mu.Unlock()
	u.tell(change)
}

// healthChange is a change of state that has not been logged.
type healthChange struct {
	from HealthState
	now  Health
}

func (u *Unit) healthChangeLocked() *healthChange {
	h := u.healthLocked()
	from := u.health.told
	if h.State == from {
		return nil
	}
	u.health.told = h.State
	return &healthChange{from, h}
}

func (u *Unit) tell(c *healthChange) {
	switch {
	case c == nil:
	case c.now.State == HealthOK:
		u.log.Info("store is well again", "unit", u.name(), "was", c.from)
	default:
		u.log.Warn("store is "+c.now.State.String(), "unit", u.name(), "since", c.now.Since.Format(time.DateTime), "reason", c.now.Reason)
	}
}

// cameBackLocked takes note of what the end of a task says of the store. Commands
// that were served without asking the medium say nothing.
func (u *Unit) cameBackLocked(t *Task) *healthChange {
	if t.set.gaveUp || !t.row.Medium || !t.set.inside && !u.prompt {
		return nil
	}
	if t.Status == Good {
		u.health.errors = 0
	}
	u.stall.probe.cameBack(t)
	return u.answeredLocked()
}

// answeredLocked: the store has let a call go by itself.
func (u *Unit) answeredLocked() *healthChange {
	w := &u.health
	u.stall.returned = u.stall.clock
	if w.told == HealthOK && !w.stalled {
		return nil
	}
	w.stalled = false
	u.refuseLocked()
	return u.healthChangeLocked()
}

// storeFailed takes note of an error of the store.
func (u *Unit) storeFailed(err error) {
	engine := u.engineHealth()
	u.mu.Lock()
	w := &u.health
	w.engine = engine
	w.errors++
	if w.errors == 1 {
		w.errorsAt = time.Now()
	}
	w.lastError = err.Error()
	if !w.failed && errors.Is(err, backing.ErrFailed) {
		w.failed, w.failedAt = true, time.Now()
	}
	change := u.healthChangeLocked()
	u.mu.Unlock()
	u.tell(change)
}

// timedOut: the store has not answered in time, by its own clock or by ours.
func (t *Task) timedOut(err error) bool {
	if errors.Is(err, context.Canceled) {
		return t.state.Load()&flagStalled != 0
	}
	return storeTimedOut(err)
}

// storeTimedOut: the store has not answered in time, by its own clock.
func storeTimedOut(err error) bool {
	var timeout interface{ Timeout() bool } // context.DeadlineExceeded, ETIMEDOUT, net.Error
	return errors.Is(err, backing.ErrStalled) || errors.As(err, &timeout) && timeout.Timeout()
}
