package scsi

import (
	"context"
	"errors"
	"fmt"
)

// UnitStats are counters since the unit was made.
type UnitStats struct {
	Commands                uint64 // that passed the checks of Admit
	Reads, Writes           uint64 // commands that moved data from or to the medium
	ReadBytes, WrittenBytes uint64
	Errors                  uint64 // ended with CHECK CONDITION
	Aborted                 uint64
	Tasks                   int // in the task set now
	Stuck                   int // of them aborted ones that the store still holds
	Workers                 int // goroutines that run tasks now
}

// Stats takes a snapshot.
func (u *Unit) Stats() UnitStats {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.stats
	s.Tasks, s.Workers = u.ntasks, u.mediumWork.workers+u.controlWork.workers
	for t := u.head; t != nil; t = t.set.next {
		if t.state.Load()&flagAborted != 0 {
			s.Stuck++
		}
	}
	return s
}

// countLocked adds a finished task to the counters.
func (u *Unit) countLocked(t *Task) {
	t.itl.stats.count(t)
	u.stats.Commands++
	switch {
	case t.answered():
		u.stats.Errors++
	case t.state.Load()&flagAborted != 0:
		u.stats.Aborted++
	case t.Status == CheckCondition:
		u.stats.Errors++
	case t.row.Access == AccessNone || !t.row.Medium:
	case t.row.Dir == DirIn:
		u.stats.Reads++
		u.stats.ReadBytes += uint64(len(t.In))
	case t.row.Dir == DirOut && t.row.Access == AccessWrite:
		u.stats.Writes++
		u.stats.WrittenBytes += uint64(len(t.Out))
	}
	if t.row.Access == AccessWrite {
		u.allocationChangedLocked()
	}
}

// Busy reports whether tasks are in the task set.
func (u *Unit) Busy() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.ntasks > 0
}

// ErrStuck: tasks were still inside the store when Close gave up on them.
var ErrStuck = errors.New("the store still holds tasks")

// Close takes no new tasks (they get LOGICAL UNIT NOT SUPPORTED) and waits for
// those that run; sanitize and format operations are cut short. When ctx ends first it aborts them; the error then wraps
// ErrStuck and says how many the store still holds. It touches the store no more
// once Close has returned nil; after an error only the stuck calls do. The store
// is not closed. Close may be called again to go on waiting.
func (u *Unit) Close(ctx context.Context) error {
	if u.copies != nil {
		u.copies.remove(u)
	}
	u.mu.Lock()
	if !u.closed {
		u.closed = true
		u.drained = make(chan struct{})
		u.special.Add(1) // so that tasks that are still to be Run look
		if op := u.operation.Load(); op != nil {
			op.cancel()
		}
		u.stall.probe.end()
	}
	u.drainedLocked()
	done := u.drained
	u.mu.Unlock()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	m := newManagement(func(TMFResult) {})
	u.abort(m, func(t *Task) bool { return t.phase() != phaseAdmitted }, nil)
	m.release()
	select {
	case <-done:
		return nil
	default:
		return fmt.Errorf("scsi: unit %s: %w: %d", u.name(), ErrStuck, u.stuckCalls())
	}
}

// stuckCalls is how many tasks and probes the store still has.
func (u *Unit) stuckCalls() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.ntasks + u.stall.probe.inside
}

// drainedLocked tells Close when no task can reach the store any more. Tasks that
// wait for Run cannot: Run refuses them.
func (u *Unit) drainedLocked() {
	if !u.closed || u.operation.Load() != nil || u.meter.asking || u.stall.probe.inside > 0 {
		return
	}
	for t := u.head; t != nil; t = t.set.next {
		if t.phase() != phaseAdmitted {
			return
		}
	}
	select {
	case <-u.drained:
	default:
		close(u.drained)
	}
}
