// Package pr keeps the persistent reservation of one logical unit: who is
// registered with which key, who holds the reservation, and which commands that
// forbids. It is a state machine: bytes of PERSISTENT RESERVE commands and the
// I_T nexus they came by go in, parameter data, unit attentions to establish and
// nexuses whose commands to abort come out. It knows no session, task or clock.
//
// Registrations belong to an I_T nexus, which is an initiator port (for iSCSI the
// initiator's name and ISID) and a target port, and not to a session: they
// survive logout, resets and loss of the nexus, and a holder that logs in again
// with the same ISID is the holder still.
//
// Implemented from SPC-4:
//
//	§5.13.1        conflicts (table 65 and 66)          Conflict, Out
//	§5.13.3        RESERVE and RELEASE beside it        Compatible
//	§5.13.5        persistence through power loss       Store, New, Out
//	§5.13.7, .8    registering, register and move       Out
//	§5.13.9, .10   reserving, the holder                Out
//	§5.13.11       release, unregister, preempt, clear  Out
//	§6.15          PERSISTENT RESERVE IN                In
//	§6.16          PERSISTENT RESERVE OUT               Out
//	§7.6.4.6       iSCSI TransportID                    ParseTransportID, AppendTransportID
//
// REPLACE LOST RESERVATION is not offered (RLR_C is 0): state that cannot be read
// back makes New fail, so that the unit is not served at all until somebody has
// looked, rather than served without its reservation.
package pr

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"blockgate/scsi/sense"
)

// MaxRegistrations is how many I_T nexuses may be registered with one logical
// unit; the next gets INSUFFICIENT REGISTRATION RESOURCES.
const MaxRegistrations = 4096

// Port is an initiator port. For iSCSI it is the initiator's name and the ISID of
// its session (RFC 7143 §4.4); other transports leave HasISID false and ISID
// zero. Names are compared byte for byte: whoever fills Name has normalized it.
type Port struct {
	Name    string // 1 to 223 bytes
	ISID    [6]byte
	HasISID bool
}

// String gives the name of the SCSI port, "iqn.…,i,0x00023d000001".
func (p Port) String() string {
	if !p.HasISID {
		return p.Name
	}
	return fmt.Sprintf("%s,i,0x%x", p.Name, p.ISID[:])
}

// Nexus is an I_T nexus: an initiator port and the relative target port
// identifier (1 to 65535) of the port by which it reaches the unit.
type Nexus struct {
	Initiator Port
	RelPort   uint16
}

func (n Nexus) String() string { return fmt.Sprintf("%v@%d", n.Initiator, n.RelPort) }

// Type is the type of a persistent reservation (SPC-4 table 206), 0 if there is
// none.
type Type uint8

// Reservation types.
const (
	None                           Type = 0
	WriteExclusive                 Type = 1
	ExclusiveAccess                Type = 3
	WriteExclusiveRegistrantsOnly  Type = 5
	ExclusiveAccessRegistrantsOnly Type = 6
	WriteExclusiveAllRegistrants   Type = 7
	ExclusiveAccessAllRegistrants  Type = 8
)

// Valid reports whether t is one of the six types.
func (t Type) Valid() bool {
	return t == WriteExclusive || t == ExclusiveAccess || t >= WriteExclusiveRegistrantsOnly && t <= ExclusiveAccessAllRegistrants
}

// RegistrantsOnly reports whether t is one of the registrants only types.
func (t Type) RegistrantsOnly() bool {
	return t == WriteExclusiveRegistrantsOnly || t == ExclusiveAccessRegistrantsOnly
}

// AllRegistrants reports whether every registered nexus is a holder under t.
func (t Type) AllRegistrants() bool {
	return t == WriteExclusiveAllRegistrants || t == ExclusiveAccessAllRegistrants
}

// writeExclusive reports whether everybody may read under t.
func (t Type) writeExclusive() bool {
	return t == WriteExclusive || t == WriteExclusiveRegistrantsOnly || t == WriteExclusiveAllRegistrants
}

func (t Type) String() string {
	switch t {
	case None:
		return "none"
	case WriteExclusive:
		return "write exclusive"
	case ExclusiveAccess:
		return "exclusive access"
	case WriteExclusiveRegistrantsOnly:
		return "write exclusive, registrants only"
	case ExclusiveAccessRegistrantsOnly:
		return "exclusive access, registrants only"
	case WriteExclusiveAllRegistrants:
		return "write exclusive, all registrants"
	case ExclusiveAccessAllRegistrants:
		return "exclusive access, all registrants"
	}
	return fmt.Sprintf("reserved type %#x", uint8(t))
}

// Class is how a command fares on a nexus that the reservation shuts out: one
// row's pattern in SPC-4 table 65 or the command standard's table.
type Class uint8

// Classes of commands.
const (
	Allowed Class = iota // runs under every type (INQUIRY, TEST UNIT READY, READ CAPACITY)
	Read                 // runs under the write exclusive types, conflicts under exclusive access
	Write                // conflicts under every type
)

