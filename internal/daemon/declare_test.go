package daemon_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"blockgate/internal/api/client"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
	"blockgate/iscsi/initiator"
)

func site(dir string) state.Config {
	return state.Config{Scope: "site",
		Volumes: []state.Volume{{Name: "a", URL: "file:" + filepath.Join(dir, "a"), Size: 1 << 20}, {Name: "b", URL: "ram:1M"}},
		Targets: []state.Target{{Name: iqn, ACL: []state.ACLRule{{All: true}}, LUNs: []state.LUN{{Number: 0, Volume: "a"}, {Number: 1, Volume: "b"}}}},
	}
}

// What initiators use is taken away only by force, and the refusal names them.
func TestDeclareUnderSessions(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	d, c := start(t, "", state.Portal{Address: "127.0.0.1:0", Group: 1})
	must(c.Declare(ctx, v1.Declare{Configs: []state.Config{site(dir)}}))(t)
	s, err := initiator.Dial(ctx, initiator.Config{Addrs: []string{d.Bound()[0].Bound.String()}, TargetName: iqn, InitiatorName: "iqn.2025-01.io.example:me"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for what, edit := range map[string]struct {
		code string
		f    func(*state.Config)
	}{
		"target":     {state.CodeTargetActive, func(c *state.Config) { c.Targets = nil }},
		"LUN":        {state.CodeLUNActive, func(c *state.Config) { c.Targets[0].LUNs = c.Targets[0].LUNs[:1] }},
		"other disk": {state.CodeLUNActive, func(c *state.Config) { c.Targets[0].LUNs[0].Volume, c.Targets[0].LUNs[1].Volume = "b", "a" }},
		"store":      {state.CodeVolumeActive, func(c *state.Config) { c.Volumes[1].URL = "ram:2M" }},
		"read-only":  {state.CodeVolumeActive, func(c *state.Config) { c.Volumes[1].Unit.ReadOnly = true }},
		"smaller":    {state.CodeResizeFailed, func(c *state.Config) { c.Volumes[0].Size = 1 << 19 }},
	} {
		cfg := site(dir)
		edit.f(&cfg)
		before := must(c.System(ctx))(t).Revision
		_, err := c.Declare(ctx, v1.Declare{Configs: []state.Config{cfg}})
		wantCode(t, err, edit.code)
		if edit.code != state.CodeResizeFailed && !strings.Contains(err.Error(), "iqn.2025-01.io.example:me from 127.0.0.1:") {
			t.Errorf("%s: the refusal does not name the initiator: %v", what, err)
		}
		dry := must(c.Declare(ctx, v1.Declare{Configs: []state.Config{cfg}, DryRun: true}))(t)
		if dry.Refusal == nil || dry.Refusal.Code != edit.code || len(dry.Differences) == 0 {
			t.Errorf("%s: dry run %+v", what, dry)
		}
		if after := must(c.System(ctx))(t).Revision; after != before {
			t.Errorf("%s: a refused declaration changed the state", what)
		}
	}
	// What initiators do not mind goes without force: another LUN, a larger disk.
	cfg := site(dir)
	cfg.Volumes[0].Size = 2 << 20
	cfg.Volumes = append(cfg.Volumes, state.Volume{Name: "c", URL: "ram:1M"})
	cfg.Targets[0].LUNs = append(cfg.Targets[0].LUNs, state.LUN{Number: 2, Volume: "c"})
	must(c.Declare(ctx, v1.Declare{Configs: []state.Config{cfg}}))(t)
	if v := must(c.Volume(ctx, "a"))(t); v.Status.Size != 2<<20 || v.Size != 2<<20 {
		t.Errorf("volume %+v", v)
	}
	// A rollback is refused in the same way, and forced in the same way.
	_, err = c.Rollback(ctx, v1.Rollback{})
	wantCode(t, err, state.CodeLUNActive)
	res := must(c.Rollback(ctx, v1.Rollback{Force: true}))(t)
	if len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0], "never shrink") {
		t.Errorf("warnings %q", res.Warnings)
	}
	must(c.Declare(ctx, v1.Declare{Configs: []state.Config{{Scope: "site"}}, Force: true}))(t)
	if l := must(c.Targets(ctx))(t); len(l) != 0 {
		t.Errorf("targets %v", l)
	}
}

// A volume whose store is gone is kept, in the state and in what is declared.
func TestDeclareKeepsFailedVolumes(t *testing.T) {
	ctx, dir, data := t.Context(), t.TempDir(), t.TempDir()
	d, c := start(t, dir)
	cfg := site(data)
	must(c.Declare(ctx, v1.Declare{Configs: []state.Config{cfg}}))(t)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(data, "a"), filepath.Join(data, "hidden")); err != nil {
		t.Fatal(err)
	}
	_, c = start(t, dir)
	res := must(c.Declare(ctx, v1.Declare{Configs: []state.Config{cfg}}))(t)
	if len(res.Differences) != 0 || len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0], `volume "a" does not run`) {
		t.Errorf("%+v", res)
	}
	if _, err := os.Stat(filepath.Join(data, "a")); err == nil {
		t.Error("a new store was made in place of the lost one")
	}
	// Other changes go on around it.
	cfg.Targets[0].Alias = "x"
	must(c.Declare(ctx, v1.Declare{Configs: []state.Config{cfg}}))(t)
	if v := must(c.Volume(ctx, "a"))(t); v.Status.State != v1.Failed {
		t.Errorf("volume is %s", v.Status.State)
	}
	// Deleted, and brought back by a rollback while its store is not there: that
	// is refused, and no empty disk takes its place.
	must(c.Declare(ctx, v1.Declare{Configs: []state.Config{{Scope: "site"}}}))(t)
	_, err := c.Rollback(ctx, v1.Rollback{})
	wantCode(t, err, state.CodeOpenFailed)
	if err := os.Rename(filepath.Join(data, "hidden"), filepath.Join(data, "a")); err != nil {
		t.Fatal(err)
	}
	must(c.Rollback(ctx, v1.Rollback{}))(t)
	if v := must(c.Volume(ctx, "a"))(t); v.Status.State != v1.Online {
		t.Errorf("volume is %s: %s", v.Status.State, v.Status.Error)
	}
}

