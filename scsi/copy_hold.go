package scsi

import (
	"context"
	"encoding/binary"
	"slices"
	"sync"

	"blockgate/scsi/sense"
)

// copyOp is one third-party copy command while it runs.
type copyOp struct {
	t      *Task
	record *copyRecord // where progress is told
	unhook func() bool // ends the watch on the task's context
	token  []byte      // created; told when the copy has ended well

	mu      sync.Mutex
	stopped bool // no more blocks are to be held: aborted
	held    []*copyHold
}

// stop ends what the copy does on all units: stores are told to give up, and
// writes that do not are quarantined. Any goroutine may call it.
func (op *copyOp) stop() {
	op.mu.Lock()
	op.stopped = true
	held := slices.Clone(op.held)
	op.mu.Unlock()
	for _, h := range held {
		h.abort()
	}
}

// abort ends the hold as task management would.
func (h *copyHold) abort() {
	m := newManagement(func(TMFResult) {})
	h.unit.abort(m, func(t *Task) bool { return t == &h.Task }, nil)
	m.release()
}

func (op *copyOp) isStopped() bool {
	op.mu.Lock()
	defer op.mu.Unlock()
	return op.stopped
}

// copyAccess is a unit as a copy reaches it.
type copyAccess struct {
	unit *Unit
	// owner is the I_T_L nexus whose reservations count; nil for a unit that has
	// been named by a descriptor: there it is any nexus that the initiator has
	// with the unit at the time.
	owner *itl
	// descriptor is the byte of the parameter list where the unit is named, 0 if
	// it is not.
	descriptor int
}

// sameHost: both nexuses are of one initiator.
func (n *Nexus) sameHost(o *Nexus) bool {
	return n.cfg.Initiator.Name == o.cfg.Initiator.Name && (n.dev == o.dev || n.cfg.Host == o.cfg.Host)
}

// nexusesOf gives the I_T_L nexuses by which the initiator of n sees the unit,
// n's own first.
func (u *Unit) nexusesOf(n *Nexus) []*itl {
	u.mu.Lock()
	defer u.mu.Unlock()
	var own, other []*itl
	for i := range u.itls {
		switch {
		case i.nexus == n:
			own = append(own, i)
		case n.sameHost(i.nexus):
			other = append(other, i)
		}
	}
	return append(own, other...)
}

// open makes the access to a unit. An initiator copies only from and to units
// that it sees: a copy must not be a way around access rules and LUN masks.
func (op *copyOp) open(u *Unit, owner *itl) *copyAccess {
	if owner == nil && len(u.nexusesOf(op.t.Nexus)) == 0 {
		return nil
	}
	return &copyAccess{unit: u, owner: owner}
}

// admits asks the reservations of the unit and the states of its port groups
// whether the copy may access it, and through which nexus. With a status other
// than Good it may not; s is for CHECK CONDITION.
func (a *copyAccess) admits(n *Nexus, r Reserve) (via *itl, s sense.Sense, st Status) {
	if a.owner != nil {
		if a.unit.conflicts(a.owner, r) {
			return nil, s, ReservationConflict
		}
		return a.owner, s, Good
	}
	s, st = sense.LUNotSupported(), CheckCondition // the initiator no longer sees the unit
	for _, i := range a.unit.nexusesOf(n) {
		switch state := i.accessState(); {
		case state > ActiveNonOptimized:
			s, st = state.sense(), CheckCondition
		case a.unit.conflicts(i, r):
			st = ReservationConflict
		default:
			return i, s, Good
		}
	}
	return nil, s, st
}

// The rows of holds. Except for the blocks they are like READ(16) and WRITE(16),
// and their CDBs are laid out like these.
var (
	holdRead = &Command{Name: "copy: READ", Dir: DirIn, Access: AccessRead, Reserve: ResRead,
		Medium: true, Range: rangeOfCDB}
	holdWrite = &Command{Name: "copy: WRITE", Dir: DirOut, Access: AccessWrite, Reserve: ResWrite,
		Medium: true, Range: rangeOfCDB}
	// holdMerge writes a part of a block, whose rest must not change meanwhile.
	holdMerge = &Command{Name: "copy: WRITE", Dir: DirOut, Access: AccessWrite, Reserve: ResWrite,
		Medium: true, Exclusive: true, Range: rangeOfCDB}
	// holdStill waits for writes that have started.
	holdStill = &Command{Name: "copy: POPULATE", Access: AccessRead, Reserve: ResRead,
		Medium: true, Exclusive: true, Range: rangeOfCDB}
)

// copyHold is a task by which a copy holds blocks of a unit: the command that
// SPC-4 has the copy manager send there. It is in the unit's task set, so it
// waits for COMPARE AND WRITE and for quarantined writes and is waited for, it is
// ended by resets, and it is quarantined when it does not let go.
//
// It differs from other tasks in two points (setEntry.granted). It runs on the
// copy's goroutine and takes no worker. And it waits only for tasks that have
// started, never for ORDERED tasks and such as wait themselves: these may wait
// for the very copy, or for one in the other direction. Two units that copy to
// each other would hold each other up for ever. With only started tasks to wait
// for there are no cycles, provided that who waits holds nothing that the other
// can wait for: a copy that holds source blocks waits for destination blocks as
// a plain write (holdWrite), which waits for exclusive tasks only, and an
// exclusive hold (holdMerge, holdStill) is taken with nothing else held.
type copyHold struct {
	Task
	op   *copyOp
	cdb  [16]byte
	done chan struct{} // closed by TaskDone
	held bool
}

