package pr

import (
	"context"
	"encoding/binary"
	"testing"
)

// FuzzOut sends any bytes as a PERSISTENT RESERVE OUT command to a unit that has
// registrations and a reservation. Whatever comes: an outcome, a state that can be
// saved and read back, and parameter data whose lengths are right.
func FuzzOut(f *testing.F) {
	for sa := byte(Register); sa < RegisterAndMove; sa++ {
		f.Add(sa, byte(5), byte(0), basicList(0xa, 0xb, aptpl|allTgPt))
	}
	f.Add(byte(Register), byte(0), byte(2), basicList(0, 0xc, aptpl, port('D'), Port{Name: port('B').Name}, port('E')))
	f.Add(byte(RegisterAndMove), byte(0), byte(0), moveList(0xa, 0xc, 3, 2, port('D')))
	f.Add(byte(RegisterAndMove), byte(0), byte(0), moveList(0xa, 0xc, 1, 1, Port{Name: port('B').Name}))
	f.Fuzz(func(t *testing.T, sa, scopeType, from byte, list []byte) {
		store := &memStore{}
		r := open(t, store)
		must(t, r, Register, 0, "A", basicList(0, 0xa, aptpl))
		must(t, r, Register, 0, "B", basicList(0, 0xb, aptpl))
		must(t, r, Reserve, WriteExclusiveRegistrantsOnly, "A", basicList(0xa, 0, 0))
		n := nexus(string("ABC"[from%3]))
		before := r.Status()
		res := r.Out(context.Background(), sa, scopeType, n, list)
		after := r.Status()
		if (res.Conflict || res.Sense != nil) && (!sameStatus(before, after) || len(res.Attentions)+len(res.Abort) > 0) {
			t.Fatalf("refused, and yet %+v %+v", res, after)
		}
		for _, a := range res.Attentions {
			if a.Nexus == n {
				t.Fatal("a unit attention for the sender")
			}
		}
		again := open(t, store).Status()
		after.Generation = 0
		if !after.APTPL {
			after = Status{}
		}
		if !sameStatus(again, after) {
			t.Fatalf("reloaded %+v, want %+v", again, after)
		}
		for sa := range byte(ReadFullStatus + 1) {
			b, e := r.In(sa)
			if e != nil || sa != ReportCapabilities && len(b) < 0xffff && int(binary.BigEndian.Uint32(b[4:])) != len(b)-8 {
				t.Fatalf("PERSISTENT RESERVE IN %d: %v % x", sa, e, b)
			}
		}
	})
}

// FuzzTransportID: what is taken can be written and read again as the same port.
func FuzzTransportID(f *testing.F) {
	f.Add(AppendTransportID(nil, port('A')))
	f.Add(AppendTransportID(nil, Port{Name: "eui.02004567A425678D"}))
	f.Add([]byte("\x45\x00\x00\x14iqn.x,i,0x23dab0001\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, n, err := ParseTransportID(b)
		if err != nil {
			return
		}
		if n > len(b) || n < minTransportID || n%4 != 0 {
			t.Fatalf("%d of %d bytes", n, len(b))
		}
		c := AppendTransportID(nil, p)
		q, m, err := ParseTransportID(c)
		if err != nil || q != p || m != len(c) || m != transportIDLen(p) {
			t.Fatalf("%v: % x: %v %d %v", p, c, q, m, err)
		}
	})
}

// FuzzSaved: New takes what it can read back exactly, and refuses the rest.
func FuzzSaved(f *testing.F) {
	for _, typ := range []Type{None, WriteExclusive, ExclusiveAccessAllRegistrants} {
		s := newState()
		s.register(nexus("A"), 0xa)
		s.register(Nexus{Port{Name: "eui.1"}, 7}, 0xb)
		if typ != None {
			s.reserve(nexus("A"), typ)
		}
		f.Add(encode(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decode(b)
		if err != nil {
			return
		}
		again, err := decode(encode(s))
		if err != nil || !sameStatus(statusOf(s), statusOf(again)) {
			t.Fatalf("%s: %v", encode(s), err)
		}
	})
}

func statusOf(s *state) Status {
	r := &Reservations{}
	r.cur.Store(s)
	return r.Status()
}
