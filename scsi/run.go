package scsi

import (
	"context"
	"errors"
	"time"

	"blockgate/backing"
	"blockgate/scsi/sense"
)

// Run executes an admitted task whose data-out, if any, is in t.Out. It may run
// the command on the caller's goroutine when that does not wait for a medium;
// everything else goes to the unit's workers. TaskDone tells when it is done,
// which may be before Run returns. To be called once, or else Abandon.
func (t *Task) Run() {
	if int64(len(t.Out)) > t.OutLen {
		t.Out = t.Out[:t.OutLen]
	}
	if !t.state.CompareAndSwap(phaseAdmitted, phaseRunning) {
		t.endAborted()
		return
	}
	u := t.unit
	// Who makes special non-zero does so before looking at our phase, and we
	// set the phase before looking at special: one of the two sees the other.
	if u.special.Load() != 0 && !u.start(t) {
		return
	}
	if t.late() {
		t.finish()
		return
	}
	switch {
	case t.lends():
	case !t.row.Waits && (!t.row.Medium || u.prompt):
		t.settle()
		t.row.Run(t)
	case t.row.Try == nil || !u.tries || !t.tryNow():
		if !t.begins() {
			u.submit(t)
		}
		return
	}
	t.finish()
}

// tryNow runs the command if it does not have to wait.
func (t *Task) tryNow() bool {
	// To try a read of a store that lends mapped pages waits for no loan.
	if t.row.Lend == nil || t.unit.caps.mapped == nil {
		t.settle()
	}
	return t.row.Try(t)
}

// Abandon ends an admitted task that will not be Run because its data-out will
// not come: with CHECK CONDITION and s, or silently as an aborted task if s is nil.
func (t *Task) Abandon(s *sense.Sense) {
	if !t.state.CompareAndSwap(phaseAdmitted, phaseRunning) {
		t.endAborted()
		return
	}
	if s != nil {
		t.Fail(*s)
	} else {
		t.state.Or(flagAborted)
	}
	t.finish()
}

// endAborted ends a task that was aborted before Run. Whoever aborts it may be
// about to take it out of the set still, and must be done before the transport
// may use the task again.
func (t *Task) endAborted() {
	t.unit.mu.Lock()
	t.setPhase(phaseDone)
	t.unit.mu.Unlock()
	t.deliver()
}

// start decides whether a task in phaseRunning may go on; if not it stays blocked.
func (u *Unit) start(t *Task) bool {
	u.mu.Lock()
	switch {
	case t.state.Load()&flagAborted != 0:
		u.mu.Unlock()
		t.finish()
		return false
	case u.closed:
		u.mu.Unlock()
		t.Fail(sense.LUNotSupported())
		t.finish()
		return false
	case u.mustWaitLocked(t):
		t.setPhase(phaseBlocked)
		u.nblocked++
		u.watchLocked(t)
		// Another task may have blocked on us between our two looks.
		u.releaseLocked()
		u.mu.Unlock()
		return false
	}
	u.touchTokensLocked(t)
	u.mu.Unlock()
	return true
}

// submit hands a task in phaseRunning to the workers.
func (u *Unit) submit(t *Task) {
	u.mu.Lock()
	if t.state.Load()&flagAborted != 0 {
		u.mu.Unlock()
		t.finish()
		return
	}
	u.queueLocked(t)
	u.mu.Unlock()
}

// workQueue is a first-in first-out queue with goroutines that come when there is
// work and go when there is none.
type workQueue struct {
	head, tail *Task
	workers    int
	limit      int
}

// controlWorkers run what does not wait for the store. They are apart from the
// others so that PERSISTENT RESERVE OUT can fence a host while the store hangs.
const controlWorkers = 8

func (u *Unit) queueOf(t *Task) *workQueue {
	if t.row.Medium {
		return &u.mediumWork
	}
	return &u.controlWork
}

// queueLocked appends the task to its queue and sees to a worker.
func (u *Unit) queueLocked(t *Task) {
	t.setPhase(phaseQueued)
	t.set.qnext = nil
	q := u.queueOf(t)
	if q == &u.mediumWork {
		u.enterLocked(t)
	}
	if q.tail != nil {
		q.tail.set.qnext = t
	} else {
		q.head = t
	}
	q.tail = t
	if q.workers < q.limit {
		q.workers++
		go u.work(q)
	}
}

// dropQueuedLocked takes a task out of the middle of its queue.
func (u *Unit) dropQueuedLocked(t *Task) {
	q := u.queueOf(t)
	var prev *Task
	for o := q.head; o != nil; prev, o = o, o.set.qnext {
		if o != t {
			continue
		}
		if prev != nil {
			prev.set.qnext = t.set.qnext
		} else {
			q.head = t.set.qnext
		}
		if q.tail == t {
			q.tail = prev
		}
		t.set.qnext = nil
		return
	}
}

