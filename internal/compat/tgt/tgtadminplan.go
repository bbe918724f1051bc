package tgt

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"blockgate/backing"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/compat/tgtconf"
	"blockgate/internal/state"
)

// wantedStore is a store of the file with the volume that is to serve it.
type wantedStore struct {
	conf   *tgtconf.Store
	volume v1.Volume
	// kept: the volume is there and is updated; shared: it is there, belongs to
	// another target and is mapped as it is. Otherwise it is made.
	kept, shared bool
	// unserved: there is no engine for it; it is kept until there is one.
	unserved bool
}

// add makes a target with all that belongs to it in one step. Its number is the
// file's, or the highest there is and one; another command may take it in
// between, then the next is tried.
func (m *manager) add(t *tgtconf.Target) error {
	m.show("# Adding target: " + t.Name)
	if t.Err != nil {
		return m.wrong(t)
	}
	for try := 0; ; try++ {
		tid := t.TID
		if tid == 0 {
			tid = 1
			for id := range maps.Keys(m.byID) {
				tid = max(tid, id+1)
			}
		}
		stores, err := m.stores(t, tid, nil, try == 0)
		if err != nil {
			return err
		}
		if try == 0 {
			m.showTarget(t, tid, stores)
			if t, err = m.sound(t, tid); err != nil {
				return err
			}
		}
		if m.pretend {
			m.byID[tid] = t.Name
			return nil
		}
		err = m.apply(t, tid, stores, func(target *state.Target) []state.Op {
			return []state.Op{{Verb: state.Create, Kind: state.KindTarget, Target: target}}
		}, nil)
		if e := state.ErrorOf(err); e != nil && e.Code == state.CodeTargetIDExists && t.TID == 0 && try < 20 {
			if err := m.look(); err != nil {
				return m.failed(m.lineTarget(t, tid), err)
			}
			if m.running[t.Name] == nil {
				continue
			}
		}
		if err == nil {
			m.byID[tid] = t.Name
			for i := range stores { // later targets of the file find them taken
				m.volumes[stores[i].volume.Name] = &stores[i].volume
			}
		}
		return m.failed(m.lineFor(t, tid, stores, err), err)
	}
}

// change makes a running target what the file says, under its sessions: LUNs
// that stay are not taken away, and stores that have grown show their new size.
func (m *manager) change(t *tgtconf.Target, now *v1.Target) error {
	m.show("# Updating target: " + t.Name)
	if t.Err != nil {
		return m.wrong(t)
	}
	stores, err := m.stores(t, now.ID, now, true)
	if err != nil {
		return err
	}
	m.showTarget(t, now.ID, stores)
	if t, err = m.sound(t, now.ID); err != nil {
		return err
	}
	if m.pretend {
		return nil
	}
	var drop []state.Op
	for _, l := range now.LUNs {
		v := m.volumes[l.Volume]
		stays := slices.ContainsFunc(stores, func(s wantedStore) bool { return (s.kept || s.shared) && s.volume.Name == l.Volume })
		if v == nil || stays || !owned(&v.Volume) || slices.ContainsFunc(v.Status.UsedBy, func(r state.LUNRef) bool { return r.Target != now.Name }) {
			continue
		}
		if !slices.ContainsFunc(drop, func(o state.Op) bool { return o.Name == l.Volume }) {
			drop = append(drop, state.Op{Verb: state.Delete, Kind: state.KindVolume, Name: l.Volume})
		}
	}
	err = m.apply(t, now.ID, stores, func(target *state.Target) []state.Op {
		target.PortIDs, target.PortalGroups, target.Alias = now.PortIDs, now.PortalGroups, now.Alias
		return []state.Op{{Verb: state.Update, Kind: state.KindTarget, Name: t.Name, Target: target, Force: m.force}}
	}, drop)
	if err == nil {
		for _, s := range stores {
			if !s.kept || s.volume.URL == "" || s.volume.Status.State == v1.Failed {
				continue
			}
			_, err := m.api.ResizeVolume(m.ctx, s.volume.Name, 0)
			if e := state.ErrorOf(err); e != nil && !strings.HasSuffix(e.Reason, backing.ErrNotSupported.Error()) {
				m.warn("LUN %d: the size was not read again: %v", s.conf.LUN, state.ErrorOf(err))
			}
		}
	}
	return m.failed(m.lineFor(t, now.ID, stores, err), err)
}

