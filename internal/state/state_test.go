package state_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"blockgate/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const iqn = "iqn.2025-01.io.example:t"

// follower is a running system that does what it is told, or fails.
type follower struct {
	veto, fail error
	crash      bool // die between commit and reconcile
	seen       []state.Change
}

type crash struct{}

func (f *follower) Check(context.Context, *state.Plan) error { return f.veto }

func (f *follower) Reconcile(_ context.Context, p *state.Plan) ([]string, error) {
	if f.crash {
		panic(crash{})
	}
	f.seen = p.Changes
	return nil, f.fail
}

func open(t *testing.T, b state.Backend) *state.State {
	t.Helper()
	s, err := state.Open(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func bolt(t *testing.T, path string) *state.Bolt {
	t.Helper()
	b, err := state.OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func volume(name string) state.Op {
	return state.Op{Verb: state.Create, Kind: state.KindVolume, Volume: &state.Volume{Name: name, URL: "ram:1M"}}
}

func target(t state.Target) state.Op {
	return state.Op{Verb: state.Create, Kind: state.KindTarget, Target: &t}
}

func account(user, secret string) state.Op {
	return state.Op{Verb: state.Create, Kind: state.KindAccount, Account: &state.Account{User: user, Secret: secret}}
}

func apply(t *testing.T, s *state.State, ops ...state.Op) {
	t.Helper()
	if _, _, err := s.Apply(t.Context(), &follower{}, ops...); err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, err error, code string, class state.Class) {
	t.Helper()
	var e *state.Error
	if !errors.As(err, &e) || e.Code != code || e.Class != class {
		t.Errorf("error %v, want code %s of class %d", err, code, class)
	}
}

// Both backends keep the same promises.
func TestBackends(t *testing.T) {
	for name, open := range map[string]func(*testing.T) state.Backend{
		"memory": func(*testing.T) state.Backend { return state.NewMemory() },
		"bolt":   func(t *testing.T) state.Backend { return bolt(t, filepath.Join(t.TempDir(), "s")) },
	} {
		t.Run(name, func(t *testing.T) {
			b, ctx := open(t), t.Context()
			defer b.Close()
			watch := b.Watch(ctx)
			r1, err := b.Txn(ctx, state.Txn{Put: []state.Item{{Key: "a/1", Value: []byte(`1`)}, {Key: "a/2", Value: []byte(`2`)}, {Key: "b/1", Value: []byte(`3`)}}})
			if err != nil {
				t.Fatal(err)
			}
			r2, err := b.Txn(ctx, state.Txn{If: []state.Compare{{Key: "a/1", Revision: r1}, {Key: "a/9"}}, Put: []state.Item{{Key: "a/1", Value: []byte(`4`)}}, Delete: []string{"a/2"}})
			if err != nil || r2 <= r1 {
				t.Fatal(r2, err)
			}
			for _, c := range []state.Compare{{Key: "a/1", Revision: r1}, {Key: "a/1"}, {Key: "a/2", Revision: r1}} {
				if _, err := b.Txn(ctx, state.Txn{If: []state.Compare{c}, Put: []state.Item{{Key: "a/3", Value: []byte(`5`)}}}); !errors.Is(err, state.ErrCompare) {
					t.Errorf("%v: %v", c, err)
				}
			}
			l, rev, err := b.List(ctx, "a/")
			if want := []state.Item{{Key: "a/1", Value: []byte(`4`), Revision: r2}}; err != nil || rev != r2 || !cmp.Equal(l, want) {
				t.Errorf("list: %v at %d, %v", l, rev, err)
			}
			if _, ok, err := b.Get(ctx, "a/2"); ok || err != nil {
				t.Error("a deleted key is there", err)
			}
			if ev := <-watch; len(ev) != 3 {
				t.Errorf("first event %v", ev)
			}
			if ev := <-watch; len(ev) != 2 || ev[0].Key != "a/1" || !ev[1].Deleted {
				t.Errorf("second event %v", ev)
			}
		})
	}
}

func TestKeptAcrossRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), state.FileName)
	b := bolt(t, path)
	s := open(t, b)
	apply(t, s, volume("v"), account("joe", "secretsecret"),
		target(state.Target{Name: iqn, LUNs: []state.LUN{{Number: 2, Volume: "v"}}, Accounts: []string{"joe"}}),
		state.Op{Verb: state.Put, Kind: state.KindPortal, Portal: &state.Portal{Address: "10.0.0.1", Group: 2}},
		state.Op{Verb: state.Update, Kind: state.KindSystem, System: &state.System{Debug: true}})
	if err := s.Reservations("v").Save(t.Context(), []byte{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	before := s.Snapshot()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, bolt(t, path))
	defer s.Close()
	after := s.Snapshot()
	for _, d := range []string{
		cmp.Diff(before.Volumes(), after.Volumes()), cmp.Diff(before.Targets(), after.Targets()),
		cmp.Diff(before.Accounts(), after.Accounts()), cmp.Diff(before.Portals(), after.Portals()), cmp.Diff(before.System(), after.System()),
	} {
		if d != "" {
			t.Error(d)
		}
	}
	if got, err := s.Reservations("v").Load(t.Context()); err != nil || string(got) != "\x01\x02\x03" {
		t.Errorf("reservations: %v, %v", got, err)
	}
	tg, _ := after.Target(iqn)
	if ids := tg.Value.PortIDs; ids[1] == 0 || ids[2] == 0 || ids[1] == ids[2] {
		t.Errorf("port ids %v", ids)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the state has secrets; its mode is %v", st.Mode())
	}
	// What initiators had us keep goes with their volume and their target.
	kept := map[string]*state.Record{"reservations": s.Reservations("v"), "sanitize record": s.Sanitize("v"), "access states": s.Access(iqn)}
	for name, r := range kept {
		if err := r.Save(t.Context(), []byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	apply(t, s, state.Op{Verb: state.Delete, Kind: state.KindVolume, Name: "v", Force: true},
		state.Op{Verb: state.Delete, Kind: state.KindTarget, Name: iqn})
	for name, r := range kept {
		if got, err := r.Load(t.Context()); got != nil || err != nil {
			t.Errorf("%s: %q is left, %v", name, got, err)
		}
	}
}

// What cannot be carried out is taken back, on the disk as well.
func TestRollback(t *testing.T) {
	path := filepath.Join(t.TempDir(), state.FileName)
	s := open(t, bolt(t, path))
	apply(t, s, volume("old"), target(state.Target{Name: iqn, Alias: "old"}))
	if err := s.Reservations("old").Save(t.Context(), []byte{7}); err != nil {
		t.Fatal(err)
	}
	before := s.Snapshot()
	boom := errors.New("the store is on fire")
	_, _, err := s.Apply(t.Context(), &follower{fail: boom}, volume("new"),
		state.Op{Verb: state.Put, Kind: state.KindTarget, Target: &state.Target{Name: iqn, Alias: "new"}},
		state.Op{Verb: state.Delete, Kind: state.KindVolume, Name: "old"},
		state.Op{Verb: state.Update, Kind: state.KindSystem, System: &state.System{Debug: true}})
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	check := func(when string, s *state.Snapshot) {
		if _, ok := s.Volume("new"); ok {
			t.Error(when, "the new volume is there")
		}
		if _, ok := s.Volume("old"); !ok {
			t.Error(when, "the old volume is gone")
		}
		tg, _ := s.Target(iqn)
		was, _ := before.Target(iqn)
		if d := cmp.Diff(was.Value, tg.Value); d != "" {
			t.Error(when, d)
		}
		if s.System().Value.Debug {
			t.Error(when, "the settings are changed")
		}
	}
	check("at once:", s.Snapshot())
	if data, err := s.Reservations("old").Load(t.Context()); err != nil || !bytes.Equal(data, []byte{7}) {
		t.Errorf("reservations %v, %v", data, err)
	}
	if h, err := s.History(t.Context()); err != nil || len(h) != 1 {
		t.Errorf("a change that was taken back is in the history: %v, %v", h, err)
	}
	// A change after a rollback meets no stale revision.
	apply(t, s, state.Op{Verb: state.Update, Kind: state.KindTarget, Target: &state.Target{Name: iqn, Alias: "old"}}, volume("third"))
	s.Close()
	s = open(t, bolt(t, path))
	defer s.Close()
	check("after a restart:", s.Snapshot())

	veto := errors.New("no")
	if _, _, err := s.Apply(t.Context(), &follower{veto: veto}, volume("x")); !errors.Is(err, veto) {
		t.Error(err)
	}
	if _, ok := s.Snapshot().Volume("x"); ok {
		t.Error("a vetoed change took place")
	}
}

// A process that dies between commit and reconcile leaves what it committed: the
// next start tries it, and reports it if it fails.
func TestCrashAfterCommit(t *testing.T) {
	path := filepath.Join(t.TempDir(), state.FileName)
	b := bolt(t, path)
	s := open(t, b)
	func() {
		defer func() {
			if _, ok := recover().(crash); !ok {
				t.Fatal("no crash")
			}
		}()
		s.Apply(t.Context(), &follower{crash: true}, volume("v"), target(state.Target{Name: iqn, LUNs: []state.LUN{{Volume: "v"}}}))
	}()
	if _, ok := s.Snapshot().Volume("v"); ok {
		t.Error("it shows before it is in effect")
	}
	b.Close()
	s = open(t, bolt(t, path))
	defer s.Close()
	if _, ok := s.Snapshot().Volume("v"); !ok {
		t.Error("the volume is lost")
	}
	if tg, ok := s.Snapshot().Target(iqn); !ok || len(tg.Value.LUNs) != 1 {
		t.Error("half of the transaction is lost")
	}
}

func TestDamagedFile(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	s := open(t, bolt(t, good))
	for i := range 50 {
		apply(t, s, volume(fmt.Sprintf("v%d", i)))
	}
	s.Close()
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	damage := map[string]func([]byte) []byte{
		"not a state file": func([]byte) []byte { return []byte(strings.Repeat("hello ", 4000)) },
		"empty":            func([]byte) []byte { return nil },
		"cut short":        func(b []byte) []byte { return b[:3*os.Getpagesize()] },
		"pages of zeroes":  func(b []byte) []byte { clear(b[2*os.Getpagesize():]); return b },
		"no header":        func(b []byte) []byte { clear(b[:2*os.Getpagesize()]); return b },
		"bad resources": func(b []byte) []byte {
			return []byte(strings.ReplaceAll(string(b), `"url":"ram:1M"`, `"url":[[[[1M"`))
		},
	}
	for what, f := range damage {
		t.Run(what, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bad")
			if err := os.WriteFile(path, f(append([]byte(nil), whole...)), 0o600); err != nil {
				t.Fatal(err)
			}
			b, err := state.OpenBolt(path)
			if err == nil {
				defer b.Close()
				_, err = state.Open(t.Context(), b)
			}
			wantCode(t, err, state.CodeStateCorrupt, state.Internal)
		})
	}
}

func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	b := bolt(t, path)
	defer b.Close()
	_, err := state.OpenBolt(path)
	wantCode(t, err, state.CodeStateLocked, state.Conflict)
}

// Every way to be wrong has its code; what it names is in the text.
func TestRefusals(t *testing.T) {
	s := open(t, state.NewMemory())
	defer s.Close()
	apply(t, s, volume("v"), account("joe", "secretsecret"), account("same", "secretsecret"),
		target(state.Target{Name: iqn, ID: 5, LUNs: []state.LUN{{Number: 1, Volume: "v"}}, ACL: []state.ACLRule{{All: true}}, Accounts: []string{"joe"}}),
		state.Op{Verb: state.Create, Kind: state.KindPortal, Portal: &state.Portal{Address: "10.0.0.1:3260"}})
	rev := s.Snapshot().Revision()
	put := func(t state.Target) state.Op {
		return state.Op{Verb: state.Put, Kind: state.KindTarget, Target: &t}
	}
	acl := func(v state.Verb, r state.ACLRule) state.Op {
		return state.Op{Verb: v, Kind: state.KindACL, Name: iqn, ACL: &r}
	}
	vol := func(v state.Volume) state.Op {
		if v.Name == "" {
			v.Name = "new"
		}
		if v.URL == "" {
			v.URL = "ram:1M"
		}
		return state.Op{Verb: state.Create, Kind: state.KindVolume, Volume: &v}
	}
	three := 30
	for _, c := range []struct {
		op    state.Op
		code  string
		class state.Class
		text  string
	}{
		{volume("v"), state.CodeVolumeExists, state.Conflict, `volume "v"`},
		{volume("-x"), state.CodeInvalidName, state.Usage, "position 1"},
		{volume("a/b"), state.CodeInvalidName, state.Usage, "position 2"},
		{volume(strings.Repeat("x", 129)), state.CodeInvalidName, state.Usage, "128"},
		{vol(state.Volume{URL: "file:rel/a"}), state.CodeInvalidValue, state.Usage, "relative"},
		{vol(state.Volume{URL: "ram:"}), state.CodeInvalidValue, state.Usage, "ram:"},
		{vol(state.Volume{BlockSize: 1000}), state.CodeInvalidValue, state.Usage, "1000"},
		{vol(state.Volume{Stall: "fail"}), state.CodeInvalidValue, state.Usage, "fail=30s"},
		{vol(state.Volume{Stall: "busy=1ns"}), state.CodeInvalidValue, state.Usage, "100ms"},
		{vol(state.Volume{Size: 1000}), state.CodeInvalidValue, state.Usage, "1000"},
		{vol(state.Volume{Size: -512}), state.CodeInvalidValue, state.Usage, "-512"},
		{vol(state.Volume{Unit: state.UnitParams{Vendor: "TOO LONG!"}}), state.CodeInvalidValue, state.Usage, "TOO LONG!"},
		{vol(state.Volume{Unit: state.UnitParams{Product: "caf\u00e9"}}), state.CodeInvalidValue, state.Usage, "ASCII"},
		{vol(state.Volume{Unit: state.UnitParams{NAA: "5" + strings.Repeat("0", 31)}}), state.CodeInvalidValue, state.Usage, "NAA"},
		{vol(state.Volume{Unit: state.UnitParams{Type: "tape"}}), state.CodeInvalidValue, state.Usage, "tape"},
		{vol(state.Volume{Unit: state.UnitParams{PhysicalExp: &three}}), state.CodeInvalidValue, state.Usage, "30"},
		{state.Op{Verb: state.Delete, Kind: state.KindVolume, Name: "v"}, state.CodeVolumeInUse, state.Conflict, "LUN 1 of target"},
		{state.Op{Verb: state.Delete, Kind: state.KindVolume, Name: "w"}, state.CodeVolumeNotFound, state.NotFound, `volume "w"`},
		{target(state.Target{Name: iqn}), state.CodeTargetExists, state.Conflict, iqn},
		{target(state.Target{Name: iqn + "2", ID: 5}), state.CodeTargetIDExists, state.Conflict, iqn},
		{target(state.Target{Name: "iqn.2025-01.io.exa_mple"}), state.CodeInvalidName, state.Usage, "position"},
		{target(state.Target{Name: "iqn.2025-01.io.example:a_b"}), state.CodeInvalidName, state.Usage, "'_'"},
		{target(state.Target{Name: "iqn.2025-01.io." + strings.Repeat("x", 220)}), state.CodeInvalidName, state.Usage, "223"},
		{target(state.Target{Name: iqn + "2", LUNs: []state.LUN{{Volume: "w"}}}), state.CodeVolumeNotFound, state.NotFound, `volume "w"`},
		{target(state.Target{Name: iqn + "2", LUNs: []state.LUN{{Number: 99999, Volume: "v"}}}), state.CodeInvalidValue, state.Usage, "99999"},
		{target(state.Target{Name: iqn + "2", LUNs: []state.LUN{{Volume: "v"}, {Volume: "v"}}}), state.CodeInvalidValue, state.Usage, "twice"},
		{target(state.Target{Name: iqn + "2", ControllerLUN0: true, LUNs: []state.LUN{{Volume: "v"}}}), state.CodeLUNExists, state.Conflict, "controller"},
		{put(state.Target{Name: iqn, Accounts: []string{"ann"}}), state.CodeAccountNotFound, state.NotFound, "ann"},
		{put(state.Target{Name: iqn, Accounts: []string{""}}), state.CodeAccountNotFound, state.NotFound, `account ""`},
		{put(state.Target{Name: iqn, Accounts: []string{"joe"}, OutgoingAccount: "same"}), state.CodeInvalidValue, state.Conflict, "same secret"},
		{put(state.Target{Name: iqn, Params: map[string]string{"Bogus": "1"}}), state.CodeUnknownParam, state.Usage, "Bogus"},
		{put(state.Target{Name: iqn, Params: map[string]string{"maxconnections": "0"}}), state.CodeInvalidValue, state.Usage, "MaxConnections"},
		{put(state.Target{Name: iqn, PortalGroups: []int{70000}}), state.CodeInvalidValue, state.Usage, "70000"},
		{acl(state.Create, state.ACLRule{All: true}), state.CodeACLExists, state.Conflict, "ALL"},
		{acl(state.Delete, state.ACLRule{Name: "x"}), state.CodeACLNotFound, state.NotFound, "x"},
		{acl(state.Create, state.ACLRule{}), state.CodeInvalidValue, state.Usage, "one of"},
		{acl(state.Create, state.ACLRule{Address: "10.0.0.1/8"}), state.CodeInvalidValue, state.Usage, "10.0.0.0/8"},
		{acl(state.Create, state.ACLRule{Address: "nonsense"}), state.CodeInvalidValue, state.Usage, "nonsense"},
		{state.Op{Verb: state.Create, Kind: state.KindLUN, Name: iqn, LUN: &state.LUN{Number: 1, Volume: "v"}}, state.CodeLUNExists, state.Conflict, "LUN 1"},
		{state.Op{Verb: state.Delete, Kind: state.KindLUN, Name: iqn, LUN: &state.LUN{Number: 2}}, state.CodeLUNNotFound, state.NotFound, "LUN 2"},
		{state.Op{Verb: state.Delete, Kind: state.KindLUN, Name: "none", LUN: &state.LUN{}}, state.CodeTargetNotFound, state.NotFound, "none"},
		{state.Op{Verb: state.Create, Kind: state.KindLUN, Name: iqn}, state.CodeInvalidRequest, state.Usage, "LUN"},
		{account("joe", "x"), state.CodeAccountExists, state.Conflict, "joe"},
		{account("ann", ""), state.CodeInvalidValue, state.Usage, "secret"},
		{account("", "x"), state.CodeInvalidName, state.Usage, "CHAP user"},
		{state.Op{Verb: state.Delete, Kind: state.KindAccount, Name: "joe"}, state.CodeAccountInUse, state.Conflict, iqn},
		{state.Op{Verb: state.Create, Kind: state.KindPortal, Portal: &state.Portal{Address: "10.0.0.1"}}, state.CodePortalExists, state.Conflict, "10.0.0.1:3260"},
		{state.Op{Verb: state.Create, Kind: state.KindPortal, Portal: &state.Portal{Address: "example.org:1"}}, state.CodeInvalidValue, state.Usage, "example.org"},
		{state.Op{Verb: state.Create, Kind: state.KindPortal, Portal: &state.Portal{Address: "10.0.0.2:0"}}, state.CodeInvalidValue, state.Usage, "port"},
		{state.Op{Verb: state.Delete, Kind: state.KindPortal, Name: "10.0.0.2"}, state.CodePortalNotFound, state.NotFound, "10.0.0.2:3260"},
		{state.Op{Verb: "frob", Kind: state.KindVolume}, state.CodeInvalidRequest, state.Usage, "frob"},
		{state.Op{Verb: state.Put, Kind: "frob"}, state.CodeInvalidRequest, state.Usage, "frob"},
		{state.Op{Verb: state.Put, Kind: state.KindVolume}, state.CodeInvalidRequest, state.Usage, "volume"},
		{state.Op{Verb: state.Delete, Kind: state.KindTarget, Name: iqn, IfRevision: rev + 7}, state.CodeRevision, state.Conflict, "meanwhile"},
	} {
		_, _, err := s.Apply(t.Context(), &follower{}, c.op)
		var e *state.Error
		if !errors.As(err, &e) || e.Code != c.code || e.Class != c.class || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%+v:\n got %v\nwant %s, class %d, with %q", c.op, err, c.code, c.class, c.text)
		}
		if s.Snapshot().Revision() != rev {
			t.Fatalf("%+v changed the state", c.op)
		}
	}
}