// The history tells who did what, keeps no more than it says, and never a secret
// in what it shows.
func TestHistory(t *testing.T) {
	ctx := t.Context()
	_, c := start(t, "")
	me := client.New(c.Socket())
	me.Command = "blockgate account create joe"
	defer me.Close()
	must(me.CreateAccount(ctx, state.Account{User: "joe", Secret: "correct-horse-battery"}))(t)
	list := must(c.History(ctx))(t)
	if len(list) != 1 || list[0].UID != os.Getuid() || list[0].PID != os.Getpid() || list[0].Comm == "" || list[0].Command != me.Command || list[0].Created != 1 || list[0].Time.IsZero() {
		t.Errorf("%+v", list)
	}
	one := must(c.HistoryChange(ctx, list[0].Revision))(t)
	if len(one.Differences) != 1 || one.Differences[0].String() != "+ account joe" {
		t.Errorf("%v", one.Differences)
	}
	must(c.Apply(ctx, state.Op{Verb: state.Put, Kind: state.KindAccount, Account: &state.Account{User: "joe", Secret: "another-secret"}}))(t)
	if l := must(c.Differences(ctx, 0, 0))(t); len(l) != 1 || l[0].String() != "~ account joe secret changed" {
		t.Errorf("%v", l)
	}
	for i := range state.MaxHistory + 20 {
		must(c.Apply(ctx, state.Op{Verb: state.Update, Kind: state.KindSystem, System: &state.System{Debug: i%2 == 0}}))(t)
	}
	list = must(c.History(ctx))(t)
	if len(list) != state.MaxHistory {
		t.Errorf("%d changes are kept", len(list))
	}
	_, err := c.Rollback(ctx, v1.Rollback{Revision: 1})
	wantCode(t, err, state.CodeNoRevision)
}

func TestWarnsOfSpace(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	_, c := start(t, "")
	v := must(c.CreateVolume(ctx, state.Volume{Name: "huge", URL: "file:" + filepath.Join(dir, "huge"), Size: 1 << 42}))(t)
	if len(v.Warnings) != 1 || !strings.Contains(v.Warnings[0], "4T are more than the") {
		t.Errorf("warnings %q", v.Warnings)
	}
	if v := must(c.CreateVolume(ctx, state.Volume{Name: "small", URL: "file:" + filepath.Join(dir, "small"), Size: 1 << 20}))(t); len(v.Warnings) > 0 {
		t.Errorf("warnings %q", v.Warnings)
	}
}

// A declaration of which the last part cannot be done leaves nothing behind
// that anyone could see, and can be repeated when the obstacle is gone.
func TestDeclareIsAtomic(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	d, c := start(t, t.TempDir())
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	old := state.Config{Scope: "site", Volumes: []state.Volume{{Name: "old", URL: "ram:1M"}},
		Targets: []state.Target{{Name: iqn + "2", LUNs: []state.LUN{{Number: 0, Volume: "old"}}}}}
	must(c.Declare(ctx, v1.Declare{Configs: []state.Config{old}}))(t)
	before := must(c.Export(ctx, v1.Export{}))(t)

	cfg := site(dir)
	cfg.Portals = []state.Portal{{Address: taken.Addr().String(), Group: 1}}
	_, err = c.Declare(ctx, v1.Declare{Configs: []state.Config{cfg}})
	wantCode(t, err, state.CodeListenFailed)
	if diff := cmp.Diff(before, must(c.Export(ctx, v1.Export{}))(t)); diff != "" {
		t.Error(diff)
	}
	if l := d.Gateway().Volumes(); len(l) != 1 || l[0].Name != "old" {
		t.Errorf("volumes that run: %v", l)
	}
	if h := must(c.History(ctx))(t); len(h) != 1 {
		t.Errorf("the history has %d changes", len(h))
	}
	taken.Close()
	must(c.Declare(ctx, v1.Declare{Configs: []state.Config{cfg}}))(t)
	if l := d.Gateway().Volumes(); len(l) != 2 {
		t.Errorf("volumes that run: %v", l)
	}
	if p := must(c.Portals(ctx))(t); len(p) != 1 || p[0].State != v1.Online {
		t.Errorf("portals %+v", p)
	}
	// And back, portal and all.
	must(c.Rollback(ctx, v1.Rollback{}))(t)
	if diff := cmp.Diff(before, must(c.Export(ctx, v1.Export{}))(t)); diff != "" {
		t.Error(diff)
	}
}
