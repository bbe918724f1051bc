package declare_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"blockgate/internal/declare"
	"blockgate/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noSecrets = declare.Secrets{
	File: func(string, string) ([]byte, error) { return nil, errors.New("no files here") },
	Env:  func(string) string { return "" },
}

func load(t testing.TB, text string) *declare.Set {
	t.Helper()
	var s declare.Set
	if err := s.Load("f.yaml", []byte(text), noSecrets); err != nil {
		t.Fatal(err)
	}
	return &s
}

// follower carries out whatever it is told.
type follower struct{}

func (follower) Check(context.Context, *state.Plan) error                 { return nil }
func (follower) Reconcile(context.Context, *state.Plan) ([]string, error) { return nil, nil }

func open(t interface{ Fatal(...any) }) *state.State {
	s, err := state.Open(context.Background(), state.NewMemory())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func apply(s *state.State, configs []state.Config, opt declare.Options) ([]state.Difference, error) {
	p, _, err := s.Change(context.Background(), follower{}, state.Origin{Comm: "test"}, func(snap *state.Snapshot) ([]state.Op, error) {
		return declare.Ops(snap, configs, opt)
	})
	if err != nil {
		return nil, err
	}
	images, err := p.Images()
	if err != nil {
		return nil, err
	}
	return state.Differences(images)
}

// Every field of every resource can be declared, and comes back.
func TestEveryField(t *testing.T) {
	const text = `scope: site
portals:
  - address: "10.0.0.1:3260"
    group: 2
    advertise: san.example:13260
accounts:
  - user: ann
    secret: "0123456789012"
  - user: bob
    secret: other-secret-12
volumes:
  - name: v
    url: file:/srv/v.img
    size: 10G
    blockSize: 4096
    readOnly: true
    direct: true
    sync: true
    bstype: rdwr
    backingStore: "the path, as given"
    layers:
      - kind: delay
        params:
          read: "1ms"
    unit:
      type: disk
      serial: "00012"
      naa: "60000000000000000000000000000001"
      scsiId: "IET     00010001"
      vendor: IET
      product: VIRTUAL-DISK
      revision: "0001"
      removable: true
      readOnly: true
      offline: true
      writeCache: false
      thin: false
      senseFormat: 1
      rotationRate: 7200
      physicalExp: 0
      lowestAligned: 1
      optimalGranularity: 8
      optimalLength: 64
      modePages: ["8:0:1:0x04"]
targets:
  - name: iqn.2025-01.io.example:t
    id: 7
    alias: "null"
    offline: true
    luns:
      - {number: 1, volume: v}
    controllerLun0: true
    acl:
      - {all: true}
      - {address: "[2001:db8::]/64", luns: [1, 2]}
      - {name: iqn.2025-01.io.example:me}
    accounts: [ann]
    outgoingAccount: bob
    portalGroups: [1, 2]
    portIds:
      1: 3
      2: 9
    params:
      MaxConnections: "4"
system:
  offline: true
  debug: true
  discoveryAccounts: [ann]
  discoveryOutgoingAccount: bob
  params:
    iSNS: "Off"
`
	set := load(t, text)
	if got := string(declare.Encode(set.Configs)); got != text {
		t.Errorf("encoded again:\n%s", cmp.Diff(text, got))
	}
	s := open(t)
	if _, err := apply(s, set.Configs, declare.Options{}); err != nil {
		t.Fatal(err)
	}
	got := declare.Export(s.Snapshot(), declare.ExportOptions{Secrets: true})
	if d := cmp.Diff(set.Configs, got); d != "" {
		t.Error(d)
	}
	if diff, err := apply(s, got, declare.Options{}); err != nil || len(diff) > 0 {
		t.Error(diff, err)
	}
	for _, c := range declare.Export(s.Snapshot(), declare.ExportOptions{}) {
		if text := string(declare.Encode([]state.Config{c})); strings.Contains(text, "0123456789012") || strings.Contains(text, "other-secret") {
			t.Error("a secret is exported that was not asked for")
		}
	}
}

// Texts mean what they say, however YAML might read them.
func TestTextsAreTaken(t *testing.T) {
	for text, want := range map[string]string{
		"007": "007", "0x10": "0x10", "1e5": "1e5", "1_000": "1_000", "'yes'": "yes", "true": "true", "\"\\u00e9\"": "é", "~": "", ".inf": ".inf", ">-\n    a\n    b": "a b",
	} {
		for _, file := range []string{"\ufeffscope: s\naccounts:\n- user: u\n  secret: " + text + " \n", strings.ReplaceAll("scope: s\naccounts:\n- secret: "+text+" \n  user: u # end\n", "\n", "\r\n")} {
			set := load(t, file)
			if got := set.Configs[0].Accounts[0].Secret; got != want {
				t.Errorf("%q: %q, want %q", file, got, want)
			}
		}
	}
}

func TestFilesThatAreWrong(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"scope: [a]\n", "f.yaml:1: scope should be a text"},
		{"scope: a b\n", `f.yaml:1: scope "a b"`},
		{"scope: s\nvolume: []\n", `f.yaml:2: there is no field "volume" in a document`},
		{"volumes:\n  name: v\n", "f.yaml:2: volumes should be a list"},
		{"volumes:\n  - name: v\n    url: ram:1M\n    size: ten\n", "f.yaml:4: volumes.0.size should be a size"},
		{"volumes:\n  - name: v\n    readOnly: yes\n", "f.yaml:3: volumes.0.readOnly should be true or false"},
		{"volumes:\n  - name: v\n    name: w\n", "f.yaml:3"},
		{"volumes:\n  - {name: v, size: 1G}\n", "f.yaml:2: volumes.0 has no url"},
		{"volumes:\n  - {name: v, url: }\n", "f.yaml:2: volumes.0 has no url"},
		{"volumes:\n  - &a {name: v}\n  - *a\n", "f.yaml:2: volumes.0: anchors"},
		{"targets:\n  - name: t\n    portIds: {1: 70000}\n", "from 0 to 65535"},
		{"targets:\n  - name: t\n    luns: [{number: -1, volume: v}]\n", "f.yaml:3: targets.0.luns.0.number should be a whole number"},
		{"portals:\n  - address: nowhere\n", "f.yaml:2"},
		{"accounts:\n  - {user: a, secret: x, secretEnv: Y}\n", "f.yaml:2: an account has one of"},
		{"accounts:\n  - {user: a, secretFile: Y}\n", "no files here"},
		{"system: {}\n---\nsystem: {}\n", "f.yaml:3: system is declared already, at f.yaml:1"},
		{"a: b: c\n", "f.yaml:1"},
		{"volumes:\n  -\n", "element 1 of volumes is empty"},
		{strings.Repeat("[", 1000), "nested"},
		{strings.Repeat("- ", 1000), "nested"},
	} {
		var s declare.Set
		err := s.Load("f.yaml", []byte(c.text), noSecrets)
		if e := state.ErrorOf(err); e == nil || !strings.Contains(e.Error(), c.want) || e.Class != state.Usage {
			t.Errorf("%.60q: %v, want %q", c.text, err, c.want)
		}
	}
}

