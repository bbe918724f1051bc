package daemon

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"blockgate/internal/state"
	"blockgate/iscsi"
)

// What the state names as defaults is what a target without parameters offers.
func TestOfferDefaults(t *testing.T) {
	params := map[string]string{}
	for _, p := range state.Params() {
		if p.Default != "" {
			if _, v, err := state.CanonicalParam(p.Name, p.Default); err != nil || v != p.Default {
				t.Errorf("%s=%s: %q, %v", p.Name, p.Default, v, err)
			}
			params[p.Name] = p.Default
		}
	}
	if d := cmp.Diff(iscsi.DefaultOffer(), offer(params)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(iscsi.DefaultOffer(), offer(nil)); d != "" {
		t.Error(d)
	}
}
