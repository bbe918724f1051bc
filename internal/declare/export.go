package declare

import (
	"slices"

	"blockgate/internal/state"
)

// ExportOptions choose what is exported.
type ExportOptions struct {
	// Scopes restricts it to these; nil is everything, "" is what was made by hand.
	Scopes []string
	// Secrets puts the accounts' secrets in.
	Secrets bool
	// NoIdentity leaves away what tells one disk from another (serial numbers,
	// NAA identifiers, target and port numbers), for use as a template.
	NoIdentity bool
}

// Export is the state as configs, one for each scope, that of no scope last.
// Applying them to an empty state gives this state again; applying them to this
// one changes nothing.
func Export(s *state.Snapshot, opt ExportOptions) []state.Config {
	e := exporter{opt: opt, byScope: map[string]*state.Config{}}
	for _, p := range s.Portals() {
		if c := e.config(p.Value.Scope); c != nil {
			v := p.Value
			v.Scope = ""
			c.Portals = append(c.Portals, v)
		}
	}
	for _, a := range s.Accounts() {
		if c := e.config(a.Value.Scope); c != nil {
			v := a.Value
			v.Scope = ""
			if !opt.Secrets {
				v.Secret = ""
			}
			c.Accounts = append(c.Accounts, v)
		}
	}
	for _, st := range s.Volumes() {
		if c := e.config(st.Value.Scope); c != nil {
			v := st.Value
			v.Scope = ""
			if opt.NoIdentity {
				v.Unit.NAA, v.Unit.Serial = "", ""
			}
			c.Volumes = append(c.Volumes, v)
		}
	}
	for _, t := range s.Targets() {
		e.target(t.Value)
	}
	for _, p := range s.NBDPortals() {
		if c := e.config(p.Value.Scope); c != nil {
			v := p.Value
			v.Scope = ""
			c.NBDPortals = append(c.NBDPortals, v)
		}
	}
	for _, x := range s.Exports() {
		if c := e.config(x.Value.Scope); c != nil {
			v := x.Value
			v.Scope = ""
			c.Exports = append(c.Exports, v)
		}
	}
	if sys := s.System().Value; !untouched(sys) {
		if c := e.config(sys.Scope); c != nil {
			sys.Scope = ""
			c.System = &sys
		}
	}
	list := make([]state.Config, 0, len(e.byScope))
	for _, name := range names(e.byScope) {
		if name != "" {
			list = append(list, *e.byScope[name])
		}
	}
	if c := e.byScope[""]; c != nil {
		list = append(list, *c)
	}
	return list
}

type exporter struct {
	opt     ExportOptions
	byScope map[string]*state.Config
}

// config is that of a scope, nil if it is not wanted.
func (e *exporter) config(scope string) *state.Config {
	if e.opt.Scopes != nil && !slices.Contains(e.opt.Scopes, scope) {
		return nil
	}
	if e.byScope[scope] == nil {
		e.byScope[scope] = &state.Config{Scope: scope}
	}
	return e.byScope[scope]
}

// target exports a target with its owner's parts, and the parts of others with
// theirs.
func (e *exporter) target(t state.Target) {
	luns, acl := t.LUNs, t.ACL
	t.LUNs, t.ACL = nil, nil
	for _, l := range luns {
		owner := l.Scope
		l.Scope = ""
		if owner == t.Scope {
			t.LUNs = append(t.LUNs, l)
		} else if c := e.config(owner); c != nil {
			c.LUNs = append(c.LUNs, state.PlacedLUN{Target: t.Name, LUN: l})
		}
	}
	for _, r := range acl {
		owner := r.Scope
		r.Scope = ""
		if owner == t.Scope {
			t.ACL = append(t.ACL, r)
		} else if c := e.config(owner); c != nil {
			c.ACL = append(c.ACL, state.PlacedRule{Target: t.Name, ACLRule: r})
		}
	}
	if c := e.config(t.Scope); c != nil {
		t.Scope = ""
		if e.opt.NoIdentity {
			t.ID, t.PortIDs = 0, nil
		}
		c.Targets = append(c.Targets, t)
	}
}