// What belongs to others stays, whoever they are.
func TestOwners(t *testing.T) {
	const iqn = "iqn.2025-01.io.example:t"
	s := open(t)
	do := func(ops ...state.Op) {
		t.Helper()
		if _, _, err := s.Apply(t.Context(), follower{}, ops...); err != nil {
			t.Fatal(err)
		}
	}
	must := func(text string, opt declare.Options, want ...string) {
		t.Helper()
		diff, err := apply(s, load(t, text).Configs, opt)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, d := range diff {
			got = append(got, d.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
	refused := func(text, reason string) {
		t.Helper()
		before := s.Snapshot().Revision()
		_, err := apply(s, load(t, text).Configs, declare.Options{})
		if e := state.ErrorOf(err); e == nil || e.Code != state.CodeOwned || !strings.Contains(e.Error(), reason) {
			t.Errorf("got %v, want %q", err, reason)
		}
		if s.Snapshot().Revision() != before {
			t.Error("a refused declaration changed something")
		}
	}
	a := "scope: a\nvolumes: [{name: v, url: 'ram:1M'}]\ntargets:\n  - name: " + iqn + "\n    luns: [{number: 0, volume: v}]\n    acl: [{all: true}]\n"
	must(a, declare.Options{}, "+ volume v url=ram:1M", "+ target "+iqn, "+ lun 0 of target "+iqn+" volume=v", "+ acl ALL of target "+iqn)
	must(a, declare.Options{})
	// By hand: a volume, a LUN and a rule in the scope's target.
	do(state.Op{Verb: state.Create, Kind: state.KindVolume, Volume: &state.Volume{Name: "hand", URL: "ram:1M"}},
		state.Op{Verb: state.Create, Kind: state.KindLUN, Name: iqn, LUN: &state.LUN{Number: 5, Volume: "hand"}},
		state.Op{Verb: state.Create, Kind: state.KindACL, Name: iqn, ACL: &state.ACLRule{Address: "10.0.0.1"}})
	must(a, declare.Options{})
	refused("scope: a\n", "LUN 5 is made by hand")
	refused("scope: b\nvolumes: [{name: v, url: 'ram:1M'}]\n", `owned by scope "a"`)
	refused("volumes: [{name: v, url: 'ram:1M'}]\n", "declared without a scope")
	refused("scope: b\nvolumes: [{name: hand, url: 'ram:1M'}]\n", "made by hand")
	refused("scope: b\nluns: [{target: '"+iqn+"', number: 5, volume: hand}]\n", "LUN 5 of target")
	// Another scope puts a LUN of its own into the target, and takes it out again.
	must("scope: b\nvolumes: [{name: w, url: 'ram:1M'}]\nluns: [{target: '"+iqn+"', number: 9, volume: w}]\n", declare.Options{},
		"+ volume w url=ram:1M", "+ lun 9 of target "+iqn+" volume=w")
	must(a, declare.Options{})
	must("scope: b\n", declare.Options{}, "- volume w url=ram:1M", "- lun 9 of target "+iqn+" volume=w")
	// Changes by hand to what a scope owns keep the owner, and are put right.
	do(state.Op{Verb: state.Put, Kind: state.KindVolume, Volume: &state.Volume{Name: "v", URL: "ram:1M", Unit: state.UnitParams{Vendor: "X"}}})
	must(a, declare.Options{}, "~ volume v unit.vendor X -> (none)")
	// Without a scope, what is there is changed and nothing deleted.
	must("volumes: [{name: hand, url: 'ram:1M', unit: {vendor: Y}}, {name: more, url: 'ram:1M'}]\n", declare.Options{}, "~ volume hand unit.vendor (none) -> Y", "+ volume more url=ram:1M")
	must("volumes: [{name: hand, url: 'ram:1M', unit: {vendor: Y}}]\n", declare.Options{})
	// Adopted, and then deleted with the rest.
	must(strings.Replace(a, "volumes: [", "volumes: [{name: hand, url: 'ram:1M', unit: {vendor: Y}}, ", 1)+"luns: [{target: '"+iqn+"', number: 5, volume: hand}]\nacl: [{target: '"+iqn+"', address: 10.0.0.1}]\n",
		declare.Options{Adopt: true}, "~ volume hand scope (none) -> a", "~ lun 5 of target "+iqn+" scope (none) -> a", "~ acl 10.0.0.1 of target "+iqn+" scope (none) -> a")
	must("scope: a\n", declare.Options{}, "- volume hand unit.vendor=Y url=ram:1M", "- volume v url=ram:1M", "- target "+iqn,
		"- lun 0 of target "+iqn+" volume=v", "- lun 5 of target "+iqn+" volume=hand", "- acl 10.0.0.1 of target "+iqn, "- acl ALL of target "+iqn)
}

// configs draws what one or two scopes and nobody declare, in normal form.
func configs(t *rapid.T) []state.Config {
	pick := func(label string, n int) int { return rapid.IntRange(0, n).Draw(t, label) }
	var list []state.Config
	var all []string
	for _, scope := range []string{"a", "b", ""} {
		c := state.Config{Scope: scope}
		name := "n" + scope
		if pick("account", 1) == 1 {
			c.Accounts = append(c.Accounts, state.Account{User: name, Secret: "secret-of-" + name + fmt.Sprint(pick("secret", 2))})
		}
		for i := range pick("volumes", 3) {
			v := state.Volume{Name: fmt.Sprintf("%s%d", name, i), URL: "ram:1M", BlockSize: 512, Unit: state.UnitParams{Type: "disk"}}
			v.Unit.Vendor = rapid.SampledFrom([]string{"", "IET", "yes", "a: b"}).Draw(t, "vendor")
			c.Volumes = append(c.Volumes, v)
			all = append(all, v.Name)
		}
		for i := range pick("targets", 3) {
			g := state.Target{Name: fmt.Sprintf("iqn.2025-01.io.example:%s%d", name, i), Offline: pick("offline", 1) == 1}
			g.Alias = rapid.StringMatching(`[ -~]{0,8}`).Draw(t, "alias")
			for n := range pick("luns", 3) {
				if len(all) > 0 {
					g.LUNs = append(g.LUNs, state.LUN{Number: uint64(n), Volume: rapid.SampledFrom(all).Draw(t, "volume")})
				}
			}
			if pick("rule", 1) == 1 {
				g.ACL = append(g.ACL, state.ACLRule{Address: "10.0.0.0/8", LUNs: []uint64{1}})
			}
			if len(c.Accounts) > 0 && pick("chap", 1) == 1 {
				g.Accounts = []string{name}
			}
			c.Targets = append(c.Targets, g)
		}
		if len(c.Accounts)+len(c.Volumes)+len(c.Targets) > 0 {
			list = append(list, c)
		}
	}
	return list
}

// Whatever was declared before: after apply(x), the export is x; applying x or
// the export again is no difference; and a rollback gives what was there.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := open(t)
		for range rapid.IntRange(1, 3).Draw(t, "steps") {
			x := configs(t)
			// Scopes that declare nothing any more lose everything; what nobody owns
			// is taken away by hand.
			for _, scope := range []string{"a", "b"} {
				if !slices.ContainsFunc(x, func(c state.Config) bool { return c.Scope == scope }) {
					x = append(x, state.Config{Scope: scope})
				}
			}
			before := export(s)
			if _, err := apply(s, x, declare.Options{}); err != nil {
				if code := state.ErrorOf(err).Code; code != state.CodeVolumeInUse && code != state.CodeAccountInUse {
					t.Fatalf("apply: %v", err)
				}
				// Something that nobody owns still uses what should go: nothing changed.
				if d := cmp.Diff(before, export(s)); d != "" {
					t.Fatalf("a refused declaration changed the state:\n%s", d)
				}
				continue
			}
			got := owned(declare.Export(s.Snapshot(), declare.ExportOptions{Secrets: true, NoIdentity: true}))
			if d := cmp.Diff(owned(x), got); d != "" {
				t.Fatalf("exported is not what was declared:\n%s", d)
			}
			after := export(s)
			for _, again := range [][]state.Config{x, declare.Export(s.Snapshot(), declare.ExportOptions{})} {
				diff, err := apply(s, again, declare.Options{})
				if err != nil || len(diff) > 0 {
					t.Fatalf("applied again: %v, %v", diff, err)
				}
			}
			var read declare.Set
			if err := read.Load("f", []byte(after), noSecrets); err != nil {
				t.Fatalf("%v in\n%s", err, after)
			}
			if diff, err := apply(s, read.Configs, declare.Options{}); err != nil || len(diff) > 0 {
				t.Fatalf("the written export applied: %v, %v", diff, err)
			}
			if after == before {
				continue
			}
			history, err := s.History(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			undo := func() {
				t.Helper()
				_, _, err := s.Change(context.Background(), follower{}, state.Origin{}, func(snap *state.Snapshot) ([]state.Op, error) {
					history, err := s.History(context.Background())
					if err != nil {
						return nil, err
					}
					images, err := state.Between(history, 0, 0)
					if err != nil {
						return nil, err
					}
					ops, _, err := snap.Restore(images)
					return ops, err
				})
				if err != nil {
					t.Fatalf("rollback: %v (of %d changes)", err, len(history))
				}
			}
			undo()
			if d := cmp.Diff(before, export(s)); d != "" {
				t.Fatalf("rolled back:\n%s", d)
			}
			undo()
			if d := cmp.Diff(after, export(s)); d != "" {
				t.Fatalf("rolled back twice:\n%s", d)
			}
		}
	})
}

func export(s *state.State) string {
	return string(declare.Encode(declare.Export(s.Snapshot(), declare.ExportOptions{Secrets: true})))
}

// owned are the configs that have a scope and declare something, by scope.
func owned(list []state.Config) []state.Config {
	var out []state.Config
	for _, c := range list {
		if c.Scope != "" && len(c.Accounts)+len(c.Volumes)+len(c.Targets) > 0 {
			// Exported they are by number.
			c.Targets = slices.Clone(c.Targets)
			slices.SortFunc(c.Targets, func(a, b state.Target) int { return strings.Compare(a.Name, b.Name) })
			out = append(out, c)
		}
	}
	return out
}

func FuzzLoad(f *testing.F) {
	for _, s := range []string{
		"scope: a\nvolumes:\n  - {name: v, url: \"ram:1M\", size: 1G}\n",
		"targets:\n- name: t\n  luns: [{number: 1, volume: v}]\n  params: {a: b}\n---\nsystem: {offline: true}\n",
		"accounts: [{user: u, secret: |\n  text\n}]\n", "a: &x [*x]\n", "? a\n: b\n", "<<: {a: b}\n", "- - - -\n", "!!int x\n", "%YAML 1.2\n---\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 4096 {
			return
		}
		var s declare.Set
		if err := s.Load("f", raw, noSecrets); err != nil {
			if state.ErrorOf(err).Class != state.Usage {
				t.Fatalf("%v", err)
			}
			return
		}
		// What can be read can be written, and read again as the same.
		text := declare.Encode(s.Configs)
		var again declare.Set
		if err := again.Load("f", text, noSecrets); err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		if got := declare.Encode(again.Configs); string(got) != string(text) {
			t.Fatalf("first\n%s\nthen\n%s", text, got)
		}
	})
}
