package daemon_test

import (
	"context"
	"path/filepath"
	"testing"

	"blockgate/internal/api/client"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/daemon"
	"blockgate/internal/state"
	"blockgate/iscsi/initiator"
)

// Access states set by an administrator and by an initiator are there after a
// restart, and go with their target.
func TestAccessStates(t *testing.T) {
	ctx := t.Context()
	dir, sock := filepath.Join(t.TempDir(), "state"), filepath.Join(t.TempDir(), "s")
	run := func() (*daemon.Daemon, *client.Client) {
		t.Helper()
		d, err := daemon.Start(ctx, daemon.Config{StateDir: dir, Socket: sock, Version: "test", Portals: []state.Portal{
			{Address: "127.0.0.1:0", Group: 1}, {Address: "127.0.0.1:0", Group: 2}, {Address: "127.0.0.1:0", Group: 3},
		}})
		if err != nil {
			t.Fatal(err)
		}
		return d, client.New(sock)
	}
	d, c := run()
	must(c.CreateVolume(ctx, state.Volume{Name: "v", URL: "ram:1M"}))(t)
	must(c.CreateTarget(ctx, state.Target{Name: iqn, ACL: []state.ACLRule{{All: true}}, LUNs: []state.LUN{{Number: 0, Volume: "v"}}}))(t)
	set := func(group uint16, s string, preferred bool) ([]v1.PortGroup, error) {
		return c.SetPortGroup(ctx, iqn, group, v1.SetPortGroup{State: s, Preferred: &preferred})
	}
	if l := must(set(1, "standby", true))(t); len(l) != 3 || l[0].State != "standby" || !l[0].Preferred || l[0].ChangedBy != "administrator" {
		t.Errorf("groups %+v", l)
	}
	// SET TARGET PORT GROUPS: group 2 to active/non-optimized.
	s, err := initiator.Dial(ctx, initiator.Config{Addrs: []string{d.Bound()[1].Bound.String()}, TargetName: iqn})
	if err != nil {
		t.Fatal(err)
	}
	stpg := &initiator.Command{CDB: []byte{0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0}, Out: []byte{0, 0, 0, 0, 0x01, 0, 0, 2}}
	for range 4 { // unit attentions
		if err := s.Execute(ctx, stpg); err != nil {
			t.Fatal(err)
		}
		if stpg.Good() {
			break
		}
	}
	if !stpg.Good() {
		t.Errorf("SET TARGET PORT GROUPS: %v", stpg.Failure())
	}
	s.Close()
	must(set(3, "active/non-optimized", false))(t)
	must(c.SetPortGroup(ctx, iqn, 3, v1.SetPortGroup{State: "active/optimized"}))(t)

	for name, call := range map[string]func() error{
		state.CodeInvalidValue:   func() error { _, err := set(1, "asleep", false); return err },
		state.CodePortalNotFound: func() error { _, err := set(9, "standby", false); return err },
		state.CodeTargetNotFound: func() error { _, err := c.PortGroups(ctx, iqn+"x"); return err },
	} {
		wantCode(t, call(), name)
	}

	stop := func() {
		t.Helper()
		c.Close()
		if err := d.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	d, c = run()
	l := must(c.PortGroups(ctx, iqn))(t)
	for i, want := range []v1.PortGroup{
		{Group: 1, State: "standby", Preferred: true, ChangedBy: "administrator"},
		{Group: 2, State: "active/non-optimized", ChangedBy: "initiator"},
		{Group: 3, State: "active/optimized", ChangedBy: "administrator"},
	} {
		got := l[i]
		if got.Ports == nil {
			t.Errorf("group %d has no port", got.Group)
		}
		if got.Group != want.Group || got.State != want.State || got.Preferred != want.Preferred || got.ChangedBy != want.ChangedBy {
			t.Errorf("after the restart %+v, want %+v", got, want)
		}
	}
	must(c.DeleteTarget(ctx, iqn, false))(t)
	must(c.CreateTarget(ctx, state.Target{Name: iqn}))(t)
	for _, g := range must(c.PortGroups(ctx, iqn))(t) {
		if g.State != "active/optimized" || g.Preferred {
			t.Errorf("a new target of the same name begins with %+v", g)
		}
	}
	stop()
}
