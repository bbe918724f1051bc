package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"blockgate/gateway"
	"blockgate/iscsi/initiator"
	"blockgate/scsi"
)

func TestPortGroups(t *testing.T) {
	g, addr := newGateway(t, gateway.Config{})
	var saved []scsi.PortGroup
	var refuse error
	export(t, g, gateway.VolumeConfig{Name: "v", URL: "ram:1M"}, gateway.TargetConfig{
		Name: name, ACL: gateway.Everyone(), PortIDs: map[uint16]uint16{2: 7},
		PortGroups: []scsi.PortGroup{{Tag: 2, State: scsi.Standby}},
		SaveALUA: func(_ context.Context, groups []scsi.PortGroup) error {
			saved = groups
			return refuse
		},
	})
	second, err := g.AddPortal(t.Context(), gateway.PortalConfig{Address: "127.0.0.1:0", Group: 2})
	ok(t, err)
	list := func() []scsi.PortGroup {
		t.Helper()
		l, err := g.PortGroups(name)
		ok(t, err)
		return l
	}
	if l := list(); len(l) != 2 || !slices.Equal(l[0].Ports, []uint16{1}) || !slices.Equal(l[1].Ports, []uint16{7}) || l[1].State != scsi.Standby {
		t.Errorf("groups %+v", l)
	}
	first, err := login(t, addr, initiator.Config{})
	ok(t, err)
	defer first.Close()
	other, err := login(t, second.Bound.String(), initiator.Config{})
	ok(t, err)
	defer other.Close()
	tur := func(what string, s *initiator.Session, want string) {
		t.Helper()
		for range 4 { // attentions
			if got := ready(t, s); got[0] != '6' {
				if got != want {
					t.Errorf("%s: %s, want %s", what, got, want)
				}
				return
			}
		}
		t.Errorf("%s: attentions without end", what)
	}
	tur("active", first, "good")
	tur("standby", other, "2/04/0b")
	ok(t, g.SetPortGroup(t.Context(), name, 2, scsi.ActiveNonOptimized, true))
	tur("after the failover", other, "good")
	if len(saved) != 2 || saved[1].State != scsi.ActiveNonOptimized || !saved[1].Preferred {
		t.Errorf("saved %+v", saved)
	}
	refuse = errors.New("no room")
	if err := g.SetPortGroup(t.Context(), name, 1, scsi.Offline, false); !errors.Is(err, refuse) {
		t.Errorf("a state that cannot be kept: %v", err)
	}
	tur("nothing has changed", first, "good")
	refuse = nil

	for _, err := range []error{
		g.SetPortGroup(t.Context(), name, 9, scsi.Standby, false),
		g.SetPortGroup(t.Context(), "iqn.2025-01.io.example:none", 1, scsi.Standby, false),
	} {
		if !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("what is not there: %v", err)
		}
	}
	ok(t, g.RemovePortal(second.Bound.String()))
	if l := list(); len(l) != 1 {
		t.Errorf("without its portal: %+v", l)
	}
	_, err = g.AddPortal(t.Context(), gateway.PortalConfig{Address: "127.0.0.1:0", Group: 2})
	ok(t, err)
	if l := list(); len(l) != 2 || l[1].State != scsi.ActiveNonOptimized || !l[1].Preferred {
		t.Errorf("the portal came back: %+v", l)
	}
	ok(t, g.UpdateTarget(gateway.TargetConfig{Name: name, ACL: gateway.Everyone(), Groups: []uint16{2}}))
	if l := list(); len(l) != 1 || l[0].Tag != 2 || !slices.Equal(l[0].Ports, []uint16{2}) {
		t.Errorf("reached by one group alone: %+v", l)
	}
}

// ready says how TEST UNIT READY ends: "good", or sense data as "2/04/0b".
func ready(t *testing.T, s *initiator.Session) string {
	t.Helper()
	c := &initiator.Command{CDB: make([]byte, 6)}
	ok(t, s.Execute(t.Context(), c))
	if c.Good() {
		return "good"
	}
	if len(c.Sense) < 14 {
		t.Fatalf("status %#x, sense % x", uint8(c.Status), c.Sense)
	}
	return fmt.Sprintf("%x/%02x/%02x", c.Sense[2]&0x0f, c.Sense[12], c.Sense[13])
}
