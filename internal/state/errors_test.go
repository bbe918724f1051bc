package state_test

import (
	"strings"
	"testing"

	"blockgate/internal/state"
)

// What an error repeats of a request is bounded, and still says what it is.
func TestErrorsBounded(t *testing.T) {
	s := open(t, state.NewMemory())
	long := strings.Repeat("ä", 35000)
	for _, op := range []state.Op{
		volume(long),
		{Verb: state.Create, Kind: state.KindVolume, Volume: &state.Volume{Name: "v", URL: "file:" + long[:4000]}},
		{Verb: state.Create, Kind: state.KindVolume, Volume: &state.Volume{Name: "v", URL: "ram:1M", PartialBlock: long}},
		{Verb: state.Create, Kind: state.KindVolume, Volume: &state.Volume{Name: "v", URL: "ram:1M", Stall: long}},
		{Verb: state.Create, Kind: state.KindVolume, Volume: &state.Volume{Name: "v", URL: "ram:1M", Unit: state.UnitParams{Type: long}}},
		{Verb: state.Create, Kind: state.KindVolume, Volume: &state.Volume{Name: "v", URL: "ram:1M", Layers: []state.Layer{{Kind: long}}}},
		{Verb: state.Delete, Kind: state.KindVolume, Name: long},
		{Verb: state.Delete, Kind: state.KindTarget, Name: long},
		{Verb: state.Create, Kind: state.KindLUN, Name: long, LUN: &state.LUN{Volume: long}},
		target(state.Target{Name: long}),
		target(state.Target{Name: iqn, Params: map[string]string{long: "1"}}),
		target(state.Target{Name: iqn, ACL: []state.ACLRule{{Address: long}}}),
		target(state.Target{Name: iqn, Accounts: []string{long}}),
		account(long, "correct-horse-battery"),
		{Verb: state.Create, Kind: state.KindPortal, Portal: &state.Portal{Address: long, Group: 1}},
	} {
		_, _, err := s.Apply(t.Context(), &follower{}, op)
		e := state.ErrorOf(err)
		if e == nil {
			t.Errorf("%s %s is taken", op.Verb, op.Kind)
			continue
		}
		if n := len(e.Error()) + len(e.Hint); n > 3000 || e.Object == "" || e.Reason == "" {
			t.Errorf("%s %s: an error of %d bytes: %.300s", op.Verb, op.Kind, n, e)
		}
	}
}
