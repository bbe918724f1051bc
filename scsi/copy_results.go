package scsi

import (
	"encoding/binary"
	"slices"
	"sync/atomic"

	"blockgate/scsi/sense"
)

// maxCopyRecords is how many copies of one I_T_L nexus are remembered after
// their end.
const maxCopyRecords = 16

// copyRecord is what is known of one copy: its progress while it runs, and its
// results afterwards, until they have been read, the list identifier is used
// again, the unit is reset or the nexus is lost.
type copyRecord struct {
	id uint32 // the list identifier
	sa byte   // service action of the command

	moved    atomic.Uint64 // bytes written, from the beginning on
	segments atomic.Uint32 // processed, with the one being processed

	// Under the mutex of the unit that the command was sent to.
	op       *copyOp // nil when it has ended
	state    copyState
	status   Status
	sense    []byte
	token    []byte // created by POPULATE TOKEN
	noStatus bool   // RECEIVE COPY STATUS(LID1) has been answered
	noSense  bool   // RECEIVE COPY FAILURE DETAILS(LID1) has
}

// copyState is the COPY OPERATION STATUS (SPC-4 table 249).
type copyState byte

const (
	copyDone       copyState = 0x01
	copyFailed     copyState = 0x02
	copyPartial    copyState = 0x03
	copyForeground copyState = 0x11
	copyTerminated copyState = 0x60
)

// beginCopy makes a task a copy: one of a bounded number, known by its list
// identifier. nil: the task has ended.
func beginCopy(t *Task, id uint32, keep bool) *copyOp {
	u := t.unit
	if !u.copies.enter() {
		t.Status = Busy
		return nil
	}
	op := &copyOp{t: t}
	op.record = &copyRecord{id: id, sa: t.CDB[1] & 0x1f, op: op, state: copyForeground}
	if keep && !op.remember() {
		u.copies.leave()
		t.Fail(sense.OperationInProgress())
		return nil
	}
	u.lendWorkers(1)
	t.delegate()
	op.watch()
	return op
}

// remember adds the record to the nexus's, in place of an older one with the same
// list identifier; false if that one still runs.
func (op *copyOp) remember() bool {
	u, i, r := op.t.unit, op.t.itl, op.record
	u.mu.Lock()
	defer u.mu.Unlock()
	var ended int
	for _, o := range i.copies {
		if o.id == r.id && o.op != nil {
			return false
		}
		if o.op == nil {
			ended++
		}
	}
	i.copies = slices.DeleteFunc(i.copies, func(o *copyRecord) bool {
		if o.op != nil || o.id != r.id && ended < maxCopyRecords {
			return false
		}
		ended--
		return true
	})
	i.copies = append(i.copies, r)
	return true
}

// end records how the copy ended. It is called before the task's status goes out,
// so who has seen the status finds the results.
func (op *copyOp) end() {
	op.unhook()
	t, r := op.t, op.record
	u := t.unit
	aborted := t.state.Load()&flagAborted != 0
	if op.isStopped() && !aborted && t.Status != Good {
		t.Fail(sense.CopyCleared()) // by COPY OPERATION ABORT
	}
	u.lendWorkers(-1)
	u.copies.leave()
	u.mu.Lock()
	defer u.mu.Unlock()
	r.op = nil
	r.status = t.Status
	r.sense = slices.Clone(t.Sense)
	switch {
	case aborted:
		r.state, r.status, r.sense = copyTerminated, TaskAborted, nil
	case t.Status != Good:
		r.state = copyFailed
	default:
		r.state, r.token = copyDone, op.token
	}
	if t.Status == CheckCondition && r.sa == saWriteUsingToken && r.moved.Load() > 0 {
		r.state = copyPartial
	}
}

// copyOperationAbort is COPY OPERATION ABORT (SPC-4 §6.3). The command that is
// aborted ends when no store has its blocks any more.
func copyOperationAbort(t *Task) {
	u := t.unit
	u.mu.Lock()
	var op *copyOp
	found := false
	for _, r := range t.itl.copies {
		if r.id == copyListID(t.CDB) {
			op, found = r.op, true
		}
	}
	u.mu.Unlock()
	switch {
	case op != nil:
		op.stop()
	case !found:
		t.Fail(sense.InvalidFieldInCDB(2, -1))
	}
}