// Answer implements Answerer: when a store keeps a piece, it is the copy that the
// initiator waits for.
func (h *copyHold) Answer(*Task, Status, []byte) { h.op.t.giveUp() }

// TaskDone ends the hold for the task set.
func (h *copyHold) TaskDone(*Task) { close(h.done) }

// hold takes nblocks blocks from lba for an access of the row's kind, and waits
// until it has them. The hold is to be released in any case; ok tells whether the
// blocks are held.
func (op *copyOp) hold(a *copyAccess, row *Command, lba, nblocks uint64) *copyHold {
	h := &copyHold{op: op, done: make(chan struct{})}
	h.cdb[0] = 0x88
	binary.BigEndian.PutUint64(h.cdb[2:], lba)
	binary.BigEndian.PutUint32(h.cdb[10:], uint32(nblocks))
	h.Nexus, h.CDB, h.Transport = op.t.Nexus, h.cdb[:], h
	h.row, h.unit = row, a.unit
	h.set.granted = make(chan struct{})
	via, s, st := a.admits(op.t.Nexus, row.Reserve)
	switch {
	case st == CheckCondition:
		h.Fail(s)
		return h
	case st != Good:
		h.Status = st
		return h
	case !h.checkMedium(lba, nblocks):
		return h
	}
	// The hold stands in the task set for the nexus that gives it access, so that
	// PREEMPT AND ABORT finds it, but is not the nexus's own task: the initiator
	// gets no attention for a command that it did not send there.
	h.itl = &itl{nexus: op.t.Nexus, unit: a.unit, lun: via.lun, port: via.port}
	op.mu.Lock()
	if op.stopped {
		op.mu.Unlock()
		h.Status = TaskAborted
		return h
	}
	op.held = append(op.held, h)
	op.mu.Unlock()
	switch st := a.unit.enqueue(&h.Task); st {
	case Good:
		if op.isStopped() || a.unit.conflicts(via, row.Reserve) {
			h.abort() // stop, or PREEMPT AND ABORT, may have looked for it before it was in the set
		}
		if h.held = h.wait(); h.held {
			h.late() // a sanitize operation may have begun while it waited
			a.unit.mu.Lock()
			a.unit.enterLocked(&h.Task)
			a.unit.mu.Unlock()
		}
	case CheckCondition:
		h.Fail(sense.LUNotSupported())
	default:
		h.Status = st
	}
	return h
}

// checkMedium makes the checks that Admit makes for a command.
func (h *copyHold) checkMedium(lba, nblocks uint64) bool {
	u := h.unit
	flags := u.flags.Load()
	if s, out := u.outOfService(h.row, flags); out {
		h.Fail(s)
		return false
	}
	switch {
	case flags&(unitOffline|unitEjected) != 0:
		h.Fail(u.notReady(flags))
	case h.row.Access == AccessWrite && flags&unitReadOnly != 0:
		h.Fail(sense.WriteProtected())
	case h.row.Access == AccessWrite && flags&unitSWP != 0:
		h.Fail(sense.SoftwareWriteProtected())
	default:
		if s := checkRange(u, lba, nblocks); s != nil {
			h.Fail(*s)
			return false
		}
		return true
	}
	return false
}

// wait is Task.Run up to the point where a handler would be called.
func (h *copyHold) wait() bool {
	t := &h.Task
	if !t.state.CompareAndSwap(phaseAdmitted, phaseRunning) {
		t.endAborted()
		return false
	}
	if t.unit.special.Load() == 0 || t.unit.start(t) {
		return true
	}
	select {
	case <-t.set.granted:
		return true
	case <-h.done:
		return false
	}
}

// ok tells whether the blocks are held and nothing has failed.
func (h *copyHold) ok() bool {
	return h.held && h.Status == Good && h.state.Load()&flagAborted == 0
}

// release lets the blocks go, and gives what failed, nil if nothing did.
func (h *copyHold) release() *copyFault {
	op := h.op
	op.mu.Lock()
	op.held = slices.DeleteFunc(op.held, func(o *copyHold) bool { return o == h })
	op.mu.Unlock()
	f := &copyFault{status: h.Status, source: h.row.Access == AccessRead}
	switch {
	case h.state.Load()&flagAborted != 0:
		f.status = TaskAborted
	case h.Status == CheckCondition:
		f.sense = slices.Clone(h.Sense)
	}
	if h.held {
		h.finish()
		<-h.done // Answer may be at the copy's own task
	}
	if f.status == Good {
		return nil
	}
	return f
}

// copyFault is how a copy source or destination failed.
type copyFault struct {
	source bool
	status Status
	sense  []byte       // with CHECK CONDITION
	reason *sense.Sense // set if it is the copy manager that gives up
}

// watch has the copy stopped when its task is aborted.
func (op *copyOp) watch() { op.unhook = context.AfterFunc(op.t.Context(), op.stop) }
