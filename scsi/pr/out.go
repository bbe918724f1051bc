package pr

import (
	"context"
	"encoding/binary"

	"blockgate/scsi/sense"
)

// Service actions of PERSISTENT RESERVE OUT (SPC-4 table 213).
const (
	Register                     = 0x00
	Reserve                      = 0x01
	Release                      = 0x02
	Clear                        = 0x03
	Preempt                      = 0x04
	PreemptAndAbort              = 0x05
	RegisterAndIgnoreExistingKey = 0x06
	RegisterAndMove              = 0x07
)

// MaxParameterList is the longest PARAMETER LIST LENGTH, in bytes, that is taken:
// room for more TransportIDs than there can be registrations of usual names. A
// caller refuses more with PARAMETER LIST LENGTH ERROR before data is asked for.
const MaxParameterList = 256 << 10

// Result is what a PERSISTENT RESERVE OUT command comes to. The zero value is GOOD
// with nothing else to do. Attentions and Abort are empty unless it is GOOD.
type Result struct {
	Conflict bool         // RESERVATION CONFLICT
	Sense    *sense.Sense // CHECK CONDITION, if not nil
	// Attentions are the unit attention conditions to establish. A nexus that is
	// not logged in at the moment needs none: it gets another one at login. The
	// nexus that sent the command is never among them.
	Attentions []Attention
	// Abort are the nexuses all of whose commands on this unit PREEMPT AND ABORT
	// aborts, and whose prevention of medium removal ends (SPC-4 §5.13.11.2.6).
	// The sender may be among them if it preempted its own key; the PERSISTENT
	// RESERVE OUT command itself is always spared.
	Abort []Nexus
}

// Attention is a unit attention condition for one nexus.
type Attention struct {
	Nexus Nexus
	Sense sense.Sense
}

func (r *Result) attention(n Nexus, s sense.Sense) {
	r.Attentions = append(r.Attentions, Attention{n, s})
}

// Out performs a PERSISTENT RESERVE OUT command that came by n. scopeType is byte
// 2 of the CDB, list the data-out, as long as PARAMETER LIST LENGTH says or
// shorter if less came; it is not kept. Commands are performed one at a time,
// each wholly or not at all; with APTPL set the state is durable when Out returns
// GOOD. It may wait for the Store, until ctx ends. An error from the Store leaves
// the reservation as it was and gives a sense with HARDWARE ERROR.
//
// The caller establishes Attentions before it sends the status.
func (r *Reservations) Out(ctx context.Context, serviceAction, scopeType byte, n Nexus, list []byte) Result {
	if serviceAction > RegisterAndMove {
		return fail(sense.InvalidFieldInCDB(1, 4))
	}
	q := request{r: r, sa: serviceAction, scope: scopeType >> 4, typ: Type(scopeType & 0x0f), nexus: n}
	if s := q.parse(list); s != nil {
		return Result{Sense: s}
	}
	if err := r.lock(ctx); err != nil {
		return fail(sense.InternalFailure())
	}
	defer r.unlock()
	q.cur = r.cur.Load()
	next, res := q.perform()
	if next != nil {
		if s := r.commit(ctx, next); s != nil {
			return Result{Sense: s}
		}
	}
	return res
}

// Purge releases the reservation and removes all registrations, as CLEAR from
// nowhere would: for an administrator, when the hosts that are registered will
// not come back. Result is as of Out.
func (r *Reservations) Purge(ctx context.Context) Result {
	if err := r.lock(ctx); err != nil {
		return fail(sense.InternalFailure())
	}
	defer r.unlock()
	q := request{cur: r.cur.Load()}
	next, res := q.clear()
	if s := r.commit(ctx, next); s != nil {
		return Result{Sense: s}
	}
	return res
}

var conflict = Result{Conflict: true}

func fail(s sense.Sense) Result { return Result{Sense: &s} }

// badField points into the parameter list.
func badField(byteN, bit int) Result { return fail(sense.InvalidFieldInParameterList(byteN, bit)) }

// request is one PERSISTENT RESERVE OUT command on its way. Its methods named for
// service actions give the state that is to follow, nil if nothing changes, and
// the command's result.
type request struct {
	r     *Reservations
	cur   *state
	nexus Nexus

	sa    byte
	scope byte
	typ   Type

	rk, sark       uint64 // RESERVATION KEY, SERVICE ACTION RESERVATION KEY
	specIPT        bool
	allTgPt        bool
	aptpl          bool
	unreg          bool   // REGISTER AND MOVE only
	relPort        uint16 // REGISTER AND MOVE only
	transportIDs   []byte // as many as the length field before them says
	transportIDsAt int    // their offset in the list
}

