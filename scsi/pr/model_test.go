package pr

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func sameStatus(a, b Status) bool { return reflect.DeepEqual(a, b) }

// model is the standard's rules once more, the slow way: a list of registrations
// and who holds the reservation, with the outcome of each command as text.
type model struct {
	Status
	disk *Status // what a restart brings back
}

func (m *model) find(n Nexus) *Registration {
	for i := range m.Registrations {
		if m.Registrations[i].Nexus == n {
			return &m.Registrations[i]
		}
	}
	return nil
}

func (m *model) set(n Nexus, key uint64) {
	if r := m.find(n); r != nil {
		r.Key = key
		return
	}
	m.Registrations = append(m.Registrations, Registration{Nexus: n, Key: key, Holder: m.Type.AllRegistrants()})
}

// remove drops registrations, and the reservation with the last holder's. It
// gives those dropped.
func (m *model) remove(which func(Registration) bool) (gone []Nexus) {
	for _, r := range m.Registrations {
		if which(r) {
			gone = append(gone, r.Nexus)
		}
	}
	m.Registrations = slices.DeleteFunc(m.Registrations, which)
	if !slices.ContainsFunc(m.Registrations, func(r Registration) bool { return r.Holder }) {
		m.Type = None
	}
	if len(m.Registrations) == 0 {
		m.Registrations = nil
	}
	return gone
}

func (m *model) hold(t Type, n Nexus) {
	m.Type = t
	for i, r := range m.Registrations {
		m.Registrations[i].Holder = t.AllRegistrants() || t != None && r.Nexus == n
	}
}

// others are the registered nexuses but n, with a unit attention's code.
func (m *model) others(n Nexus, ascq int) (s []string) {
	for _, r := range m.Registrations {
		if r.Nexus != n {
			s = append(s, fmt.Sprintf("%v:%d", r.Nexus, ascq))
		}
	}
	return s
}

func (m *model) out(sa byte, t Type, n Nexus, rk, sark uint64, flags byte, to Nexus) (result string) {
	told, aborted := []string{}, []Nexus{}
	good := func() string { return fmt.Sprint("good ", told, aborted) }
	me := m.find(n)
	shared := m.Type.RegistrantsOnly() || m.Type.AllRegistrants()
	if sa == Register || sa == RegisterAndIgnoreExistingKey {
		own := uint64(0)
		if me != nil {
			own = me.Key
		}
		if sa == Register && rk != own {
			return "conflict"
		}
		if own == 0 && sark == 0 {
			return good()
		}
		where := []Nexus{n}
		if flags&allTgPt != 0 {
			other := n
			other.RelPort = 3 - n.RelPort
			where = append(where, other)
			if r := m.find(other); sa == Register && r != nil && r.Key != rk {
				return "conflict"
			}
		}
		m.Generation++
		m.APTPL = flags&aptpl != 0
		if sark != 0 {
			for _, w := range where {
				m.set(w, sark)
			}
			return good()
		}
		ro := m.Type.RegistrantsOnly()
		m.remove(func(r Registration) bool { return slices.Contains(where, r.Nexus) })
		if ro && m.Type == None {
			told = append(told, m.others(n, 4)...)
		}
		return good()
	}
	if me == nil || me.Key != rk {
		return "conflict"
	}
	switch sa {
	case Reserve:
		switch {
		case !t.Valid():
			return "5/24/00"
		case m.Type == None:
			m.hold(t, n)
		case !me.Holder || m.Type != t:
			return "conflict"
		}
	case Release:
		if !me.Holder {
			return good()
		}
		if t != m.Type {
			return "5/26/04"
		}
		m.hold(None, n)
		if shared {
			told = append(told, m.others(n, 4)...)
		}
	case Clear:
		m.Generation++
		told = append(told, m.others(n, 3)...)
		m.remove(func(Registration) bool { return true })
	case Preempt, PreemptAndAbort:
		all := m.Type.AllRegistrants()
		if sark == 0 && !all {
			return "5/26/00"
		}
		takes := all && sark == 0
		match := func(r Registration) bool { return r.Key == sark || all && sark == 0 }
		for _, r := range m.Registrations {
			if r.Holder && !all && r.Key == sark {
				takes = true
			}
			if match(r) {
				aborted = append(aborted, r.Nexus)
			}
		}
		if takes && !t.Valid() {
			return "5/24/00"
		}
		if len(aborted) == 0 {
			return "conflict"
		}
		if sa == Preempt {
			aborted = []Nexus{}
		}
		m.Generation++
		old := m.Type
		for _, g := range m.remove(func(r Registration) bool { return match(r) && !(takes && r.Nexus == n) }) {
			if g != n {
				told = append(told, fmt.Sprintf("%v:%d", g, 5))
			}
		}
		if takes {
			m.hold(t, n)
			if t != old {
				told = append(told, m.others(n, 4)...)
			}
		}
	case RegisterAndMove:
		switch {
		case m.Type == None:
			return "5/24/00"
		case m.Type.AllRegistrants() || !me.Holder:
			return "conflict"
		case sark == 0 || to.Initiator == n.Initiator:
			return "5/26/00"
		}
		m.Generation++
		m.APTPL = flags&aptpl != 0
		m.set(to, sark)
		m.hold(m.Type, to)
		if flags&0x02 != 0 {
			m.remove(func(r Registration) bool { return r.Nexus == n })
		}
	}
	return good()
}

