package pr

import (
	"context"
	"fmt"
	"sync"
	"testing"
)

// TestConflictTable is SPC-4 table 65's patterns (the same in SBC-3 table 13) for
// the six types: what the holder, one who is registered and a stranger may do.
func TestConflictTable(t *testing.T) {
	// Each string: may read, may write.
	for _, tc := range []struct {
		typ                          Type
		holder, registrant, stranger string
	}{
		{None, "rw", "rw", "rw"},
		{WriteExclusive, "rw", "r-", "r-"},
		{ExclusiveAccess, "rw", "--", "--"},
		{WriteExclusiveRegistrantsOnly, "rw", "rw", "r-"},
		{ExclusiveAccessRegistrantsOnly, "rw", "rw", "--"},
		{WriteExclusiveAllRegistrants, "rw", "rw", "r-"},
		{ExclusiveAccessAllRegistrants, "rw", "rw", "--"},
	} {
		t.Run(tc.typ.String(), func(t *testing.T) {
			r := open(t, nil)
			must(t, r, Register, 0, "A", basicList(0, 0xa, 0))
			must(t, r, Register, 0, "B", basicList(0, 0xb, 0))
			if tc.typ != None {
				must(t, r, Reserve, tc.typ, "A", basicList(0xa, 0, 0))
			}
			others := nexus("A")
			others.Initiator.ISID[5]++ // the same node by another session
			for who, want := range map[Nexus]string{
				nexus("A"): tc.holder, nexus("B"): tc.registrant, nexus("C"): tc.stranger,
				nexus("A2"): tc.stranger, others: tc.stranger, {}: tc.stranger,
			} {
				got := []byte("--")
				if !r.Conflict(who, Read) {
					got[0] = 'r'
				}
				if !r.Conflict(who, Write) {
					got[1] = 'w'
				}
				if string(got) != want {
					t.Errorf("%v: %s, want %s", who, got, want)
				}
				if r.Conflict(who, Allowed) {
					t.Errorf("%v: conflict for what is always allowed", who)
				}
			}
		})
	}
}

func TestConflictAllocatesNothing(t *testing.T) {
	r := open(t, nil)
	must(t, r, Register, 0, "A", basicList(0, 0xa, 0))
	must(t, r, Reserve, ExclusiveAccessRegistrantsOnly, "A", basicList(0xa, 0, 0))
	a, b := nexus("A"), nexus("B")
	if n := testing.AllocsPerRun(100, func() {
		if r.Conflict(a, Write) || !r.Conflict(b, Read) {
			t.Fatal("wrong")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestConcurrent has many nexuses change, read and ask at the same time; run it
// with -race. Whoever got GOOD for RESERVE may write until it releases, and no
// other may.
func TestConcurrent(t *testing.T) {
	store := &memStore{}
	r := open(t, store)
	const rounds = 200
	var wg sync.WaitGroup
	var owner sync.Mutex // held by the one whose RESERVE was GOOD
	for i := range 4 {
		name := string(rune('A' + i))
		key := uint64(i + 1)
		n := nexus(name)
		wg.Go(func() {
			ctx := context.Background()
			if res := r.Out(ctx, Register, 0, n, basicList(0, key, aptpl)); res.Conflict || res.Sense != nil {
				t.Errorf("%s: REGISTER: %v", name, res)
				return
			}
			for range rounds {
				res := r.Out(ctx, Reserve, byte(WriteExclusive), n, basicList(key, 0, 0))
				if res.Conflict {
					r.In(ReadFullStatus)
					r.Status()
					continue
				}
				if !owner.TryLock() {
					t.Errorf("%s: a second holder", name)
					return
				}
				if r.Conflict(n, Write) {
					t.Errorf("%s: the holder is shut out", name)
				}
				owner.Unlock()
				if res := r.Out(ctx, Release, byte(WriteExclusive), n, basicList(key, 0, 0)); res.Conflict || res.Sense != nil {
					t.Errorf("%s: RELEASE: %v", name, res)
				}
			}
		})
	}
	wg.Wait()
	if st := r.Status(); st.Type != None || len(st.Registrations) != 4 || st.Generation != 4 {
		t.Errorf("%+v", st)
	}
}

func BenchmarkConflict(b *testing.B) {
	for _, typ := range []Type{None, WriteExclusive, ExclusiveAccessRegistrantsOnly} {
		b.Run(fmt.Sprint(typ), func(b *testing.B) {
			r := open(b, nil)
			must(b, r, Register, 0, "A", basicList(0, 0xa, 0))
			if typ != None {
				must(b, r, Reserve, typ, "A", basicList(0xa, 0, 0))
			}
			n := nexus("A")
			for b.Loop() {
				if r.Conflict(n, Write) {
					b.Fatal("conflict")
				}
			}
		})
	}
}