// withRecord calls f for the record of the CDB's list identifier, if there is one
// and f finds it fit. f runs under the unit's mutex and gives the parameter data.
func withRecord(t *Task, f func(r *copyRecord) ([]byte, bool)) {
	u, id := t.unit, copyListID(t.CDB)
	alloc := int64(binary.BigEndian.Uint32(t.CDB[10:]))
	var data []byte
	var ok bool
	u.mu.Lock()
	for _, r := range t.itl.copies {
		if r.id == id {
			data, ok = f(r)
			break
		}
	}
	u.mu.Unlock()
	if !ok {
		t.Fail(sense.InvalidFieldInCDB(2, -1))
		return
	}
	t.Respond(data, alloc)
}

// receiveCopyStatus1 is RECEIVE COPY STATUS(LID1) (SPC-4 §6.25). The result of a
// copy that has ended is told once.
func receiveCopyStatus1(t *Task) {
	withRecord(t, func(r *copyRecord) ([]byte, bool) {
		if r.noStatus {
			return nil, false
		}
		b := make([]byte, 12)
		b[3] = 8
		switch {
		case r.op != nil: // in progress
		case r.state == copyDone:
			b[4], r.noStatus = 0x01, true
		default:
			b[4], r.noStatus = 0x02, true
		}
		binary.BigEndian.PutUint16(b[5:], uint16(r.segments.Load()))
		n, units := r.moved.Load(), byte(0)
		for n > 1<<32-1 { // bytes, KiB, MiB, …
			n, units = n>>10, units+1
		}
		b[7] = units
		binary.BigEndian.PutUint32(b[8:], uint32(n))
		return b, true
	})
}

// receiveCopyFailure is RECEIVE COPY FAILURE DETAILS(LID1) (SPC-4 §6.23), also
// told once.
func receiveCopyFailure(t *Task) {
	withRecord(t, func(r *copyRecord) ([]byte, bool) {
		if r.op != nil || r.noSense {
			return nil, false
		}
		if r.state == copyDone {
			return make([]byte, 4), true
		}
		r.noSense = true
		b := make([]byte, 60, 60+len(r.sense))
		b[56] = byte(r.status)
		binary.BigEndian.PutUint16(b[58:], uint16(len(r.sense)))
		b = append(b, r.sense...)
		binary.BigEndian.PutUint32(b, uint32(len(b)-4))
		return b, true
	})
}

// statusLID4 is the parameter data that RECEIVE COPY STATUS(LID4) and RECEIVE ROD
// TOKEN INFORMATION begin with (SPC-4 §6.24), with AVAILABLE DATA left empty.
func (r *copyRecord) statusLID4(u *Unit) []byte {
	be := binary.BigEndian
	b := make([]byte, 32, 32+sense.MaxLen)
	b[4], b[5] = r.sa, byte(r.state)
	be.PutUint32(b[8:], 0xfffffffe)
	if r.op != nil {
		be.PutUint32(b[8:], 1000) // milliseconds to wait
	}
	moved := r.moved.Load()
	if r.sa != saExtendedCopy {
		b[15] = 0xf1 // blocks
		moved >>= u.blockShift
	}
	be.PutUint64(b[16:], moved)
	if r.sa == saExtendedCopy {
		be.PutUint16(b[24:], uint16(r.segments.Load()))
	}
	if r.op == nil {
		b[12] = byte(r.status)
		b = append(b, r.sense...)
		b[14] = byte(len(r.sense))
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
		b[13] = byte(len(b) - 32)
	}
	return b
}

func receiveCopyStatus4(t *Task) {
	withRecord(t, func(r *copyRecord) ([]byte, bool) {
		b := r.statusLID4(t.unit)
		binary.BigEndian.PutUint32(b, uint32(len(b)-4))
		return b, true
	})
}

// receiveTokenInformation is RECEIVE ROD TOKEN INFORMATION (SPC-4 §6.26, SBC-4
// §5.25). A token that has been transferred whole is not told again.
func receiveTokenInformation(t *Task) {
	room := min(t.MaxIn, int64(binary.BigEndian.Uint32(t.CDB[10:])))
	withRecord(t, func(r *copyRecord) ([]byte, bool) {
		be := binary.BigEndian
		b := r.statusLID4(t.unit)
		if r.token == nil {
			b = append(b, 0, 0, 0, 0)
		} else {
			b = be.AppendUint32(b, uint32(2+len(r.token)))
			b = append(b, 0, 0)
			b = append(b, r.token...)
		}
		be.PutUint32(b, uint32(len(b)-4))
		if room >= int64(len(b)) {
			r.token = nil
		}
		return b, true
	})
}
