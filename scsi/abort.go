package scsi

import "blockgate/backing"

// abort ends the tasks of the set that match: those that wait for other tasks or
// for a worker at once, running ones when the store lets go of them, for which m
// waits. through is the nexus that asks, if tasks of others are hit: these get
// TASK ABORTED or, without TAS, a unit attention (SAM-5 §5.6). It returns how
// many matched.
func (u *Unit) abort(m *management, match func(*Task) bool, through *Nexus) int {
	var hit int
	var ended *Task // chain of tasks to deliver, in order
	tail := &ended
	u.mu.Lock()
	tas := u.flags.Load()&unitTAS != 0
	for t := u.head; t != nil; {
		next := t.set.next
		if match(t) {
			hit++
			flags := flagAborted
			if through != nil && t.Nexus != through {
				if tas {
					flags |= flagTAS
				} else {
					t.itl.attn.raise(attnCommandsCleared)
				}
			}
			if u.abortLocked(t, m, flags) {
				*tail = t
				tail = &t.set.qnext
			}
		}
		t = next
	}
	u.releaseLocked()
	u.drainedLocked()
	u.mu.Unlock()
	for t := ended; t != nil; {
		next := t.set.qnext
		t.set.qnext = nil
		t.deliver()
		t = next
	}
	return hit
}

// abortLocked aborts one task. It reports whether the caller must deliver it.
func (u *Unit) abortLocked(t *Task, m *management, flags uint32) bool {
	if t.state.CompareAndSwap(phaseAdmitted, phaseAdmitted|flags) {
		// The transport still holds it: Run or Abandon will deliver it.
		t.set.ctx.cancel()
		u.unlinkLocked(t)
		u.stats.Aborted++
		return false
	}
	switch t.phase() {
	case phaseBlocked:
		u.nblocked--
	case phaseQueued:
		u.dropQueuedLocked(t)
	default: // running
		if t.state.Load()&flagAborted == 0 {
			t.state.Or(flags)
			t.set.ctx.cancel()
			u.quarantineLocked(t)
		}
		m.left.Add(1)
		m.patient = m.patient || !u.health.stalled && u.health.engine.State != backing.Stalled
		t.set.waiters = append(t.set.waiters, m)
		return false
	}
	t.state.Or(flags)
	t.set.ctx.cancel()
	u.unlinkLocked(t)
	t.setPhase(phaseDone)
	u.countLocked(t)
	return true
}

// quarantineLocked keeps the blocks of a write to itself until the store lets go.
func (u *Unit) quarantineLocked(t *Task) {
	if t.row.Access == AccessWrite && !t.set.exclusive {
		t.set.exclusive = true
		u.exclusive = append(u.exclusive, t)
		u.special.Add(1)
	}
}

// answered: the initiator has had its answer, and may use the tag again.
func (t *Task) answered() bool { return t.state.Load()&flagAnswered != 0 }

// hasTask reports whether a task that is not aborted matches.
func (u *Unit) hasTask(match func(*Task) bool) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for t := u.head; t != nil; t = t.set.next {
		if t.state.Load()&flagAborted == 0 && match(t) {
			return true
		}
	}
	return false
}

// reset is a logical unit reset condition (SAM-5 §6.3.3): every task ends,
// RESERVE(6/10), PREVENT and mode pages return to their defaults, and every
// nexus, the one that asked too, gets the attention.
func (u *Unit) reset(m *management, through *Nexus, a attention) {
	u.abort(m, func(*Task) bool { return true }, through)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.reserve6.Store(nil)
	for i := range u.itls {
		i.prevent = false
		i.copies = nil
	}
	u.mode = defaultModePages(u)
	u.applyModeLocked()
	u.raiseLocked(a, nil)
}
