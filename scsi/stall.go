package scsi

import (
	"fmt"
	"strings"
	"time"

	"blockgate/backing"
	"blockgate/scsi/sense"
)

// What happens when the store does not answer (docs/adr/0012-when-a-store-stalls.md).
//
// A call that a store was given cannot be taken back. Who waits for it is
// another question, and StallPolicy answers it. The unit notices by looking: as
// long as a task is with a worker, a timer of the unit looks at the task set a few
// times in the time that matters. A task notes when it began by the clock of the
// latest look, so that watching costs the path of a command neither a timer nor
// the time of day.

// StallAction is what a unit does with commands while its store does not answer.
type StallAction uint8

// The actions.
const (
	// StallHold: commands wait for the store, however long that is. Only the
	// initiator ends them, by task management or by leaving.
	StallHold StallAction = iota
	// StallFail: a command that has waited in the store for StallPolicy.After ends
	// with ABORTED COMMAND, LOGICAL UNIT COMMUNICATION TIME-OUT. When the store
	// has let nothing go for so long, new ones end with it at once, and TEST UNIT
	// READY with NOT READY, until the store answers again.
	StallFail
	// StallBusy: when the store has let nothing go for StallPolicy.After, new
	// commands that need it are answered BUSY. Those inside wait.
	StallBusy
)

// StallPolicy is what a unit does while its store does not answer. The zero value
// is to hold.
type StallPolicy struct {
	Action StallAction
	After  time.Duration // MinStall to MaxStall; 0 with StallHold
}

// Bounds of StallPolicy.After.
const (
	MinStall = 100 * time.Millisecond
	MaxStall = 24 * time.Hour
)

// DefaultBusyAfter is the time that "busy" without one means.
const DefaultBusyAfter = 10 * time.Second

// String is the policy as ParseStallPolicy reads it.
func (p StallPolicy) String() string {
	switch p.Action {
	case StallFail:
		return "fail=" + p.After.String()
	case StallBusy:
		return "busy=" + p.After.String()
	}
	return "hold"
}

// ParseStallPolicy reads "hold", "fail=TIME", "busy" or "busy=TIME"; TIME is as
// time.ParseDuration has it ("30s", "2m"). "" is hold.
func ParseStallPolicy(s string) (StallPolicy, error) {
	action, after, timed := strings.Cut(s, "=")
	var p StallPolicy
	switch action {
	case "hold", "":
		if timed {
			return p, fmt.Errorf("stall policy %q: hold takes no time", s)
		}
		return p, nil
	case "fail":
		p.Action = StallFail
		if !timed {
			return p, fmt.Errorf("stall policy %q: after how long? For example fail=30s", s)
		}
	case "busy":
		p.Action, p.After = StallBusy, DefaultBusyAfter
		if !timed {
			return p, nil
		}
	default:
		return p, fmt.Errorf("stall policy %q is not hold, fail=TIME or busy=TIME", s)
	}
	d, err := time.ParseDuration(after)
	if err != nil {
		return p, fmt.Errorf("stall policy %q: %q is not a time such as 30s", s, after)
	}
	p.After = d
	return p, p.check()
}

func (p StallPolicy) check() error {
	switch {
	case p.Action > StallBusy:
		return fmt.Errorf("there is no stall action %d", p.Action)
	case p.Action == StallHold && p.After != 0:
		return fmt.Errorf("the stall policy hold takes no time")
	case p.Action != StallHold && (p.After < MinStall || p.After > MaxStall):
		return fmt.Errorf("stall policy %v: the time is not in %v to %v", p, MinStall, MaxStall)
	}
	return nil
}

// stallNotice is how long the store may let nothing go before it counts as
// stalled, if the policy does not say less.
const stallNotice = 10 * time.Second

func (p StallPolicy) notice() time.Duration {
	switch {
	case p.Action == StallBusy, p.Action == StallFail && p.After < stallNotice:
		return p.After
	}
	return stallNotice
}

// step is the time between two looks.
func (p StallPolicy) step() time.Duration {
	return min(max(p.notice()/8, 10*time.Millisecond), time.Second)
}

