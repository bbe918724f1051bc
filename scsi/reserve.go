package scsi

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"blockgate/scsi/pr"
	"blockgate/scsi/sense"
)

// maxReserveList bounds the parameter list of PERSISTENT RESERVE OUT, in bytes.
const maxReserveList = 64 << 10

// reserveCommands gives the rows of both kinds of reservations: RESERVE and
// RELEASE of SPC-2, which belong to the nexus and end with it, and the persistent
// ones of SPC-4 §5.13, which package pr keeps.
func reserveCommands() []Command {
	rows := []Command{
		{Name: "RESERVE(6)", Op: 0x16, SA: NoSA, Usage: []byte{0x16, 0, 0, 0, 0, 0},
			Types: withMedium, Reserve: ResOwn, Run: reserveUnit},
		{Name: "RELEASE(6)", Op: 0x17, SA: NoSA, Usage: []byte{0x17, 0, 0, 0, 0, 0},
			Types: withMedium, Reserve: ResOwn, Run: releaseUnit},
		{Name: "RESERVE(10)", Op: 0x56, SA: NoSA, Usage: []byte{0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0},
			Types: withMedium, Reserve: ResOwn, Run: reserveUnit},
		{Name: "RELEASE(10)", Op: 0x57, SA: NoSA, Usage: []byte{0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0},
			Types: withMedium, Reserve: ResOwn, Run: releaseUnit},
	}
	for sa, name := range []string{"READ KEYS", "READ RESERVATION", "REPORT CAPABILITIES", "READ FULL STATUS"} {
		rows = append(rows, Command{
			Name: "PERSISTENT RESERVE IN: " + name, Op: 0x5e, SA: sa,
			Usage: []byte{0x5e, byte(sa), 0, 0, 0, 0, 0, 0xff, 0xff, 0},
			Types: withMedium, Dir: DirIn, Reserve: ResAllowedPR,
			ALUA: InStandby, Run: persistentReserveIn,
		})
	}
	for sa, name := range []string{"REGISTER", "RESERVE", "RELEASE", "CLEAR", "PREEMPT", "PREEMPT AND ABORT",
		"REGISTER AND IGNORE EXISTING KEY", "REGISTER AND MOVE"} {
		rows = append(rows, Command{
			Name: "PERSISTENT RESERVE OUT: " + name, Op: 0x5f, SA: sa,
			Usage: []byte{0x5f, byte(sa), 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0},
			Types: withMedium, Dir: DirOut, Reserve: ResAllowedPR, ALUA: InStandby,
			Waits: true, OutLen: persistentReserveOutLen, Run: persistentReserveOut,
		})
	}
	return rows
}

// conflicts reports whether a reservation of another nexus forbids a command of
// this class.
func (u *Unit) conflicts(i *itl, r Reserve) bool {
	if r == ResAllowed || r == ResOwn {
		return false
	}
	if h := u.reserve6.Load(); h != nil && h != i {
		return true
	}
	switch r {
	case ResRead:
		return u.pr.Conflict(i.port, pr.Read)
	case ResWrite:
		return u.pr.Conflict(i.port, pr.Write)
	}
	return false
}

// conflictsAs is for handlers of rows with ResOwn whose class depends on the CDB.
func (t *Task) conflictsAs(r Reserve) bool { return t.unit.conflicts(t.itl, r) }

