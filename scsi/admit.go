package scsi

import (
	"math/bits"

	"blockgate/scsi/sense"
)

// Admit takes a task into the device server: it finds the unit and the command,
// makes the checks that need no data-out, and puts the task into the unit's task
// set. If it returns true the transport brings min(t.OutLen, t.MaxOut) bytes of
// data-out and calls Run, or else Abandon. If it returns false the task is over
// and TaskDone has been called. It neither blocks nor, as long as nothing is
// wrong, allocates.
//
// The checks come in this order: the unit exists, the command exists, a unit
// attention is pending, the target port does not give access now, the unit is
// reserved, it is not ready, a bit of the CDB
// is not understood, the medium is protected, the data-out length is wrong.
func (n *Nexus) Admit(t *Task) bool {
	t.Nexus = n
	t.Status = Good
	t.OutLen = 0
	i := n.find(t.LUN)
	u := i.unit
	t.itl, t.unit = i, u
	if s, st := t.check(i, u); st != Good {
		if st == CheckCondition {
			t.Fail(s)
		} else {
			t.Status = st
		}
		t.refuse()
		return false
	}
	switch st := u.enqueue(t); st {
	case Good:
		return true
	case CheckCondition:
		t.Fail(sense.LUNotSupported())
	default:
		t.Status = st
	}
	t.refuse()
	return false
}

// refuse ends a task that never was in a task set.
func (t *Task) refuse() {
	t.unit.mu.Lock()
	t.itl.stats.count(t)
	t.unit.mu.Unlock()
	t.state.Store(phaseDone)
	t.Transport.TaskDone(t)
}

func (t *Task) check(i *itl, u *Unit) (sense.Sense, Status) {
	row, s, ok := u.table.find(u, t.CDB)
	if !ok {
		return s, CheckCondition
	}
	t.row = row
	if i.attn.any() && !row.NoUA {
		if s, ok := i.takeAttention(); ok {
			return s, CheckCondition
		}
	}
	if st := i.accessState(); st > ActiveNonOptimized && !row.runsIn(st) {
		return st.sense(), CheckCondition
	}
	if row.Reserve != ResAllowed && u.conflicts(i, row.Reserve) {
		return s, ReservationConflict
	}
	flags := u.flags.Load()
	if s, out := u.outOfService(row, flags); out {
		return s, CheckCondition
	}
	if flags&(unitOffline|unitEjected) != 0 && row.needsMedium() {
		return u.notReady(flags), CheckCondition
	}
	if flags&unitRefuses != 0 {
		if s, st := u.refusal(row); st != Good {
			return s, st
		}
	}
	// Reservations made now would be made of a unit that is about to be replaced.
	if flags&unitPending != 0 && !row.runsIn(Unavailable) {
		return u.notReady(flags), CheckCondition
	}
	if s, ok := row.checkCDB(t.CDB); !ok {
		return s, CheckCondition
	}
	if row.Access == AccessWrite && flags&(unitReadOnly|unitSWP) != 0 {
		if flags&unitReadOnly != 0 {
			return sense.WriteProtected(), CheckCondition
		}
		return sense.SoftwareWriteProtected(), CheckCondition
	}
	if t.Attr >= ACA {
		// There is never an ACA condition that such a task could belong to.
		return sense.InvalidMessage(), CheckCondition
	}
	if row.OutLen != nil {
		n, s := row.OutLen(t)
		if s != nil {
			return *s, CheckCondition
		}
		t.OutLen = n
		if row.Short != nil && t.MaxOut < n && t.MaxOut%int64(u.BlockSize()) != 0 {
			t.row = row.Short
		}
	}
	return s, Good
}

// needsMedium: the command cannot be done by a unit that is not ready. MODE
// SELECT and START STOP UNIT, which write the cache back at most, can.
func (c *Command) needsMedium() bool {
	return c.Access != AccessNone || c.Medium && !c.Waits || c.Op == opTestUnitReady ||
		c.Op == opReadCapacity10 || c.Op == opServiceActionIn16
}

func (u *Unit) notReady(flags uint32) sense.Sense {
	if flags&unitPending != 0 {
		return sense.NotReadyBecoming()
	}
	if flags&unitEjected != 0 || u.cfg.Load().Removable {
		return sense.MediumNotPresent()
	}
	return sense.NotReadyNoCause()
}

// checkCDB finds bits that the command does not know (SPC-4 §4.3.3). NACA and
// the obsolete LINK bit are refused also where reserved bits are ignored.
func (c *Command) checkCDB(cdb []byte) (sense.Sense, bool) {
	last := len(c.Usage) - 1
	if c.Lenient {
		if cdb[last]&0x05 != 0 {
			return sense.InvalidFieldInCDB(last, bits.Len8(cdb[last]&0x05)-1), false
		}
		return sense.Sense{}, true
	}
	for i := 1; i <= last; i++ {
		bad := cdb[i] &^ c.Usage[i]
		if i == 1 && c.SA != NoSA {
			bad &= 0xe0 // the service action chose this row
		}
		if bad != 0 {
			return sense.InvalidFieldInCDB(i, bits.Len8(bad)-1), false
		}
	}
	return sense.Sense{}, true
}
