package pr

import (
	"errors"
	"slices"

	"blockgate/scsi/sense"
)

// register: REGISTER and REGISTER AND IGNORE EXISTING KEY, SPC-4 §5.13.7, tables
// 67 to 69, and unregistering, §5.13.11.2.3. SCOPE and TYPE are ignored.
func (q *request) register() (*state, Result) {
	key := q.cur.keys[q.nexus] // 0 if not registered, which is what RESERVATION KEY must be then
	if q.sa == Register && key != q.rk {
		return nil, conflict
	}
	switch {
	case q.specIPT && (q.sa != Register || key != 0):
		return nil, badField(20, 3)
	case key == 0 && q.sark == 0:
		return nil, Result{}
	case q.aptpl && q.r.store == nil:
		return nil, badField(20, 0)
	case !validName(q.nexus.Initiator.Name):
		return nil, fail(sense.InsufficientRegistrationResources())
	}
	ports := []uint16{q.nexus.RelPort}
	if q.allTgPt {
		ports = q.r.targetPorts(q.nexus.RelPort)
	}
	// With ALL_TG_PT it is as if the command had come by each port, where the
	// initiator may be registered with another key.
	for _, p := range ports[1:] {
		if other := q.cur.keys[Nexus{q.nexus.Initiator, p}]; q.sa == Register && other != 0 && other != q.rk {
			return nil, conflict
		}
	}
	next := q.cur.clone()
	next.gen++
	next.aptpl = q.aptpl
	if q.sark == 0 {
		return next, q.unregister(next, ports)
	}
	if !registerAt(next, q.nexus.Initiator, ports, q.sark) {
		return nil, fail(sense.InsufficientRegistrationResources())
	}
	if q.specIPT {
		if s := q.registerListed(next, ports); s != nil {
			return nil, Result{Sense: s}
		}
	}
	return next, Result{}
}

// registerAt registers the initiator port at each of the target ports.
func registerAt(next *state, initiator Port, ports []uint16, key uint64) bool {
	for _, p := range ports {
		if !next.register(Nexus{initiator, p}, key) {
			return false
		}
	}
	return true
}

// unregister removes the sender's registration at the ports; the reservation goes
// with its holder.
func (q *request) unregister(next *state, ports []uint16) (res Result) {
	next.unregister(func(n Nexus) bool {
		return n.Initiator == q.nexus.Initiator && slices.Contains(ports, n.RelPort)
	})
	if q.cur.typ.RegistrantsOnly() && next.typ == None {
		q.tellOthers(&res, next.order, sense.ReservationsReleased())
	}
	return res
}

// registerListed adds the initiator ports that the TransportIDs name. One that is
// registered already spoils the command (SPC-4 table 67, note b).
func (q *request) registerListed(next *state, ports []uint16) *sense.Sense {
	known := q.registeredPorts()
	done := make(map[Port]bool)
	for at := 0; at < len(q.transportIDs); {
		id, n, err := ParseTransportID(q.transportIDs[at:])
		if err != nil {
			return q.badTransportID(err, at)
		}
		if done[id] {
			at += n
			continue // named twice; a long list of one name must cost no more than the name
		}
		done[id] = true
		initiators := q.portsOf(id, known)
		if len(initiators) == 0 {
			return q.badTransportID(ErrInvalidTransportID, at)
		}
		for _, initiator := range initiators {
			for _, p := range ports {
				if q.cur.keys[Nexus{initiator, p}] != 0 {
					return q.badTransportID(ErrInvalidTransportID, at)
				}
			}
			if !registerAt(next, initiator, ports, q.sark) {
				s := sense.InsufficientRegistrationResources()
				return &s
			}
		}
		at += n
	}
	return nil
}

// badTransportID is the sense for the TransportID at that offset among the list's.
func (q *request) badTransportID(err error, at int) *sense.Sense {
	s := sense.InvalidFieldInParameterList(q.transportIDsAt+at, -1)
	if errors.Is(err, ErrTruncated) {
		s = sense.ParameterListLength()
	}
	return &s
}

// registeredPorts gives the initiator ports that are registered, by name.
func (q *request) registeredPorts() map[string][]Port {
	known := make(map[string][]Port)
	seen := make(map[Port]bool)
	for _, n := range q.cur.order {
		if p := n.Initiator; !seen[p] {
			seen[p] = true
			known[p.Name] = append(known[p.Name], p)
		}
	}
	return known
}

// portsOf gives the initiator ports that a TransportID stands for: itself, or,
// without an ISID, every port of that name which is known to the device server
// (SPC-4 §7.6.4.6), each once.
func (q *request) portsOf(id Port, registered map[string][]Port) (ports []Port) {
	if id.HasISID {
		return []Port{id}
	}
	candidates := append(slices.Clone(registered[id.Name]), q.nexus.Initiator)
	if q.r.topo.InitiatorPorts != nil {
		candidates = append(candidates, q.r.topo.InitiatorPorts(id.Name)...)
	}
	seen := make(map[Port]bool)
	for _, p := range candidates {
		if p.Name == id.Name && !seen[p] {
			seen[p] = true
			ports = append(ports, p)
		}
	}
	return ports
}

// move: REGISTER AND MOVE, SPC-4 §5.13.8 and table 70. The sender is registered
// and its key is right. SCOPE and TYPE are ignored; the destination's
// registration is made, or takes the new key.
func (q *request) move() (*state, Result) {
	switch {
	case q.cur.typ == None:
		return nil, fail(sense.InvalidFieldInCDB(1, 4))
	case q.cur.typ.AllRegistrants() || !q.cur.holds(q.nexus):
		return nil, conflict
	case q.sark == 0:
		return nil, badField(8, -1)
	case q.aptpl && q.r.store == nil:
		return nil, badField(17, 0)
	case !slices.Contains(q.r.targetPorts(q.nexus.RelPort), q.relPort):
		return nil, badField(18, -1)
	case len(q.transportIDs) < minTransportID || len(q.transportIDs)%4 != 0:
		return nil, badField(20, -1)
	}
	id, _, err := ParseTransportID(q.transportIDs)
	if err != nil {
		return nil, Result{Sense: q.badTransportID(err, 0)}
	}
	// A reservation has one holder, so a name without ISID will do only if it
	// stands for one port.
	initiators := q.portsOf(id, q.registeredPorts())
	if len(initiators) != 1 || initiators[0] == q.nexus.Initiator {
		return nil, badField(q.transportIDsAt, -1)
	}
	to := Nexus{initiators[0], q.relPort}
	next := q.cur.clone()
	next.gen++
	next.aptpl = q.aptpl
	if !next.register(to, q.sark) {
		return nil, fail(sense.InsufficientRegistrationResources())
	}
	next.reserve(to, q.cur.typ)
	if q.unreg {
		next.unregister(func(n Nexus) bool { return n == q.nexus })
	}
	return next, Result{}
}
