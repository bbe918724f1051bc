package pr

import (
	"bytes"
	"encoding/binary"
	"testing"

	"blockgate/scsi/sense"
)

// TestLayout holds the parameter data of each PERSISTENT RESERVE IN service action
// against the tables of SPC-4 §6.15, byte for byte.
func TestLayout(t *testing.T) {
	r := open(t, &memStore{})
	must(t, r, Register, 0, "A", basicList(0, 0x0102030405060708, aptpl))
	must(t, r, Register, 0, "B2", basicList(0, 0xb, aptpl))
	must(t, r, Reserve, ExclusiveAccessRegistrantsOnly, "A", basicList(0x0102030405060708, 0, 0))
	tid := func(letter string) string {
		return "\x45\x00\x00\x24" + "iqn.2026-11.test:" + letter + ",i,0x00023d0000" + map[string]string{"a": "41", "b": "42"}[letter] + "\x00"
	}
	for _, tc := range []struct {
		sa   byte
		want string
	}{
		{ReadKeys, "\x00\x00\x00\x02\x00\x00\x00\x10" + "\x01\x02\x03\x04\x05\x06\x07\x08" + "\x00\x00\x00\x00\x00\x00\x00\x0b"},
		{ReadReservation, "\x00\x00\x00\x02\x00\x00\x00\x10" + "\x01\x02\x03\x04\x05\x06\x07\x08" + "\x00\x00\x00\x00\x00\x06\x00\x00"},
		{ReportCapabilities, "\x00\x08\x1d\x91\xea\x01\x00\x00"},
		{ReadFullStatus, "\x00\x00\x00\x02\x00\x00\x00\x80" +
			"\x01\x02\x03\x04\x05\x06\x07\x08" + "\x00\x00\x00\x00\x01\x06\x00\x00" + "\x00\x00\x00\x01\x00\x00\x00\x28" + tid("a") +
			"\x00\x00\x00\x00\x00\x00\x00\x0b" + "\x00\x00\x00\x00\x00\x00\x00\x00" + "\x00\x00\x00\x02\x00\x00\x00\x28" + tid("b")},
	} {
		got, e := r.In(tc.sa)
		if e != nil || string(got) != tc.want {
			t.Errorf("service action %d: %v\n% x, want\n% x", tc.sa, e, got, tc.want)
		}
	}
	for sa := byte(4); sa < 0x20; sa++ {
		if _, e := r.In(sa); !is(e, sense.InvalidFieldInCDB(1, 4)) {
			t.Errorf("service action %#x: %v", sa, e)
		}
	}
}

// TestFull fills the unit with registrations: the next is refused, by whatever
// way it comes, the data stays within what a CDB can ask for, and its length
// fields count everything.
func TestFull(t *testing.T) {
	r := open(t, &memStore{})
	long := string(bytes.Repeat([]byte("x"), maxName))
	ids := func(n, from int) (ids []Port) {
		for i := range n {
			p := Port{Name: long, HasISID: true}
			binary.BigEndian.PutUint32(p.ISID[2:], uint32(from+i))
			ids = append(ids, p)
		}
		return ids
	}
	// One PERSISTENT RESERVE OUT cannot name them all within its list: by pieces.
	done := 0
	for i := 0; done+1000 < MaxRegistrations; i++ {
		must(t, r, Register, 0, string(rune('A'+i)), basicList(0, 1, 0, ids(999, done)...))
		done += 1000
	}
	refused := func(what string, res Result) {
		t.Helper()
		if !is(res.Sense, sense.InsufficientRegistrationResources()) {
			t.Errorf("%s: %v", what, res)
		}
		if n := len(r.Status().Registrations); n != done {
			t.Errorf("%s: %d registrations, had %d", what, n, done)
		}
	}
	refused("SPEC_I_PT", r.Out(t.Context(), Register, 0, nexus("Y"), basicList(0, 1, 0, ids(MaxRegistrations-done, done)...)))
	must(t, r, Register, 0, "Y", basicList(0, 1, 0, ids(MaxRegistrations-done-2, done)...))
	done = MaxRegistrations - 1
	refused("ALL_TG_PT", r.Out(t.Context(), Register, 0, nexus("Z"), basicList(0, 1, allTgPt)))
	must(t, r, Register, 0, "Z", basicList(0, 1, 0))
	done++
	refused("REGISTER", r.Out(t.Context(), Register, 0, nexus("Z2"), basicList(0, 1, 0)))
	refused("REGISTER AND IGNORE EXISTING KEY", r.Out(t.Context(), RegisterAndIgnoreExistingKey, 0, nexus("Z2"), basicList(0, 1, 0)))
	must(t, r, Reserve, WriteExclusive, "Z", basicList(1, 0, 0))
	refused("REGISTER AND MOVE", r.Out(t.Context(), RegisterAndMove, 0, nexus("Z"), moveList(1, 2, 0, 2, port('A'))))
	must(t, r, Register, 0, "Z", basicList(1, 2, 0)) // another key takes no more room

	b, _ := r.In(ReadKeys)
	if n := binary.BigEndian.Uint32(b[4:]); n != 8*MaxRegistrations || len(b) != int(n)+8 {
		t.Errorf("READ KEYS: ADDITIONAL LENGTH %d, %d bytes", n, len(b))
	}
	b, _ = r.In(ReadFullStatus)
	want := 0
	for _, reg := range r.Status().Registrations {
		want += 24 + len(AppendTransportID(nil, reg.Nexus.Initiator))
	}
	if n := binary.BigEndian.Uint32(b[4:]); int(n) != want || len(b) != 0xffff {
		t.Errorf("READ FULL STATUS: ADDITIONAL LENGTH %d, want %d, %d bytes", n, want, len(b))
	}
	if res := must(t, r, Clear, 0, "Z", basicList(2, 0, 0)); len(res.Attentions) != MaxRegistrations-1 {
		t.Errorf("%d told of CLEAR", len(res.Attentions))
	}
}