// stallWatch follows what is inside the store. Under the unit's mutex.
type stallWatch struct {
	born  time.Time
	timer *time.Timer
	armed bool
	step  time.Duration
	clock time.Duration // since born, as of the latest look or arming

	inside   int           // tasks that a worker has, or that wait for one, and held copies
	returned time.Duration // clock when the store let one go by itself

	probe stallProbe
}

// watchLocked has the task looked after from now on.
func (u *Unit) watchLocked(t *Task) {
	if !u.stall.armed {
		u.armLocked()
	}
	t.set.began = u.stall.clock
}

// enterLocked counts the task among those that the store has, or soon will.
func (u *Unit) enterLocked(t *Task) {
	u.watchLocked(t)
	t.set.inside = true
	u.stall.inside++
}

// armLocked sets the clock and has lookAtStall called after a step.
func (u *Unit) armLocked() {
	w := &u.stall
	if w.born.IsZero() {
		w.born = time.Now()
	}
	w.clock, w.step, w.armed = time.Since(w.born), u.cfg.Load().Stall.step(), true
	if w.timer == nil {
		w.timer = time.AfterFunc(w.step, u.lookAtStall)
	} else {
		w.timer.Reset(w.step)
	}
}

// delegate says that a running task does not wait for the store itself from now on:
// others do so for it, and are looked after.
func (t *Task) delegate() {
	u := t.unit
	u.mu.Lock()
	defer u.mu.Unlock()
	if t.set.inside {
		t.set.inside = false
		u.stall.inside--
	}
}

// giveUp ends the wait for a running task that others wait for the store for.
func (t *Task) giveUp() {
	u := t.unit
	u.mu.Lock()
	answer := t.phase() == phaseRunning && u.giveUpLocked(t)
	u.mu.Unlock()
	if answer {
		t.answer()
	}
}

// waited is how long the task has waited, at least.
func (w *stallWatch) waited(t *Task) time.Duration { return w.clock - t.set.began - w.step }

// lookAtStall sees what has waited too long.
func (u *Unit) lookAtStall() {
	engine := u.engineHealth()
	u.mu.Lock()
	u.health.engine = engine
	w := &u.stall
	w.clock = time.Since(w.born)
	p := u.cfg.Load().Stall
	// What was there before the store let another go says nothing of it any more.
	if t, waited := u.oldestLocked(w.returned); waited >= p.notice() && !u.health.stalled {
		u.health.stalled, u.health.stalledAt = true, time.Now().Add(-waited)
		w.probe.stalledBy(t)
	}
	u.refuseLocked()
	u.probeLocked(p)
	var ended, answer []*Task
	if p.Action == StallFail {
		ended, answer = u.expireLocked(p.After)
	}
	w.armed = false
	if w.inside > 0 || u.nblocked > 0 || (engine.State == backing.Stalled || u.refusing()) && !u.closed {
		u.armLocked()
	}
	change := u.healthChangeLocked()
	u.releaseLocked()
	u.drainedLocked()
	u.mu.Unlock()
	u.tell(change)
	for _, t := range ended {
		t.deliver()
	}
	for _, t := range answer {
		t.answer()
	}
}

// oldestLocked is the task that has been in the store for longest, of those that
// began not before since; nil if there is none.
func (u *Unit) oldestLocked(since time.Duration) (oldest *Task, waited time.Duration) {
	for t := u.head; t != nil; t = t.set.next {
		if !t.set.inside || t.phase() != phaseRunning || t.set.began < since {
			continue
		}
		if d := u.stall.waited(t); oldest == nil || d > waited {
			oldest, waited = t, d
		}
	}
	return oldest, waited
}

// refuseLocked decides whether new commands are to wait for the store at all.
func (u *Unit) refuseLocked() {
	p, engine := u.cfg.Load().Stall, u.health.engine
	on := false
	switch p.Action {
	case StallBusy:
		on = u.health.stalled || engine.State == backing.Stalled
	case StallFail:
		on = u.health.stalled && time.Since(u.health.stalledAt) >= p.After ||
			engine.State == backing.Stalled && time.Since(engine.Since) >= p.After
	}
	if on && !u.refusing() {
		if !u.stall.armed && !u.closed {
			u.armLocked() // somebody has to see when it is over
		}
		u.stall.probe.begin(u.stall.clock, p.After)
	}
	u.setFlag(unitRefuses, on)
}