// TestModel plays random commands, restarts and failing saves against the model.
func TestModel(t *testing.T) {
	nexuses := []Nexus{nexus("A"), nexus("A2"), nexus("B"), nexus("C")}
	rapid.Check(t, func(t *rapid.T) {
		store := &memStore{}
		open := func() *Reservations {
			r, err := New(context.Background(), store, Topology{TargetPorts: twoPorts})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		r, m := open(), &model{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if rapid.IntRange(0, 19).Draw(t, "restart") == 0 {
				r = open()
				m.Status = Status{}
				if m.disk != nil {
					m.Status = *m.disk
				}
				m.Registrations = slices.Clone(m.Registrations)
				m.Generation = 0
			}
			n := rapid.SampledFrom(nexuses).Draw(t, "nexus")
			to := rapid.SampledFrom(nexuses).Draw(t, "to")
			sa := rapid.ByteRange(Register, RegisterAndMove).Draw(t, "service action")
			typ := rapid.SampledFrom([]Type{1, 3, 5, 6, 7, 8, 2}).Draw(t, "type")
			rk := rapid.Uint64Range(0, 2).Draw(t, "reservation key")
			if me := m.find(n); me != nil && rapid.IntRange(0, 4).Draw(t, "right key") > 0 {
				rk = me.Key
			}
			sark := rapid.Uint64Range(0, 2).Draw(t, "service action reservation key")
			var flags byte
			list := []byte(nil)
			if sa == RegisterAndMove {
				flags = rapid.ByteRange(0, 3).Draw(t, "flags")
				list = moveList(rk, sark, flags, to.RelPort, to.Initiator)
			} else {
				flags = rapid.SampledFrom([]byte{0, aptpl, allTgPt, aptpl | allTgPt}).Draw(t, "flags")
				list = basicList(rk, sark, flags)
			}
			store.fail = rapid.IntRange(0, 9).Draw(t, "save fails") == 0
			saves := store.saves

			before := r.Status()
			res := r.Out(context.Background(), sa, byte(typ), n, list)
			got := "conflict"
			if !res.Conflict {
				told, aborted := []string{}, []Nexus{}
				for _, a := range res.Attentions {
					told = append(told, fmt.Sprintf("%v:%d", a.Nexus, a.Sense.ASCQ))
				}
				got = fmt.Sprint("good ", told, append(aborted, res.Abort...))
			}
			if res.Sense != nil {
				got = fmt.Sprintf("%x/%02x/%02x", uint8(res.Sense.Key), res.Sense.ASC, res.Sense.ASCQ)
			}
			if store.fail && store.saves > saves {
				if got != "4/44/00" || !sameStatus(r.Status(), before) {
					t.Fatalf("failed save: %s, %+v, was %+v", got, r.Status(), before)
				}
				continue
			}
			want := m.out(sa, typ, n, rk, sark, flags, to)
			if got != want || !sameStatus(r.Status(), m.Status) {
				t.Fatalf("service action %d from %v\ngot  %s %+v\nwant %s %+v", sa, n, got, r.Status(), want, m.Status)
			}
			if store.saves > saves { // saved, or cleared away
				m.disk = nil
			}
			if m.APTPL {
				d := m.Status
				d.Registrations = slices.Clone(d.Registrations)
				m.disk = &d
			}
			for _, who := range nexuses {
				reg := m.find(who)
				free := m.Type == None || reg != nil && (reg.Holder || m.Type.RegistrantsOnly())
				if r.Conflict(who, Write) == free || r.Conflict(who, Read) == (free || m.Type.writeExclusive()) {
					t.Fatalf("%v: conflicts %v %v under %+v", who, r.Conflict(who, Read), r.Conflict(who, Write), m.Status)
				}
			}
		}
	})
}