func TestIdentity(t *testing.T) {
	s := open(t, state.NewMemory())
	defer s.Close()
	apply(t, s, volume("a"), volume("b"))
	a, _ := s.Snapshot().Volume("a")
	b, _ := s.Snapshot().Volume("b")
	if a.Value.Unit.NAA == b.Value.Unit.NAA || a.Value.Unit.Serial == b.Value.Unit.Serial {
		t.Error("two volumes of one identity")
	}
	// An update that does not name the identity keeps it, one that does sets it.
	apply(t, s, state.Op{Verb: state.Update, Kind: state.KindVolume, Volume: &state.Volume{Name: "a", URL: "ram:2M"}})
	a2, _ := s.Snapshot().Volume("a")
	if a2.Value.Unit.NAA != a.Value.Unit.NAA || a2.Value.Unit.Serial != a.Value.Unit.Serial || a2.Value.URL != "ram:2M" {
		t.Errorf("after an update: %+v", a2.Value)
	}
	naa := "6" + strings.Repeat("ab", 15) + "C"
	apply(t, s, state.Op{Verb: state.Update, Kind: state.KindVolume, Volume: &state.Volume{Name: "a", URL: "ram:2M", Unit: state.UnitParams{NAA: naa}}})
	if a, _ := s.Snapshot().Volume("a"); a.Value.Unit.NAA != strings.ToLower(naa) {
		t.Errorf("NAA %s", a.Value.Unit.NAA)
	}
	// IDs fill holes; port ids are unlike each other and stay.
	for i := range 4 {
		apply(t, s, target(state.Target{Name: fmt.Sprintf("%s%d", iqn, i)}))
	}
	one, _ := s.Snapshot().Target(iqn + "1")
	apply(t, s, state.Op{Verb: state.Delete, Kind: state.KindTarget, Name: iqn + "0"}, target(state.Target{Name: iqn + "new"}))
	if n, _ := s.Snapshot().Target(iqn + "new"); n.Value.ID != 1 {
		t.Errorf("the new target has the ID %d", n.Value.ID)
	}
	if now, _ := s.Snapshot().Target(iqn + "1"); !cmp.Equal(now, one) {
		t.Error("deleting one target changed another")
	}
	ids := map[uint16]string{}
	for _, tg := range s.Snapshot().Targets() {
		for _, id := range tg.Value.PortIDs {
			if ids[id] != "" {
				t.Errorf("port id %d for %s and %s", id, ids[id], tg.Value.Name)
			}
			ids[id] = tg.Value.Name
		}
	}
}

