package pr

import (
	"maps"
	"slices"
)

// state is the whole of a unit's persistent reservations. Once published in
// Reservations.cur it is read by many and changed by nobody; a command works on a
// clone, which is dropped if the command fails.
type state struct {
	gen    uint32 // PRgeneration; starts at 0 with each New (SPC-4 §6.15.2)
	aptpl  bool
	typ    Type
	holder Nexus // if typ is set and not an all registrants type
	keys   map[Nexus]uint64
	order  []Nexus // the keys of keys, in the order of registration
}

func newState() *state { return &state{keys: make(map[Nexus]uint64)} }

func (s *state) clone() *state {
	c := *s
	c.keys, c.order = maps.Clone(s.keys), slices.Clone(s.order)
	return &c
}

// holds reports whether n is a persistent reservation holder (SPC-4 §5.13.10).
func (s *state) holds(n Nexus) bool {
	if s.typ.AllRegistrants() {
		return s.keys[n] != 0
	}
	return s.typ != None && n == s.holder
}

// admits reports whether commands from n run unhindered by the reservation: n
// holds it, or is registered and that is enough.
func (s *state) admits(n Nexus) bool {
	if s.typ.RegistrantsOnly() {
		return s.keys[n] != 0
	}
	return s.holds(n)
}

// register gives n a key, which must not be 0; false if there is no room.
func (s *state) register(n Nexus, key uint64) bool {
	if s.keys[n] == 0 {
		if len(s.order) >= MaxRegistrations {
			return false
		}
		s.order = append(s.order, n)
	}
	s.keys[n] = key
	return true
}

// unregister removes the registrations for which gone is true and gives them
// back in order. The reservation is released if nobody is left who holds it
// (SPC-4 table 71).
func (s *state) unregister(gone func(Nexus) bool) (removed []Nexus) {
	s.order = slices.DeleteFunc(s.order, func(n Nexus) bool {
		if !gone(n) {
			return false
		}
		removed = append(removed, n)
		return true
	})
	for _, n := range removed {
		delete(s.keys, n)
	}
	if s.typ.AllRegistrants() && len(s.order) == 0 || s.typ != None && !s.typ.AllRegistrants() && s.keys[s.holder] == 0 {
		s.release()
	}
	return removed
}

func (s *state) release() { s.typ, s.holder = None, Nexus{} }

// reserve makes n the holder of a reservation of type t.
func (s *state) reserve(n Nexus, t Type) {
	s.typ, s.holder = t, Nexus{}
	if !t.AllRegistrants() {
		s.holder = n
	}
}