// refusing: new commands are not to wait for the store.
func (u *Unit) refusing() bool { return u.flags.Load()&unitRefuses != 0 }

// refusal is the answer to a command that comes while unitRefuses is set; Good is
// for those that do not ask the store. None that does goes in to see how the store
// is: its initiator would wait as long as for the first one (stall_probe.go).
func (u *Unit) refusal(row *Command) (s sense.Sense, st Status) {
	if !row.Medium && row.Op != opTestUnitReady {
		return s, Good
	}
	switch a := u.cfg.Load().Stall.Action; {
	case a == StallFail && row.Medium:
		return sense.CommunicationTimeout(), CheckCondition
	case a == StallFail:
		return sense.NotReadyNoCause(), CheckCondition
	case a == StallBusy && row.Medium:
		return s, Busy
	}
	return s, Good
}

// advance says that a command which works in pieces begins another one: it has
// waited for none of them yet.
func (t *Task) advance() {
	u := t.unit
	u.mu.Lock()
	defer u.mu.Unlock()
	t.set.began = u.stall.clock
}

// expireLocked ends what has waited for limit. ended are to be delivered; answer
// are tasks that the store still has.
//
// What waits for a worker is only ended if the store lets nothing go, and what
// waits for other tasks also if one of these was ended here or aborted and keeps
// its blocks: on a store that is no more than slow, they have their turn.
func (u *Unit) expireLocked(limit time.Duration) (ended, answer []*Task) {
	refuses := u.refusing()
	var next *Task
	for t := u.head; t != nil; t = next {
		next = t.set.next
		if u.stall.waited(t) < limit {
			continue
		}
		switch t.phase() {
		case phaseRunning:
			if t.set.inside && u.giveUpLocked(t) {
				answer = append(answer, t)
			}
			continue
		case phaseQueued:
			if !t.set.inside || !refuses {
				continue
			}
			u.dropQueuedLocked(t)
		case phaseBlocked:
			if !refuses && !u.waitsForAbortedLocked(t) {
				continue
			}
			u.nblocked--
		default:
			continue
		}
		t.Fail(sense.CommunicationTimeout())
		u.unlinkLocked(t)
		t.setPhase(phaseDone)
		u.countLocked(t)
		ended = append(ended, t)
	}
	return ended, answer
}

// giveUpLocked ends the wait for a task that the store has. The store is told to
// abandon the call. A transport that can answers at once: to the task set it is
// as if the task had been aborted, with its blocks in quarantine if it writes
// (docs/adr/0002). Otherwise the task ends when the store lets go.
func (u *Unit) giveUpLocked(t *Task) (answer bool) {
	if t.state.Load()&(flagAborted|flagStalled) != 0 {
		return false
	}
	t.state.Or(flagStalled)
	t.set.ctx.cancel()
	if _, answer = t.Transport.(Answerer); answer {
		t.set.answering = true
		u.quarantineLocked(t)
	}
	return answer
}

// answer has the transport answer a task that giveUpLocked has ended. A task that
// the store lets go meanwhile is delivered here. It counts as aborted only
// afterwards, so that no sweep for aborted tasks takes it for one that gets no
// answer.
func (t *Task) answer() {
	u := t.unit
	var buf [sense.MaxLen]byte
	t.Transport.(Answerer).Answer(t, CheckCondition, sense.CommunicationTimeout().Encode(buf[:], u.flags.Load()&unitDSense != 0))
	u.mu.Lock()
	t.set.answering = false
	t.state.Or(flagAborted | flagAnswered)
	u.releaseLocked() // what ORDERED held back
	over, waiters := t.set.over, t.set.waiters
	if over {
		t.set.waiters = nil
	}
	u.mu.Unlock()
	if !over {
		return
	}
	t.deliver()
	for _, m := range waiters {
		m.release()
	}
}

// waitsForAbortedLocked: the task waits for blocks in quarantine.
func (u *Unit) waitsForAbortedLocked(t *Task) bool {
	lba, n := t.blocks()
	if n == 0 {
		return false
	}
	for _, o := range u.exclusive {
		if o.state.Load()&flagAborted != 0 && u.holdsBack(o, t, lba, n) {
			return true
		}
	}
	return false
}