// The changes that a reconciler sees are the net effect.
func TestPlanChanges(t *testing.T) {
	s := open(t, state.NewMemory())
	defer s.Close()
	apply(t, s, volume("v"), target(state.Target{Name: iqn}))
	f := &follower{}
	_, _, err := s.Apply(t.Context(), f, volume("tmp"), state.Op{Verb: state.Delete, Kind: state.KindVolume, Name: "tmp"},
		state.Op{Verb: state.Create, Kind: state.KindLUN, Name: iqn, LUN: &state.LUN{Number: 3, Volume: "v"}},
		state.Op{Verb: state.Create, Kind: state.KindACL, Name: iqn, ACL: &state.ACLRule{Name: "iqn.x"}},
		state.Op{Verb: state.Delete, Kind: state.KindVolume, Name: "v", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	want := []state.Change{{Verb: state.Update, Kind: state.KindTarget, Name: iqn}, {Verb: state.Delete, Kind: state.KindVolume, Name: "v"}}
	if d := cmp.Diff(want, f.seen); d != "" {
		t.Error(d)
	}
	tg, _ := s.Snapshot().Target(iqn)
	if len(tg.Value.LUNs) != 0 || len(tg.Value.ACL) != 1 {
		t.Errorf("%+v", tg.Value)
	}
}

func FuzzACLAddress(f *testing.F) {
	for _, s := range []string{"10.0.0.1", "10.0.0.0/8", "[fe80::1]", "[fe80::]/64", "[::ffff:1.2.3.4]/96", "10.0.0.1/", "[", "/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := state.ParseACLAddress(s)
		if err == nil && (!p.IsValid() || p.Masked() != p) {
			t.Errorf("%q gives %v", s, p)
		}
	})
}

func FuzzPortal(f *testing.F) {
	for _, s := range []string{"10.0.0.1", "10.0.0.1:3260", "[::]:1", "::1", "[fe80::1%eth0]:3260", ":1", "[]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := state.ParsePortal(s)
		if err != nil {
			return
		}
		if again, err := state.ParsePortal(a); err != nil || again != a {
			t.Errorf("%q gives %q, which gives %q, %v", s, a, again, err)
		}
	})
}

