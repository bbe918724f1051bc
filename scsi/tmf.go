package scsi

import (
	"sync/atomic"
	"time"
)

// TMF is a task management function, with the values of RFC 7143 §11.5.1 and
// RFC 7144 §4.
type TMF uint8

// Task management functions (SAM-5 §7). TASK REASSIGN (8) belongs to the transport.
const (
	AbortTask       TMF = 1
	AbortTaskSet    TMF = 2
	ClearACA        TMF = 3
	ClearTaskSet    TMF = 4
	LUNReset        TMF = 5
	TargetWarmReset TMF = 6
	TargetColdReset TMF = 7
	QueryTask       TMF = 9
	QueryTaskSet    TMF = 10
	NexusReset      TMF = 11
	QueryAsyncEvent TMF = 12
)

// TMFResult is the response to a task management function, with the values of
// RFC 7143 §11.6.1 and RFC 7144 §4.
type TMFResult uint8

// Results.
const (
	FunctionComplete     TMFResult = 0
	TaskDoesNotExist     TMFResult = 1
	LUNDoesNotExist      TMFResult = 2
	TaskAllegiant        TMFResult = 3
	FailoverNotSupported TMFResult = 4
	NotSupported         TMFResult = 5
	AuthFailed           TMFResult = 6
	FunctionSucceeded    TMFResult = 7 // QUERY TASK and others: yes
	Rejected             TMFResult = 255
)

// management is a function that waits for aborted tasks.
type management struct {
	left  atomic.Int32 // tasks the store still holds, and one for the caller
	fired atomic.Bool
	timer *time.Timer
	done  func(TMFResult)
	res   TMFResult
	// patient: a store that is not stalled has one of the tasks, and may let go.
	patient bool
}

// stalledTimeout is how long a function waits for stores that are known to let
// nothing go. Meanwhile Linux holds up the whole session, other units too.
const stalledTimeout = 250 * time.Millisecond

func newManagement(done func(TMFResult)) *management {
	m := &management{done: done}
	m.left.Store(1)
	return m
}

// release is called for each task that is over, and by who made it.
func (m *management) release() {
	if m.left.Add(-1) == 0 {
		if m.timer != nil {
			m.timer.Stop()
		}
		m.fire()
	}
}

func (m *management) fire() {
	if m.fired.CompareAndSwap(false, true) {
		m.done(m.res)
	}
}

// Manage carries a task management function out. lun is the LUN field as in
// Task.LUN, tag the tag of the task for the functions that name one. done is
// called exactly once, from any goroutine, possibly before Manage returns, and
// after TaskDone of every task that was aborted by it and had been Run — or at
// the device's ManageTimeout, if a store does not let go of them; sooner if it is
// stalled (see Unit.Health). Then the
// blocks of the writes it still holds are quarantined: no command touches them
// before the store returns, so that what is written after the answer is never
// overwritten by what was aborted (see the task set).
//
// Tasks that wait for Run are marked Aborted and end when the transport calls
// Run or Abandon. TASK ABORTED is returned for tasks of other nexuses if the
// unit's control mode page says so (TAS).
//
// A transport that gets TARGET COLD RESET closes its sessions afterwards.
func (n *Nexus) Manage(f TMF, lun, tag uint64, done func(TMFResult)) {
	m := newManagement(done)
	var reset func(*Unit)
	switch f {
	case AbortTask, AbortTaskSet, ClearTaskSet, LUNReset, QueryTask, QueryTaskSet, QueryAsyncEvent:
		i := n.find(lun)
		if i == n.absent {
			m.res = LUNDoesNotExist
			break
		}
		u := i.unit
		mine := func(t *Task) bool { return t.Nexus == n && t.itl == i }
		switch f {
		case AbortTask:
			if u.abort(m, func(t *Task) bool { return mine(t) && t.Tag == tag && !t.answered() }, nil) == 0 {
				m.res = TaskDoesNotExist
			}
		case AbortTaskSet:
			u.abort(m, mine, nil)
		case ClearTaskSet:
			if u.flags.Load()&unitTSTPerNexus != 0 {
				u.abort(m, mine, nil)
			} else {
				u.abort(m, func(*Task) bool { return true }, n)
			}
		case LUNReset:
			u.reset(m, n, attnDeviceReset)
		case QueryTask:
			if u.hasTask(func(t *Task) bool { return mine(t) && t.Tag == tag }) {
				m.res = FunctionSucceeded
			}
		case QueryTaskSet:
			if u.hasTask(mine) {
				m.res = FunctionSucceeded
			}
		case QueryAsyncEvent:
			if i.attn.any() {
				m.res = FunctionSucceeded
			}
		}
	case TargetWarmReset, TargetColdReset:
		a := attnBusReset
		if f == TargetColdReset {
			a = attnPowerOn
		}
		reset = func(u *Unit) { u.reset(m, n, a) }
	case NexusReset:
		n.luns.Load().all(func(i *itl) {
			u := i.unit
			u.abort(m, func(t *Task) bool { return t.itl == i }, nil)
			u.mu.Lock()
			i.prevent = false
			i.copies = nil
			u.reserve6.CompareAndSwap(i, nil)
			u.mu.Unlock()
			i.attn.raise(attnNexusLoss)
		})
	default:
		m.res = NotSupported
	}
	if reset != nil {
		seen := make(map[*Unit]bool)
		for _, u := range n.dev.Units() {
			if !seen[u] {
				seen[u] = true
				reset(u)
			}
		}
	}
	if m.left.Load() > 1 {
		// Set while the caller's own count is held: whoever counts down to zero
		// sees the timer.
		d := n.dev.timeout
		if !m.patient {
			d = min(d, stalledTimeout)
		}
		m.timer = time.AfterFunc(d, m.fire)
	}
	m.release()
}