// Topology tells what the device server knows of its ports. The functions are
// called while a PERSISTENT RESERVE OUT is processed and must neither block nor
// call into the Reservations. Either may be nil.
type Topology struct {
	// TargetPorts gives the relative identifiers of the target device's ports,
	// for ALL_TG_PT and REGISTER AND MOVE. nil: the port the command came by.
	TargetPorts func() []uint16
	// InitiatorPorts gives the initiator ports of that name that are logged in,
	// for TransportIDs that name an iSCSI node without ISID. Ports that are
	// registered are known anyhow.
	InitiatorPorts func(name string) []Port
}

// Reservations is the persistent reservation state of one logical unit. All its
// methods may be called at the same time from any goroutine.
type Reservations struct {
	store Store
	topo  Topology
	cur   atomic.Pointer[state] // never nil; what it points to never changes
	busy  chan struct{}         // held by the one Out that is under way
	// unsure is set when a Save has failed: what the store holds is then not
	// known, and the next change is saved whether or not it must persist. Only
	// touched while holding busy.
	unsure bool
}

// New gives the reservations of a logical unit as they were saved. A nil store
// means that the unit cannot keep them through a restart (PTPL_C is 0). The error
// is the store's, or says why the saved state cannot be used; the unit must not
// be served then.
func New(ctx context.Context, store Store, topo Topology) (*Reservations, error) {
	r := &Reservations{store: store, topo: topo, busy: make(chan struct{}, 1)}
	s := newState()
	if store != nil {
		data, err := store.Load(ctx)
		if err != nil {
			return nil, fmt.Errorf("load persistent reservations: %w", err)
		}
		if len(data) > 0 {
			if s, err = decode(data); err != nil {
				return nil, fmt.Errorf("saved persistent reservations: %w", err)
			}
		}
	}
	r.cur.Store(s)
	return r, nil
}

// Conflict reports whether a command of class c that came by n must end with
// RESERVATION CONFLICT. It takes no lock and allocates nothing.
func (r *Reservations) Conflict(n Nexus, c Class) bool {
	s := r.cur.Load()
	if s.typ == None || c == Allowed || c == Read && s.typ.writeExclusive() {
		return false
	}
	return !s.admits(n)
}

// Verdict says what becomes of a RESERVE or RELEASE command.
type Verdict uint8

// Verdicts of Compatible.
const (
	Proceed   Verdict = iota // nobody is registered: process it as SPC-2 says
	Ignore                   // GOOD without doing anything
	Conflicts                // RESERVATION CONFLICT
)

// Compatible says how RESERVE(6/10) and RELEASE(6/10) from n are treated beside
// persistent reservations: a nexus that the reservation admits gets GOOD and
// nothing happens (SPC-4 §5.13.3, CRH), any other gets a conflict as long as
// anybody is registered (SPC-2 §5.5.1).
func (r *Reservations) Compatible(n Nexus) Verdict {
	s := r.cur.Load()
	switch {
	case len(s.order) == 0:
		return Proceed
	case s.typ != None && s.admits(n):
		return Ignore
	}
	return Conflicts
}

// Registration is one registered nexus.
type Registration struct {
	Nexus  Nexus
	Key    uint64 // never 0
	Holder bool   // holds the reservation, alone or with all registrants
}

// Status is the state at one moment, for people to look at.
type Status struct {
	Generation    uint32
	APTPL         bool // kept through a restart
	Type          Type
	Registrations []Registration // in the order of registration
}

// Status gives a copy of the present state.
func (r *Reservations) Status() Status {
	s := r.cur.Load()
	st := Status{Generation: s.gen, APTPL: s.aptpl, Type: s.typ}
	for _, n := range s.order {
		st.Registrations = append(st.Registrations, Registration{n, s.keys[n], s.holds(n)})
	}
	return st
}

// lock waits for its turn to change the state.
func (r *Reservations) lock(ctx context.Context) error {
	select {
	case r.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Reservations) unlock() { <-r.busy }

// commit makes next the state, after it is durable if it must be. If that fails
// the state is as before.
func (r *Reservations) commit(ctx context.Context, next *state) *sense.Sense {
	if r.store != nil && (next.aptpl || r.cur.Load().aptpl || r.unsure) {
		var data []byte
		if next.aptpl {
			data = encode(next)
		}
		if err := r.store.Save(ctx, data); err != nil {
			r.unsure = true
			s := sense.InternalFailure()
			return &s
		}
		r.unsure = false
	}
	r.cur.Store(next)
	return nil
}

// targetPorts gives the target device's ports, own among them.
func (r *Reservations) targetPorts(own uint16) []uint16 {
	ports := []uint16{own}
	if r.topo.TargetPorts != nil {
		for _, p := range r.topo.TargetPorts() {
			if !slices.Contains(ports, p) {
				ports = append(ports, p)
			}
		}
	}
	return ports
}