func TestTransportID(t *testing.T) {
	pad := func(s string, n int) string { return s + string(make([]byte, n)) }
	p := Port{Name: "iqn.x", ISID: [6]byte{0, 2, 0x3d, 0xab, 0, 1}, HasISID: true}
	for _, tc := range []struct {
		text string
		port Port
		n    int
		err  error
	}{
		{"\x45\x00\x00\x18" + pad("iqn.x,i,0x00023dab0001", 2), p, 28, nil},
		{"\x45\x00\x00\x18" + pad("iqn.x,i,0x00023DAB0001", 2) + "more", p, 28, nil},
		{"\x45\x00\x00\x18" + pad("iqn.x,i,0x23dab0001", 5), p, 28, nil},
		{"\x45\x00\x00\x18" + "iqn.x,i,0x00023dab0001\x00z", p, 28, nil}, // ends at the first null
		{"\x05\x00\x00\x14" + pad("iqn.x", 15), Port{Name: "iqn.x"}, 24, nil},
		{"", Port{}, 0, ErrTruncated},
		{"\x45\x00\x00", Port{}, 0, ErrTruncated},
		{"\x45\x00\x00\x18" + pad("iqn.x,i,0x00023dab0001", 1), Port{}, 0, ErrTruncated},
		{"\x05\x00\xff\xfc" + pad("iqn.x", 15), Port{}, 0, ErrTruncated},
		{"\x05\x00\x00\x10" + pad("iqn.x", 11), Port{}, 0, ErrInvalidTransportID},                               // shorter than 20
		{"\x05\x00\x00\x16" + pad("iqn.x", 17), Port{}, 0, ErrInvalidTransportID},                               // not a multiple of 4
		{"\x06\x00\x00\x14" + pad("iqn.x", 15), Port{}, 0, ErrInvalidTransportID},                               // SAS
		{"\x85\x00\x00\x14" + pad("iqn.x", 15), Port{}, 0, ErrInvalidTransportID},                               // format 10b
		{"\x05\x00\x00\x14" + "iqn.xxxxxxxxxxxxxxxx", Port{}, 0, ErrInvalidTransportID},                         // no null
		{"\x05\x00\x00\x14" + pad("", 20), Port{}, 0, ErrInvalidTransportID},                                    // no name
		{"\x05\x00\x00\x14" + pad("iqn x", 15), Port{}, 0, ErrInvalidTransportID},                               // a space
		{"\x05\x00\x00\x14" + pad("iqn\xff", 16), Port{}, 0, ErrInvalidTransportID},                             // not UTF-8
		{"\x45\x00\x00\x14" + pad("iqn.x", 15), Port{}, 0, ErrInvalidTransportID},                               // no ISID
		{"\x45\x00\x00\x14" + pad("iqn.x,i,0x", 10), Port{}, 0, ErrInvalidTransportID},                          // an empty one
		{"\x45\x00\x00\x18" + pad("iqn.x,i,0x00023dab000g", 2), Port{}, 0, ErrInvalidTransportID},               // not hexadecimal
		{"\x45\x00\x00\x18" + pad("iqn.x,i,0x00023dab00012", 1), Port{}, 0, ErrInvalidTransportID},              // 13 digits
		{"\x45\x00\x00\x18" + pad(",i,0x00023dab0001", 7), Port{}, 0, ErrInvalidTransportID},                    // no name
		{"\x05\x00\x00\xe4" + pad(string(bytes.Repeat([]byte("x"), 224)), 4), Port{}, 0, ErrInvalidTransportID}, // too long a name
	} {
		port, n, err := ParseTransportID([]byte(tc.text))
		if port != tc.port || n != tc.n || err != tc.err {
			t.Errorf("%q: %v %d %v", tc.text, port, n, err)
		}
	}
	if got := AppendTransportID([]byte("x"), Port{Name: "iqn.x"}); string(got) != "x\x05\x00\x00\x14"+pad("iqn.x", 15) {
		t.Errorf("%q", got)
	}
}