func FuzzTargetName(f *testing.F) {
	for _, s := range []string{iqn, "eui.0123456789abcdef", "naa.60", "iqn.", "iqn.2025-01", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if state.CheckTargetName(s) == nil && (len(s) > state.MaxTargetName || strings.ContainsAny(s, " \x00\n,/=")) {
			t.Errorf("%q is taken for a name", s)
		}
	})
}

func TestISCSINames(t *testing.T) {
	for name, want := range map[string]string{
		"iqn.2025-01.io.example:disk1": "", "iqn.2025-01.io.example": "", "eui.0123456789abcdef": "", "naa.0123456789abcdef0123456789abcdef": "",
		"iqn.2025-13.io.example": "month", "iqn.t2": "month", "iqn.2025-01": "domain", "iqn.2025-01.:x": "domain",
		"eui.01": "hex digits", "naa.xyz": "hex digits", "disk1": "begins with none", "foo.bar": "begins with none",
	} {
		err := state.CheckISCSIName(name)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
		if err := state.CheckTargetName(name); err != nil {
			t.Errorf("%s, which tgt takes: %v", name, err)
		}
	}
}

func TestNamesAreShownAsTheyAre(t *testing.T) {
	if err := state.CheckVolumeName("büro"); err == nil || !strings.Contains(err.Error(), "'ü' at position 2") {
		t.Error(err)
	}
	if err := state.CheckTargetName("iqn.2025-01.io.example:ü"); err == nil || !strings.Contains(err.Error(), "'ü'") {
		t.Error(err)
	}
}

// What a change costs does not grow with the state: tgtadm in a loop over
// thousands of targets stays as fast as it began. Memory is what a copy of the
// state would cost, and does not depend on what else the machine does.
func TestCostOfAChange(t *testing.T) {
	s := open(t, state.NewMemory())
	defer s.Close()
	n := 0
	create := func(count int) (bytes uint64) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range count {
			n++
			apply(t, s, volume(fmt.Sprintf("v%d", n)),
				target(state.Target{Name: fmt.Sprintf("%s%d", iqn, n), LUNs: []state.LUN{{Number: 1, Volume: fmt.Sprintf("v%d", n)}}}))
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	create(100)
	first := create(100)
	create(3700)
	last := create(100)
	if last > 3*first {
		t.Errorf("100 changes allocate %d bytes behind 100 targets, and %d behind 4,000", first, last)
	}
	t.Logf("bytes a change: %d behind 100 targets, %d behind 4,000", first/100, last/100)
}