// parse takes the parameter list apart (SPC-4 tables 214, 215 and 217).
func (q *request) parse(list []byte) *sense.Sense {
	lengthError := sense.ParameterListLength()
	if len(list) < 24 || len(list) > MaxParameterList {
		return &lengthError
	}
	q.rk = binary.BigEndian.Uint64(list)
	q.sark = binary.BigEndian.Uint64(list[8:])
	if q.sa == RegisterAndMove {
		q.unreg = list[17]&0x02 != 0
		q.aptpl = list[17]&0x01 != 0
		q.relPort = binary.BigEndian.Uint16(list[18:])
		q.transportIDsAt = 24
	} else {
		q.specIPT = list[20]&0x08 != 0
		q.allTgPt = list[20]&0x04 != 0
		q.aptpl = list[20]&0x01 != 0
		if !q.specIPT {
			if len(list) != 24 {
				return &lengthError
			}
			return nil
		}
		if q.sa != Register {
			return nil // refused once the key has been verified
		}
		q.transportIDsAt = 28
	}
	if len(list) < q.transportIDsAt {
		return &lengthError
	}
	n := binary.BigEndian.Uint32(list[q.transportIDsAt-4:])
	rest := list[q.transportIDsAt:]
	if uint64(n) > uint64(len(rest)) {
		return &lengthError
	}
	q.transportIDs = rest[:n]
	return nil
}

// perform verifies the reservation key and goes on to the service action. The
// key comes first, "regardless of the SERVICE ACTION and SCOPE field values"
// (SPC-4 §6.16.3).
func (q *request) perform() (*state, Result) {
	if q.sa == Register || q.sa == RegisterAndIgnoreExistingKey {
		return q.register()
	}
	if key := q.cur.keys[q.nexus]; key == 0 || key != q.rk {
		return nil, conflict
	}
	if q.specIPT {
		return nil, badField(20, 3)
	}
	switch q.sa {
	case Reserve:
		return q.reserve()
	case Release:
		return q.release()
	case Clear:
		return q.clear()
	case RegisterAndMove:
		return q.move()
	}
	return q.preempt()
}

// badScopeType checks the fields of a CDB that asks for a reservation.
func (q *request) badScopeType() *sense.Sense {
	switch {
	case q.scope != 0:
		s := sense.InvalidFieldInCDB(2, 7)
		return &s
	case !q.typ.Valid():
		s := sense.InvalidFieldInCDB(2, 3)
		return &s
	}
	return nil
}

// reserve: SPC-4 §5.13.9.
func (q *request) reserve() (*state, Result) {
	if s := q.badScopeType(); s != nil {
		return nil, Result{Sense: s}
	}
	if q.cur.typ != None {
		if q.cur.holds(q.nexus) && q.cur.typ == q.typ {
			return nil, Result{}
		}
		return nil, conflict
	}
	next := q.cur.clone()
	next.reserve(q.nexus, q.typ)
	return next, Result{}
}

// release: SPC-4 §5.13.11.2.2.
func (q *request) release() (*state, Result) {
	if !q.cur.holds(q.nexus) {
		if q.scope != 0 {
			return nil, fail(sense.InvalidFieldInCDB(2, 7))
		}
		return nil, Result{}
	}
	if q.scope != 0 || q.typ != q.cur.typ {
		return nil, fail(sense.InvalidReleaseOfPR())
	}
	next := q.cur.clone()
	next.release()
	var res Result
	if q.cur.typ.RegistrantsOnly() || q.cur.typ.AllRegistrants() {
		q.tellOthers(&res, next.order, sense.ReservationsReleased())
	}
	return next, res
}

// clear: SPC-4 §5.13.11.2.7. SCOPE and TYPE are ignored.
func (q *request) clear() (*state, Result) {
	next := newState()
	next.gen, next.aptpl = q.cur.gen+1, q.cur.aptpl
	var res Result
	q.tellOthers(&res, q.cur.order, sense.ReservationsPreempted())
	return next, res
}

// tellOthers gives the unit attention to each nexus but the sender.
func (q *request) tellOthers(res *Result, nexuses []Nexus, s sense.Sense) {
	for _, n := range nexuses {
		if n != q.nexus {
			res.attention(n, s)
		}
	}
}

// preempt: PREEMPT and PREEMPT AND ABORT, SPC-4 §5.13.11.2.4 to .6 and table 72.
func (q *request) preempt() (*state, Result) {
	cur := q.cur
	everybody := cur.typ.AllRegistrants() && q.sark == 0
	if q.sark == 0 && !everybody {
		return nil, badField(8, -1)
	}
	takeOver := everybody || cur.typ != None && !cur.typ.AllRegistrants() && cur.keys[cur.holder] == q.sark
	if takeOver {
		if s := q.badScopeType(); s != nil {
			return nil, Result{Sense: s}
		}
	}
	var named []Nexus
	for _, n := range cur.order {
		if everybody || cur.keys[n] == q.sark {
			named = append(named, n)
		}
	}
	if len(named) == 0 {
		return nil, conflict
	}

	var res Result
	next := cur.clone()
	next.gen++
	// One who takes the reservation over stays registered, even under a key that
	// it preempts; one who only removes registrations does not.
	removed := next.unregister(func(n Nexus) bool {
		return (everybody || cur.keys[n] == q.sark) && !(takeOver && n == q.nexus)
	})
	q.tellOthers(&res, removed, sense.RegistrationsPreempted())
	if takeOver {
		next.reserve(q.nexus, q.typ)
		if q.typ != cur.typ {
			q.tellOthers(&res, next.order, sense.ReservationsReleased())
		}
	}
	if q.sa == PreemptAndAbort {
		res.Abort = named
	}
	return next, res
}