// work runs queued tasks until there are none.
func (u *Unit) work(q *workQueue) {
	u.mu.Lock()
	for {
		t := q.head
		if t == nil {
			q.workers--
			u.mu.Unlock()
			return
		}
		q.head = t.set.qnext
		if q.head == nil {
			q.tail = nil
		}
		t.set.qnext = nil
		t.setPhase(phaseRunning)
		t.set.began = u.stall.clock
		u.mu.Unlock()
		if !t.late() {
			t.row.Run(t)
		}
		t.finish()
		u.mu.Lock()
	}
}

// finish takes the task out of the set, lets go those that waited for it, and
// tells the transport. The task must not be touched afterwards.
func (t *Task) finish() {
	u := t.unit
	u.mu.Lock()
	change := u.cameBackLocked(t)
	u.unlinkLocked(t)
	t.setPhase(phaseDone)
	u.countLocked(t)
	u.releaseLocked()
	u.drainedLocked()
	if t.set.answering {
		t.set.over = true
		u.mu.Unlock()
		u.tell(change)
		return
	}
	waiters := t.set.waiters
	t.set.waiters = nil
	u.mu.Unlock()
	u.tell(change)
	t.deliver()
	for _, m := range waiters {
		m.release()
	}
}

// deliver hands the finished task to its transport.
func (t *Task) deliver() {
	if s := t.state.Load(); s&flagAborted != 0 {
		t.dropIn()
		t.Sense = nil
		if s&flagTAS != 0 {
			t.Status = TaskAborted
		}
	}
	t.Transport.TaskDone(t)
}

// dropIn takes back data-in that must not reach the initiator.
func (t *Task) dropIn() {
	if t.In != nil {
		t.In = t.In[:0]
	}
	t.InLen = 0
}

// Store is the unit's backing store; nil on units without a medium.
func (t *Task) Store() backing.Store { return t.unit.store }

// Fail ends the command with CHECK CONDITION and this sense data, in the format
// that the control mode page asks for; data-in set so far is dropped. The
// handler returns after it.
func (t *Task) Fail(s sense.Sense) {
	t.dropIn()
	t.Status = CheckCondition
	t.Sense = s.Encode(t.senseBuf[:], t.unit.flags.Load()&unitDSense != 0)
}

// FailStore ends the command with the sense data for an error of the store.
// lba is the first block of the failed transfer, access what it did.
func (t *Task) FailStore(err error, access Access, lba uint64) {
	timedOut := t.timedOut(err)
	own := true // the fault is the store's, and not what was asked of it
	t.set.gaveUp = timedOut || errors.Is(err, context.Canceled)
	switch {
	case t.state.Load()&flagAborted != 0, errors.Is(err, context.Canceled) && !timedOut:
		// Aborted tasks send no status; should the store have given up by
		// itself the initiator may try again.
		t.Fail(sense.CommandAborted())
		return
	case timedOut:
		t.Fail(sense.CommunicationTimeout())
		if errors.Is(err, context.Canceled) {
			return // it is the unit that gave up
		}
	case errors.Is(err, backing.ErrNoSpace):
		t.Fail(sense.SpaceAllocationFailed())
		own = false
	case errors.Is(err, backing.ErrReadOnly):
		t.Fail(sense.WriteProtected())
		own = false
	case errors.Is(err, backing.ErrOutOfRange):
		// The store shrank below what the unit believes.
		t.Fail(sense.LBAOutOfRange(lba))
		own = false
	case errors.Is(err, backing.ErrNotSupported):
		t.Fail(sense.InternalFailure())
		own = false
	case errors.Is(err, backing.ErrClosed):
		t.Fail(sense.InternalFailure())
	case access == AccessRead:
		t.Fail(sense.UnrecoveredRead(lba))
	case access == AccessWrite:
		t.Fail(sense.WriteFault(lba))
	default:
		t.Fail(sense.InternalFailure())
	}
	if own {
		t.unit.storeFailed(err)
	}
	t.unit.warn("store failed", "unit", t.unit.name(), "command", t.row.Name, "lba", lba, "err", err)
}

// warn logs at most once a second: a store that fails does so for every command.
func (u *Unit) warn(msg string, args ...any) {
	now := time.Now().Unix()
	if last := u.warned.Load(); last != now && u.warned.CompareAndSwap(last, now) {
		u.log.Warn(msg, args...)
	}
}