// sound finds parameters and access rules that will be refused. With
// --ignore-errors it leaves them out; a target that has addresses in the file is
// not opened to all when none of them is left.
func (m *manager) sound(t *tgtconf.Target, tid int) (*tgtconf.Target, error) {
	if m.pretend {
		return t, nil
	}
	c := *t
	c.Params, c.Addresses = nil, nil
	for _, p := range t.Params {
		var probe state.Target
		err := setTargetParam(&probe, p.Name, p.Value)
		for k, v := range probe.Params {
			if _, _, bad := state.CanonicalParam(k, v); bad != nil {
				err = refuse("%s: %v", p.Pos, bad)
			}
		}
		if err == nil {
			c.Params = append(c.Params, p)
		} else if err := m.failed(m.lineParam(t, p, tid), err); err != nil {
			return nil, err
		}
	}
	for _, a := range t.Addresses {
		var err error
		if a.Text != "ALL" {
			_, err = state.ParseACLAddress(a.Text)
		}
		if err == nil {
			c.Addresses = append(c.Addresses, a)
		} else if err := m.failed(m.lineAddress(t, a, tid), refuse("%s: %v", a.Pos, err)); err != nil {
			return nil, err
		}
	}
	c.Closed = c.Closed || len(t.Addresses) > 0
	return &c, nil
}

// wrong reports a target whose part of the file cannot be used.
func (m *manager) wrong(t *tgtconf.Target) error {
	m.warn("%v", t.Err)
	if m.ignoreErrors || m.conf.IgnoreErrors {
		return nil
	}
	return m.say(1, "Check your config file for errors (target: %s)", t.Name)
}

func (m *manager) showTarget(t *tgtconf.Target, tid int, stores []wantedStore) {
	params, rest := m.linesRest(t, tid)
	m.show(m.lineTarget(t, tid))
	m.show(params...)
	for _, s := range stores {
		m.show(m.linesStore(t, s.conf, tid)...)
	}
	m.show(rest...)
	m.show("")
}

// lineFor is the command line that stands for what has failed.
func (m *manager) lineFor(t *tgtconf.Target, tid int, stores []wantedStore, err error) string {
	if i := blamed(stores, err); i >= 0 {
		return m.lineUnit(t, stores[i].conf, tid)
	}
	return m.lineTarget(t, tid)
}

// blamed is the index of the store that an error is about, or -1.
func blamed(stores []wantedStore, err error) int {
	e := state.ErrorOf(err)
	return slices.IndexFunc(stores, func(s wantedStore) bool {
		return e != nil && e.Object == fmt.Sprintf("volume %q", s.volume.Name)
	})
}

// stores are the volumes that a target wants. now is the target as it runs, or
// nil. Stores that are missing or in use are left out, and said.
func (m *manager) stores(t *tgtconf.Target, tid int, now *v1.Target, loud bool) ([]wantedStore, error) {
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	var out []wantedStore
	for _, s := range t.Stores {
		line := m.lineUnit(t, s, tid)
		v, err := wantedVolume(s, tid, dir)
		if err != nil {
			if err := m.failed(line, err); err != nil {
				return nil, err
			}
			continue
		}
		w := wantedStore{conf: s, volume: *v}
		if err := checkPath(v.URL); err != nil {
			if loud {
				m.show("# Skipping device: "+s.Path, fmt.Sprintf("# %s %v - please check the configuration file", s.Path, err))
				m.warn("%s: %s %v; LUN %d is not made", s.Pos, s.Path, err, s.LUN)
			}
			continue
		}
		if m.match(&w, now, out); !w.kept && !m.force && !s.AllowInUse && !strings.Contains(s.Bstype, "rbd") {
			if by := m.inUse(&w); by != "" {
				if loud {
					m.show(fmt.Sprintf("# Skipping device %s - it is in use.", s.Path),
						"# You can override it with --force or 'allow-in-use yes' config option.",
						"# Note - do so only if you know what you're doing, you may damage your data.")
					m.warn("%s: %s is in use by %s; LUN %d is not made", s.Pos, s.Path, by, s.LUN)
				}
				continue
			}
		}
		out = append(out, w)
	}
	return out, nil
}