// reserveUnit is RESERVE(6) and RESERVE(10) of the whole unit (SPC-2 §7.21).
// Third-party and extent reservations are refused by the usage map.
func reserveUnit(t *Task) {
	u := t.unit
	switch u.pr.Compatible(t.itl.port) {
	case pr.Ignore:
		return
	case pr.Conflicts:
		t.Status = ReservationConflict
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if h := u.reserve6.Load(); h != nil && h != t.itl {
		t.Status = ReservationConflict
		return
	}
	if !t.itl.gone {
		u.reserve6.Store(t.itl)
	}
}

// releaseUnit is RELEASE(6) and RELEASE(10): GOOD also for who holds nothing.
func releaseUnit(t *Task) {
	if t.unit.pr.Compatible(t.itl.port) == pr.Conflicts {
		t.Status = ReservationConflict
		return
	}
	t.unit.reserve6.CompareAndSwap(t.itl, nil)
}

func persistentReserveIn(t *Task) {
	data, s := t.unit.pr.In(t.CDB[1] & 0x1f)
	if s != nil {
		t.Fail(*s)
		return
	}
	t.Respond(data, int64(binary.BigEndian.Uint16(t.CDB[7:])))
}

func persistentReserveOutLen(t *Task) (int64, *sense.Sense) {
	n := binary.BigEndian.Uint32(t.CDB[5:])
	if n > maxReserveList {
		s := sense.InvalidFieldInCDB(5, -1)
		return 0, &s
	}
	return int64(n), nil
}

func persistentReserveOut(t *Task) {
	u := t.unit
	if int64(len(t.Out)) < t.OutLen {
		t.Fail(sense.ParameterListLength())
		return
	}
	res := u.pr.Out(t.Context(), t.CDB[1]&0x1f, t.CDB[2], t.itl.port, t.Out)
	u.apply(res, t)
	switch {
	case res.Sense != nil:
		t.Fail(*res.Sense)
	case res.Conflict:
		t.Status = ReservationConflict
	}
}

// apply carries out what a change of the reservations means for others. cause is
// the command that made it, which is spared, or nil.
func (u *Unit) apply(res pr.Result, cause *Task) {
	var through *Nexus
	if cause != nil {
		through = cause.Nexus
	}
	if len(res.Abort) > 0 {
		// The answer need not wait for the store: what it still holds of the
		// aborted writes is quarantined.
		m := newManagement(func(TMFResult) {})
		u.abort(m, func(o *Task) bool { return o != cause && slices.Contains(res.Abort, o.itl.port) }, through)
		m.release()
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range u.itls {
		if slices.Contains(res.Abort, i.port) {
			i.prevent = false
		}
		for _, a := range res.Attentions {
			if a.Nexus == i.port {
				i.attn.raise(attentionOf(a.Sense))
			}
		}
	}
}

// attentionOf names the conditions that package pr asks for.
func attentionOf(s sense.Sense) attention {
	for a := attnReservationsReleased; a <= attnRegistrationsPreempted; a++ {
		if a.sense() == s {
			return a
		}
	}
	panic("scsi: package pr asks for " + s.String())
}

// PurgeReservations releases the persistent reservation and removes every
// registration, as CLEAR would, for when the hosts that hold them will not come
// back. The change is durable, if the reservations are kept, when it returns nil.
func (u *Unit) PurgeReservations(ctx context.Context) error {
	res := u.pr.Purge(ctx)
	u.apply(res, nil)
	if res.Sense != nil {
		return fmt.Errorf("scsi: unit %s: the reservations could not be purged: %v", u.name(), *res.Sense)
	}
	return nil
}

// Reservations gives the persistent reservation state for administrators.
func (u *Unit) Reservations() pr.Status { return u.pr.Status() }

// targetPorts lists the relative identifiers of the target ports by which the
// unit is reached now.
func (u *Unit) targetPorts() []uint16 {
	u.mu.Lock()
	defer u.mu.Unlock()
	var ids []uint16
	for i := range u.itls {
		ids = append(ids, i.port.RelPort)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// initiatorPorts lists the ports of an initiator that is logged in.
func (u *Unit) initiatorPorts(name string) []pr.Port {
	u.mu.Lock()
	defer u.mu.Unlock()
	var ports []pr.Port
	for i := range u.itls {
		if p := i.port.Initiator; p.Name == name && !slices.Contains(ports, p) {
			ports = append(ports, p)
		}
	}
	return ports
}
