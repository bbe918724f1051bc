package scsi

import (
	"context"
	"time"
)

// The task set of a unit (SAM-5 §8) and the rules by which its tasks start.
//
// A task enters the set at Admit and leaves it when it is done. With nothing but
// SIMPLE tasks in the set, entering and leaving is all there is: one short hold
// of the unit's mutex each. Only while Unit.special is not zero do tasks look at
// each other before they start:
//
//   - ORDERED waits for all older tasks, SIMPLE waits for older ORDERED ones, and
//     both wait for every HEAD OF QUEUE task, which itself waits for none.
//     Commands that run before unit attentions (INQUIRY, REPORT LUNS, REQUEST
//     SENSE) are implicitly HEAD OF QUEUE and neither wait nor are waited for.
//   - An exclusive task (COMPARE AND WRITE, ORWRITE) waits for started tasks that
//     touch its blocks and holds back later ones that do. Other ranges never wait.
//   - A write that was aborted while the store has not let go of it keeps its
//     blocks to itself until the store returns, so that a late write can never
//     overwrite a newer one. This quarantine is what allows task management to
//     answer at its deadline although a store hangs. Commands that wait for a
//     quarantined range can themselves be aborted.
//
// A task never waits for a younger one except HEAD OF QUEUE, and HEAD OF QUEUE
// waits only for started tasks, so there are no cycles.

// Phases of a task, the low byte of Task.state.
const (
	phaseNone     uint32 = iota
	phaseAdmitted        // in the set; the transport has yet to call Run or Abandon
	phaseBlocked         // Run was called; waits for other tasks
	phaseQueued          // waits for a worker
	phaseRunning         // the handler runs, or is about to
	phaseDone            // out of the set

	phaseMask uint32 = 0xff
	// flagAborted: ended by task management, a reset or the loss of the nexus.
	flagAborted uint32 = 0x100
	// flagTAS: aborted through another nexus while the control mode page's TAS
	// bit was set, so that the initiator gets TASK ABORTED (SAM-5 §5.3.1).
	flagTAS uint32 = 0x200
	// flagStalled: the store has not answered in the time of StallFail, and was
	// told to give up.
	flagStalled uint32 = 0x400
	// flagAnswered: the initiator has had its answer already (Answerer).
	flagAnswered uint32 = 0x800
)

const (
	// maxTasks bounds a unit's task set; beyond it TASK SET FULL is returned.
	maxTasks = 4096
	// maxExclusive bounds the exclusive tasks of a unit, since each is compared
	// with every other task.
	maxExclusive = 256
)

// setEntry is what the task set keeps in a task.
type setEntry struct {
	prev, next *Task // the set, oldest first
	qnext      *Task // the worker queue, or a chain of tasks to deliver
	seq        uint64
	ctx        taskContext
	waiters    []*management // TMFs that wait for this aborted, still running task
	granted    chan struct{} // a copy's hold: closed when it may start (see copyHold)
	exclusive  bool          // in Unit.exclusive
	counted    bool          // holds one count of Unit.special for its attribute

	// See stall.go.
	began     time.Duration // clock when it was given to the store, or began to wait
	inside    bool          // counted in stallWatch.inside
	begun     bool          // counted in Unit.begun
	answering bool          // Transport.Answer is under way: who calls it delivers
	over      bool          // the store has let go meanwhile
	gaveUp    bool          // the store came back without having answered
}

func (t *Task) phase() uint32 { return t.state.Load() & phaseMask }

// setPhase changes the phase and keeps the flags. Only where no other goroutine
// may change the state: under the unit's mutex, past phaseAdmitted.
func (t *Task) setPhase(p uint32) { t.state.Store(t.state.Load()&^phaseMask | p) }

// Aborted reports whether the task was ended without a response: no status may
// be sent for it. Before TaskDone it tells a transport that collects data-out
// that it may stop and call Abandon. Safe for concurrent use.
func (t *Task) Aborted() bool {
	return t.state.Load()&(flagAborted|flagTAS) == flagAborted
}

// Context ends when the task is aborted. It is valid until TaskDone.
func (t *Task) Context() context.Context { return &t.set.ctx }

// implicitHead: the row is exempt from ordering.
func (c *Command) implicitHead() bool { return c.NoUA }

// enqueue puts the task into the set. The status is not Good when it was refused:
// CheckCondition because the unit is no longer there, ReservationConflict, or
// what full says.
func (u *Unit) enqueue(t *Task) Status {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed || t.itl.gone {
		return CheckCondition
	}
	// Again, and now so that PREEMPT AND ABORT either refuses the task here or
	// finds it in the set: it changes the reservation before it looks there.
	if u.conflicts(t.itl, t.row.Reserve) {
		return ReservationConflict
	}
	if u.ntasks >= maxTasks {
		return t.itl.full()
	}
	if t.row.Exclusive {
		if len(u.exclusive) >= maxExclusive {
			return t.itl.full()
		}
		u.exclusive = append(u.exclusive, t)
		t.set.exclusive = true
		u.special.Add(1)
	}
	if t.Attr >= Ordered && !t.row.implicitHead() {
		t.set.counted = true
		u.ordering++
		u.special.Add(1)
	}
	u.seq++
	t.set.seq = u.seq
	t.set.prev = u.tail
	if u.tail != nil {
		u.tail.set.next = t
	} else {
		u.head = t
	}
	u.tail = t
	u.ntasks++
	t.itl.ntasks++
	t.state.Store(phaseAdmitted)
	return Good
}