// wantedVolume is the volume that a store asks for.
func wantedVolume(s *tgtconf.Store, tid int, dir string) (*v1.Volume, error) {
	device := "disk"
	if s.DeviceType != "" {
		var ok bool
		if device, ok = parseDeviceType(s.DeviceType); !ok {
			return nil, refuse("there is no device type %q", s.DeviceType)
		}
	}
	r := &request{tid: tid, lun: s.LUN, path: s.Path, bstype: s.Bstype, bsopts: s.Bsopts, bsflags: s.Bsoflags, blockSize: s.BlockSize, deviceType: device}
	if s.NoMedium {
		r.path = ""
	}
	a := &admin{request: r, dir: dir}
	made, err := a.newVolume()
	if err != nil {
		return nil, err
	}
	v := &v1.Volume{Volume: *made}
	if s.Direct {
		copyIdentity(&v.Volume, s.Path)
	}
	if !s.WriteCache {
		if _, err := setUnitParams(v, dir, "mode_page="+tgtconf.CacheOffPage); err != nil {
			return nil, err
		}
	}
	for _, p := range s.Params {
		if p.Name == "" {
			_, err = setUnitParams(v, dir, substitute(p.Value, tid, s.LUN))
		} else {
			_, err = setUnitParam(v, dir, p.Name, p.Value)
		}
		if err != nil {
			return nil, err
		}
	}
	return v, nil
}

