package pr

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"blockgate/scsi/sense"
)

// stuckStore's Save waits for the test or for its context.
type stuckStore struct {
	entered, leave chan struct{}
}

func (s *stuckStore) Load(context.Context) ([]byte, error) { return nil, nil }

func (s *stuckStore) Save(ctx context.Context, _ []byte) error {
	s.entered <- struct{}{}
	select {
	case <-s.leave:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestStuckStore: while a save hangs, conflicts and PERSISTENT RESERVE IN are
// answered with the state before it; another change waits no longer than its
// context lets it.
func TestStuckStore(t *testing.T) {
	store := &stuckStore{make(chan struct{}, 9), make(chan struct{})}
	r := open(t, store)
	must(t, r, Register, 0, "A", basicList(0, 0xa, 0))
	must(t, r, Register, 0, "B", basicList(0, 0xb, 0))
	must(t, r, Reserve, WriteExclusive, "A", basicList(0xa, 0, 0))

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	first := make(chan Result)
	go func() { first <- r.Out(ctx, Register, 0, nexus("B"), basicList(0xb, 0xbb, aptpl)) }()
	<-store.entered

	if r.Conflict(nexus("A"), Write) || !r.Conflict(nexus("B"), Write) {
		t.Error("conflicts differ")
	}
	if b, _ := r.In(ReadKeys); len(b) != 24 || b[23] != 0xb {
		t.Errorf("READ KEYS: % x", b)
	}
	over, stop := context.WithDeadline(context.Background(), time.Unix(0, 0))
	defer stop()
	if res := r.Out(over, Clear, 0, nexus("A"), basicList(0xa, 0, 0)); !is(res.Sense, sense.InternalFailure()) {
		t.Errorf("a change that ran out of time: %+v", res)
	}

	cancel()
	if res := <-first; !is(res.Sense, sense.InternalFailure()) || len(res.Attentions) != 0 {
		t.Errorf("a save that ran out of time: %+v", res)
	}
	if st := r.Status(); st.APTPL || st.Registrations[1].Key != 0xb {
		t.Errorf("it left something: %+v", st)
	}

	go func() { first <- r.Out(context.Background(), Register, 0, nexus("B"), basicList(0xb, 0xbb, aptpl)) }()
	<-store.entered
	store.leave <- struct{}{}
	if res := <-first; res.Sense != nil || !r.Status().APTPL {
		t.Errorf("after that: %+v", res)
	}
}

// TestGoodMeansSaved: when GOOD is given with APTPL the state is in the store, and
// without it nothing is written at all.
func TestGoodMeansSaved(t *testing.T) {
	store := &memStore{}
	r := open(t, store)
	must(t, r, Register, 0, "A", basicList(0, 0xa, 0))
	must(t, r, Reserve, WriteExclusive, "A", basicList(0xa, 0, 0))
	if store.saves != 0 {
		t.Errorf("%d saves without APTPL", store.saves)
	}
	for i, step := range []struct {
		sa   byte
		typ  Type
		list []byte
	}{
		{Register, 0, basicList(0xa, 0xb, aptpl)},
		{Release, WriteExclusive, basicList(0xb, 0, 0)},
		{Reserve, ExclusiveAccessAllRegistrants, basicList(0xb, 0, 0)},
		{Preempt, WriteExclusive, basicList(0xb, 0, 0)},
		{RegisterAndIgnoreExistingKey, 0, basicList(0, 0xc, aptpl)},
		{Clear, 0, basicList(0xc, 0, 0)},
	} {
		before := store.saves
		must(t, r, step.sa, step.typ, "A", step.list)
		if store.saves != before+1 {
			t.Errorf("step %d: %d saves", i, store.saves-before)
		}
		got, want := open(t, store).Status(), r.Status()
		want.Generation = 0
		if !sameStatus(got, want) {
			t.Errorf("step %d: reloaded %+v, want %+v", i, got, want)
		}
	}
	before := store.saves
	r.Out(context.Background(), Reserve, byte(WriteExclusive), nexus("A"), basicList(0xbad, 0, 0))
	if store.saves != before {
		t.Error("a refused command was saved")
	}
}

func TestPurge(t *testing.T) {
	store := &memStore{}
	r := open(t, store)
	must(t, r, Register, 0, "A", basicList(0, 0xa, aptpl))
	must(t, r, Register, 0, "B", basicList(0, 0xb, aptpl))
	must(t, r, Reserve, ExclusiveAccess, "A", basicList(0xa, 0, 0))
	res := r.Purge(context.Background())
	if len(res.Attentions) != 2 || !is(&res.Attentions[0].Sense, sense.ReservationsPreempted()) {
		t.Errorf("%+v", res)
	}
	if st := r.Status(); st.Type != None || len(st.Registrations) != 0 || st.Generation != 3 {
		t.Errorf("%+v", st)
	}
	if st := open(t, store).Status(); len(st.Registrations) != 0 {
		t.Errorf("reloaded: %+v", st)
	}
}

// brokenStore cannot be read.
type brokenStore struct{ memStore }

func (*brokenStore) Load(context.Context) ([]byte, error) { return nil, errors.New("no disk") }

func TestNewRefusesWhatItCannotTrust(t *testing.T) {
	if _, err := New(context.Background(), &brokenStore{}, Topology{}); err == nil || !strings.Contains(err.Error(), "no disk") {
		t.Errorf("store that cannot be read: %v", err)
	}
	const reg = `{"initiator":"iqn.a","isid":"00023d000001","port":1,"key":"000000000000000a"}`
	good := `{"version":1,"type":5,"holder":{"initiator":"iqn.a","isid":"00023d000001","port":1},"registrations":[` + reg + `]}`
	if _, err := New(context.Background(), &memStore{data: []byte(good)}, Topology{}); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		`x`, `{}`, good[:len(good)-1], good + "{}",
		strings.Replace(good, `"version":1`, `"version":2`, 1),
		strings.Replace(good, `"version":1`, `"version":1,"surprise":1`, 1),
		strings.Replace(good, `"type":5`, `"type":4`, 1),
		strings.Replace(good, `"type":5`, `"type":7`, 1),
		strings.Replace(good, `"type":5,`, ``, 1),
		strings.Replace(good, `"holder"`, `"registrations":[],"holder"`, 1) + "x",
		strings.Replace(good, `"port":1}`, `"port":2}`, 1),
		strings.Replace(good, `"isid":"00023d000001"`, `"isid":"00023d"`, 1),
		strings.Replace(good, `"iqn.a"`, `"iqn a"`, 1),
		strings.Replace(good, reg, reg+","+reg, 1),
		strings.Replace(good, reg, ``, 1),
		strings.Replace(good, `00000a"`, `000000"`, 1),
		strings.Replace(good, `00000a"`, `00000g"`, 1),
		`{"version":1,"type":7,"registrations":[]}`,
	} {
		if _, err := New(context.Background(), &memStore{data: []byte(bad)}, Topology{}); err == nil {
			t.Errorf("taken: %s", bad)
		}
	}
}