// full is the status for a task that the set has no room for. TASK SET FULL
// tells an initiator to send again when one of its tasks is done; one that has
// none would wait for ever, and is told BUSY (SAM-5 §5.3.1).
func (i *itl) full() Status {
	if i.ntasks > 0 {
		return TaskSetFull
	}
	return Busy
}

// unlinkLocked takes the task out of the set.
func (u *Unit) unlinkLocked(t *Task) {
	if t.set.prev != nil {
		t.set.prev.set.next = t.set.next
	} else {
		u.head = t.set.next
	}
	if t.set.next != nil {
		t.set.next.set.prev = t.set.prev
	} else {
		u.tail = t.set.prev
	}
	t.set.prev, t.set.next = nil, nil
	u.ntasks--
	t.itl.ntasks--
	if t.set.inside {
		t.set.inside = false
		u.stall.inside--
	}
	if t.set.begun {
		t.set.begun = false
		u.begun--
	}
	if t.set.counted {
		t.set.counted = false
		u.ordering--
		u.special.Add(-1)
	}
	if t.set.exclusive {
		t.set.exclusive = false
		for i, e := range u.exclusive {
			if e == t {
				last := len(u.exclusive) - 1
				u.exclusive[i] = u.exclusive[last]
				u.exclusive[last] = nil
				u.exclusive = u.exclusive[:last]
				break
			}
		}
		u.special.Add(-1)
	}
}

// mustWaitLocked reports whether the task may not start now.
func (u *Unit) mustWaitLocked(t *Task) bool {
	if t.row.implicitHead() {
		return false
	}
	return u.ordering > 0 && t.set.granted == nil && u.waitsForOrder(t) || len(u.exclusive) > 0 && u.waitsForRange(t)
}

func (u *Unit) waitsForOrder(t *Task) bool {
	if t.Attr == HeadOfQueue {
		return false
	}
	perNexus := u.flags.Load()&unitTSTPerNexus != 0
	for o := u.head; o != nil; o = o.set.next {
		if o == t || o.row.implicitHead() || o.state.Load()&flagAborted != 0 || perNexus && o.itl != t.itl {
			continue
		}
		switch {
		case o.Attr == HeadOfQueue:
			return true
		case o.set.seq > t.set.seq: // younger
		case t.Attr == Ordered, o.Attr == Ordered:
			return true
		}
	}
	return false
}

func (u *Unit) waitsForRange(t *Task) bool {
	lba, n := t.blocks()
	if n == 0 {
		return false
	}
	if t.set.exclusive {
		for o := u.head; o != nil; o = o.set.next {
			if u.holdsBack(o, t, lba, n) {
				return true
			}
		}
		return false
	}
	for _, o := range u.exclusive {
		if u.holdsBack(o, t, lba, n) {
			return true
		}
	}
	return false
}

// holdsBack: o has started, or waits already and is older, and touches the range.
func (u *Unit) holdsBack(o, t *Task, lba, n uint64) bool {
	if o == t {
		return false
	}
	switch o.phase() {
	case phaseRunning, phaseQueued:
	case phaseBlocked:
		if o.set.seq > t.set.seq || t.Attr == HeadOfQueue || t.set.granted != nil {
			return false
		}
	default:
		return false
	}
	olba, on := o.blocks()
	// Differences instead of sums: a CDB's range may end beyond 2^64.
	if on == 0 {
		return false
	}
	if olba <= lba {
		return lba-olba < on
	}
	return olba-lba < n
}

// blocks is the range the task touches. A command that reaches the medium
// without naming a range (UNMAP's is in its parameter list) touches all of it.
func (t *Task) blocks() (lba, nblocks uint64) {
	switch {
	case t.row.Access == AccessNone:
		return 0, 0
	case t.row.Range != nil:
		return t.row.Range(t)
	case t.row.Medium:
		return 0, 1<<64 - 1
	}
	return 0, 0
}

// releaseLocked queues the blocked tasks that may start now.
func (u *Unit) releaseLocked() {
	if u.nblocked == 0 {
		return
	}
	for t := u.head; t != nil; t = t.set.next {
		if t.phase() == phaseBlocked && !u.mustWaitLocked(t) {
			u.nblocked--
			u.touchTokensLocked(t)
			if t.set.granted != nil {
				t.setPhase(phaseRunning)
				close(t.set.granted)
			} else {
				u.queueLocked(t)
			}
		}
	}
}