// match finds the volume that serves a store already: one of the target's own,
// or, for a store that another target serves, that one.
func (m *manager) match(w *wantedStore, now *v1.Target, taken []wantedStore) {
	use := func(name string) *v1.Volume {
		v := m.volumes[name]
		if v == nil || v.URL != w.volume.URL || slices.ContainsFunc(taken, func(o wantedStore) bool { return o.volume.Name == name }) {
			return nil
		}
		return v
	}
	if now != nil {
		for _, same := range []bool{true, false} { // the LUN of that number first
			for _, l := range now.LUNs {
				v := use(l.Volume)
				if v == nil || !owned(&v.Volume) || (l.Number == w.conf.LUN) != same {
					continue
				}
				wanted := w.volume
				w.kept, w.volume = true, *v
				w.volume.Volume = wanted.Volume
				w.volume.Name, w.volume.Size, w.volume.Unit.NAA = v.Name, v.Size, first(wanted.Unit.NAA, v.Unit.NAA)
				return
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.volumes)) {
		if v := use(name); v != nil && v.URL != "" && strings.HasPrefix(v.URL, "file:") {
			w.shared, w.volume = true, *v
			return
		}
	}
}

// inUse says who uses a store, or "".
func (m *manager) inUse(w *wantedStore) string {
	if w.shared {
		return fmt.Sprintf("volume %s of this tgtd", w.volume.Name)
	}
	path, isFile := strings.CutPrefix(w.volume.URL, "file:")
	if !isFile {
		return ""
	}
	return m.users.of(path)
}

// apply makes or changes a target in one transaction: around gives the step for
// the target itself, drop what is removed at the end.
func (m *manager) apply(t *tgtconf.Target, tid int, stores []wantedStore, around func(*state.Target) []state.Op, drop []state.Op) error {
	for try := 0; ; try++ {
		ops, err := m.ops(t, tid, stores, around)
		if err != nil {
			return err
		}
		res, err := m.api.Apply(m.ctx, append(ops, drop...)...)
		for _, w := range res.Warnings {
			if !strings.Contains(w, "no engine") { // said already
				m.warn("%s", w)
			}
		}
		e := state.ErrorOf(err)
		if e == nil || try > 2*len(stores)+3 {
			return err
		}
		i := blamed(stores, err)
		switch {
		case e.Code == state.CodeVolumeExists && i >= 0:
			// The volume of an earlier target with this number was kept.
			stores[i].volume.Name = freshVolumeName(tid, stores[i].conf.LUN)
		case e.Code == state.CodeOpenFailed && i >= 0 && !stores[i].volume.ReadOnly &&
			refusesWrites(e):
			stores[i].volume.ReadOnly, stores[i].volume.Unit.ReadOnly = true, true
		case e.Code == state.CodeUnknownEngine && i >= 0 && !stores[i].unserved:
			stores[i].unserved = true
			m.warn("%s: LUN %d is kept and is not served: %s", stores[i].conf.Pos, stores[i].conf.LUN, e.Reason)
		case i >= 0 && (m.ignoreErrors || m.conf.IgnoreErrors):
			m.failed("", err)
			stores = slices.Delete(slices.Clone(stores), i, i+1)
		default:
			return err
		}
	}
}

func (m *manager) ops(t *tgtconf.Target, tid int, stores []wantedStore, around func(*state.Target) []state.Op) ([]state.Op, error) {
	sys, err := m.api.System(m.ctx)
	if err != nil {
		return nil, err
	}
	target := &state.Target{Name: t.Name, ID: tid, ControllerLUN0: true}
	if d := m.driver(t); d != "iscsi" {
		return nil, &failure{message: msgNoDriver, detail: fmt.Sprintf("driver %s: only iscsi is served", d)}
	}
	for _, k := range []string{"nop_interval", "nop_count"} {
		if v := sys.Params[k]; v != "" {
			setParam(target, k, v)
		}
	}
	var ops []state.Op
	account := func(a tgtconf.Account) string {
		ops = append(ops, m.putAccount(a))
		return a.User
	}
	for _, a := range t.Incoming {
		if u := account(a); !slices.Contains(target.Accounts, u) {
			target.Accounts = append(target.Accounts, u)
		}
	}
	if t.Outgoing != nil {
		target.OutgoingAccount = account(*t.Outgoing)
	}
	for _, p := range t.Params {
		if err := setTargetParam(target, p.Name, p.Value); err != nil {
			return nil, err
		}
	}
	rule := func(r state.ACLRule) {
		if !slices.ContainsFunc(target.ACL, func(o state.ACLRule) bool { return o.All == r.All && o.Address == r.Address && o.Name == r.Name }) {
			target.ACL = append(target.ACL, r)
		}
	}
	for _, a := range t.Addresses {
		if a.Text == "ALL" {
			rule(state.ACLRule{All: true})
		} else {
			rule(state.ACLRule{Address: a.Text})
		}
	}
	for _, n := range t.Names {
		rule(state.ACLRule{Name: n.Text})
	}
	if t.OpenToAll() {
		if len(t.Names) == 0 {
			rule(state.ACLRule{All: true})
		} else {
			// tgt-admin adds ALL here, and the names restrict nothing.
			m.show("# initiator-name restricts the target to these names; add 'initiator-address ALL' to open it to all")
		}
	}
	for _, s := range stores {
		v := s.volume.Volume
		switch {
		case s.kept && s.unserved: // as it is
		case s.kept:
			ops = append(ops, state.Op{Verb: state.Update, Kind: state.KindVolume, Name: v.Name, Volume: &v})
		case !s.shared:
			ops = append(ops, state.Op{Verb: state.Create, Kind: state.KindVolume, Volume: &v, Force: s.unserved})
		}
		target.LUNs = append(target.LUNs, state.LUN{Number: s.conf.LUN, Volume: v.Name})
	}
	return append(ops, around(target)...), nil
}

func setParam(t *state.Target, k, v string) {
	if t.Params == nil {
		t.Params = map[string]string{}
	}
	t.Params[k] = v
}
