package declare

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"blockgate/internal/state"
)

// Options change what applying does.
type Options struct {
	// Adopt takes over objects that were made by hand. Those of another scope
	// stay its own.
	Adopt bool
}

// planner works out what leads from a state to declared configs.
type planner struct {
	s      *state.Snapshot
	opt    Options
	scopes map[string]bool // that are declared
	ops    []state.Op
}

// Ops works out the operations that make a state what the configs declare, as
// one transaction: what differs is changed, what a declared scope owns and does
// not declare any more is deleted, and nothing else is touched. No operations
// means no difference. An object that the scope does not own is a conflict that
// names the owner.
func Ops(s *state.Snapshot, configs []state.Config, opt Options) ([]state.Op, error) {
	p := &planner{s: s, opt: opt, scopes: map[string]bool{}}
	for _, c := range configs {
		if c.Scope == "" {
			continue
		}
		if err := state.CheckScope(c.Scope); err != nil {
			return nil, err
		}
		p.scopes[c.Scope] = true
	}
	for _, step := range []func([]state.Config) error{p.portals, p.accounts, p.volumes, p.targets, p.nbdPortals, p.exports, p.system} {
		if err := step(configs); err != nil {
			return nil, err
		}
	}
	return p.changing()
}

// mayTake says whether a scope may have an object with the owner it has now.
func (p *planner) mayTake(what, owner, scope string) error {
	if owner == scope || owner == "" && p.opt.Adopt {
		return nil
	}
	e := &state.Error{Class: state.Conflict, Code: state.CodeOwned, Object: what, Reason: "is " + state.Owner(owner),
		Hint: "remove it from one of the two, or give it another name"}
	if scope != "" {
		e.Reason += fmt.Sprintf(", and not by scope %q that declares it", scope)
	}
	switch {
	case owner == "":
		e.Reason = fmt.Sprintf("exists already, made by hand, and scope %q declares it", scope)
		e.Hint = "take it over with --adopt, or give it another name"
	case scope == "":
		e.Reason += ", and declared without a scope"
		e.Hint = fmt.Sprintf("declare it in that scope's file, with \"scope: %s\"", owner)
	}
	return e
}

// declared collects what the configs declare of one kind, each once.
func collect[T any](kind state.Kind, configs []state.Config, list func(state.Config) []T, id func(*T) (name string, scope *string)) (map[string]*T, error) {
	out := map[string]*T{}
	for _, c := range configs {
		for _, v := range list(c) {
			name, scope := id(&v)
			if out[name] != nil {
				return nil, &state.Error{Class: state.Usage, Code: state.CodeInvalidFile, Object: object(kind, name), Reason: "is declared twice"}
			}
			*scope = c.Scope
			out[name] = &v
		}
	}
	return out, nil
}

func (p *planner) put(op state.Op)    { op.Verb = state.Put; p.ops = append(p.ops, op) }
func (p *planner) delete(op state.Op) { op.Verb = state.Delete; p.ops = append(p.ops, op) }

func names[T any](m map[string]T) []string {
	l := make([]string, 0, len(m))
	for k := range m {
		l = append(l, k)
	}
	slices.Sort(l)
	return l
}

func (p *planner) portals(configs []state.Config) error {
	want, err := collect(state.KindPortal, configs, func(c state.Config) []state.Portal { return slices.Clone(c.Portals) },
		func(v *state.Portal) (string, *string) {
			if addr, err := state.ParsePortal(v.Address); err == nil {
				v.Address = addr
			}
			return v.Address, &v.Scope
		})
	if err != nil {
		return err
	}
	for _, name := range names(want) {
		if old, ok := p.s.Portal(name); ok {
			if err := p.mayTake(object(state.KindPortal, name), old.Value.Scope, want[name].Scope); err != nil {
				return err
			}
		}
		p.put(state.Op{Kind: state.KindPortal, Portal: want[name]})
	}
	for _, old := range p.s.Portals() {
		if v := old.Value; p.scopes[v.Scope] && want[v.Address] == nil {
			p.delete(state.Op{Kind: state.KindPortal, Name: v.Address})
		}
	}
	return nil
}

func (p *planner) accounts(configs []state.Config) error {
	want, err := collect(state.KindAccount, configs, func(c state.Config) []state.Account { return slices.Clone(c.Accounts) },
		func(v *state.Account) (string, *string) { return v.User, &v.Scope })
	if err != nil {
		return err
	}
	for _, name := range names(want) {
		old, ok := p.s.Account(name)
		if ok {
			if err := p.mayTake(object(state.KindAccount, name), old.Value.Scope, want[name].Scope); err != nil {
				return err
			}
		} else if want[name].Secret == "" {
			return &state.Error{Class: state.Usage, Code: state.CodeInvalidFile, Object: object(state.KindAccount, name), Reason: "is new and has no secret",
				Hint: "give it a secretFile, a secretEnv or a secret"}
		}
		p.put(state.Op{Kind: state.KindAccount, Account: want[name]})
	}
	for _, old := range p.s.Accounts() {
		if v := old.Value; p.scopes[v.Scope] && want[v.User] == nil {
			p.delete(state.Op{Kind: state.KindAccount, Name: v.User})
		}
	}
	return nil
}

func (p *planner) volumes(configs []state.Config) error {
	want, err := collect(state.KindVolume, configs, func(c state.Config) []state.Volume { return slices.Clone(c.Volumes) },
		func(v *state.Volume) (string, *string) { return v.Name, &v.Scope })
	if err != nil {
		return err
	}
	for _, name := range names(want) {
		v := want[name]
		if old, ok := p.s.Volume(name); ok {
			if err := p.mayTake(object(state.KindVolume, name), old.Value.Scope, v.Scope); err != nil {
				return err
			}
			if v.Size == 0 && v.URL == old.Value.URL {
				v.Size = old.Value.Size
			}
		}
		p.put(state.Op{Kind: state.KindVolume, Volume: v})
	}
	for _, old := range p.s.Volumes() {
		if v := old.Value; p.scopes[v.Scope] && want[v.Name] == nil {
			p.delete(state.Op{Kind: state.KindVolume, Name: v.Name})
		}
	}
	return nil
}

func (p *planner) system(configs []state.Config) error {
	old := p.s.System().Value
	var want *state.System
	for _, c := range configs {
		if c.System == nil {
			continue
		}
		if want != nil {
			return &state.Error{Class: state.Usage, Code: state.CodeInvalidFile, Object: "system", Reason: "is declared twice"}
		}
		sys := *c.System
		sys.Scope = c.Scope
		want = &sys
	}
	switch {
	case want != nil:
		// Settings that nobody ever made are free to take.
		if untouched(old) {
			break
		}
		if err := p.mayTake("system", old.Scope, want.Scope); err != nil {
			return err
		}
	case p.scopes[old.Scope]:
		want = &state.System{}
	default:
		return nil
	}
	p.ops = append(p.ops, state.Op{Verb: state.Update, Kind: state.KindSystem, System: want, Exact: true})
	return nil
}

func untouched(s state.System) bool {
	return !s.Offline && !s.Debug && s.DiscoveryOutgoingAccount == "" && len(s.DiscoveryAccounts) == 0 && len(s.Params) == 0 && s.Scope == ""
}

// part is a LUN or an access rule that is declared for a target.
type part[T any] struct {
	value T
	scope string
}

// parts are what is declared for one target, by LUN number and rule.
type parts struct {
	luns map[uint64]part[state.LUN]
	acl  map[string]part[state.ACLRule]
	// rules in the order they were declared.
	order []string
}

func (p *planner) targets(configs []state.Config) error {
	want, err := collect(state.KindTarget, configs, func(c state.Config) []state.Target { return slices.Clone(c.Targets) },
		func(v *state.Target) (string, *string) { return v.Name, &v.Scope })
	if err != nil {
		return err
	}
	placed := map[string]*parts{}
	of := func(target string) *parts {
		if placed[target] == nil {
			placed[target] = &parts{luns: map[uint64]part[state.LUN]{}, acl: map[string]part[state.ACLRule]{}}
		}
		return placed[target]
	}
	for _, c := range configs {
		for _, t := range c.Targets {
			for _, l := range t.LUNs {
				if err := of(t.Name).lun(t.Name, l, c.Scope); err != nil {
					return err
				}
			}
			for _, r := range t.ACL {
				if err := of(t.Name).rule(t.Name, r, c.Scope); err != nil {
					return err
				}
			}
		}
		for _, l := range c.LUNs {
			if err := of(l.Target).lun(l.Target, l.LUN, c.Scope); err != nil {
				return err
			}
		}
		for _, r := range c.ACL {
			if err := of(r.Target).rule(r.Target, r.ACLRule, c.Scope); err != nil {
				return err
			}
		}
	}
	for _, name := range names(placed) {
		if _, ok := p.s.Target(name); !ok && want[name] == nil {
			return &state.Error{Class: state.NotFound, Code: state.CodeTargetNotFound, Object: object(state.KindTarget, name),
				Reason: "does not exist, and LUNs or access rules are declared for it", Hint: "declare it under targets"}
		}
	}
	for _, name := range names(want) {
		t := want[name]
		old, ok := p.s.Target(name)
		if ok {
			if err := p.mayTake(object(state.KindTarget, name), old.Value.Scope, t.Scope); err != nil {
				return err
			}
		}
		if err := p.putTarget(*t, &old.Value, placed[name]); err != nil {
			return err
		}
	}
	for _, old := range p.s.Targets() {
		t := old.Value
		switch {
		case want[t.Name] != nil:
		case p.scopes[t.Scope]:
			if err := p.deleteTarget(&t); err != nil {
				return err
			}
		case placed[t.Name] != nil || p.hasParts(&t):
			if err := p.putTarget(t, &t, placed[t.Name]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *parts) lun(target string, l state.LUN, scope string) error {
	if _, twice := a.luns[l.Number]; twice {
		return &state.Error{Class: state.Usage, Code: state.CodeInvalidFile, Object: object(state.KindTarget, target), Reason: fmt.Sprintf("LUN %d is declared twice", l.Number)}
	}
	l.Scope = scope
	a.luns[l.Number] = part[state.LUN]{l, scope}
	return nil
}

func (a *parts) rule(target string, r state.ACLRule, scope string) error {
	if _, twice := a.acl[r.String()]; twice {
		return &state.Error{Class: state.Usage, Code: state.CodeInvalidFile, Object: object(state.KindTarget, target), Reason: fmt.Sprintf("the access rule %s is declared twice", r)}
	}
	r.Scope = scope
	a.acl[r.String()] = part[state.ACLRule]{r, scope}
	a.order = append(a.order, r.String())
	return nil
}

// hasParts: the target holds something of the declared scopes.
func (p *planner) hasParts(t *state.Target) bool {
	return slices.ContainsFunc(t.LUNs, func(l state.LUN) bool { return p.scopes[l.Scope] }) ||
		slices.ContainsFunc(t.ACL, func(r state.ACLRule) bool { return p.scopes[r.Scope] })
}

// putTarget gives a target the settings of t and, of the LUNs and rules it has
// now, those that are not for the declared scopes to say, with what they do say.
func (p *planner) putTarget(t state.Target, old *state.Target, declared *parts) error {
	if declared == nil {
		declared = &parts{}
	}
	t.LUNs, t.ACL = nil, nil
	for _, l := range old.LUNs {
		if d, ok := declared.luns[l.Number]; ok {
			if err := p.mayTake(fmt.Sprintf("LUN %d of %s", l.Number, object(state.KindTarget, t.Name)), l.Scope, d.scope); err != nil {
				return err
			}
		} else if !p.scopes[l.Scope] {
			t.LUNs = append(t.LUNs, l)
		}
	}
	for _, l := range declared.luns {
		t.LUNs = append(t.LUNs, l.value)
	}
	slices.SortFunc(t.LUNs, func(a, b state.LUN) int { return cmp.Compare(a.Number, b.Number) })
	// The order of rules means nothing; keeping it keeps differences small.
	have := map[string]bool{}
	for _, r := range old.ACL {
		if d, ok := declared.acl[r.String()]; ok {
			if err := p.mayTake(fmt.Sprintf("access rule %s of %s", r, object(state.KindTarget, t.Name)), r.Scope, d.scope); err != nil {
				return err
			}
			t.ACL = append(t.ACL, d.value)
			have[r.String()] = true
		} else if !p.scopes[r.Scope] {
			t.ACL = append(t.ACL, r)
		}
	}
	for _, name := range declared.order {
		if !have[name] {
			t.ACL = append(t.ACL, declared.acl[name].value)
		}
	}
	p.put(state.Op{Kind: state.KindTarget, Target: &t})
	return nil
}

// deleteTarget deletes a target, unless others put something into it.
func (p *planner) deleteTarget(t *state.Target) error {
	refuse := func(what, owner, hint string) error {
		return &state.Error{Class: state.Conflict, Code: state.CodeOwned, Object: object(state.KindTarget, t.Name),
			Reason: fmt.Sprintf("is not declared any more, but its %s is %s", what, state.Owner(owner)), Hint: hint}
	}
	for _, l := range t.LUNs {
		if !p.scopes[l.Scope] {
			return refuse(fmt.Sprintf("LUN %d", l.Number), l.Scope, fmt.Sprintf("blockgate lun remove %s %d", t.Name, l.Number))
		}
	}
	for _, r := range t.ACL {
		if !p.scopes[r.Scope] {
			return refuse("access rule "+r.String(), r.Scope, fmt.Sprintf("blockgate initiator deny %s %s", t.Name, strings.ToLower(r.String())))
		}
	}
	p.delete(state.Op{Kind: state.KindTarget, Name: t.Name})
	return nil
}

// changing leaves away the operations that would change nothing.
func (p *planner) changing() ([]state.Op, error) {
	state.Arrange(p.ops)
	plan, err := p.s.Plan(p.ops)
	if err != nil {
		return nil, err
	}
	images, err := plan.Images()
	if err != nil {
		return nil, err
	}
	type id struct {
		kind state.Kind
		name string
	}
	differs := map[id]bool{}
	for _, i := range images {
		differs[id{i.Kind, i.Name}] = true
	}
	var out []state.Op
	for i, op := range plan.Ops {
		if differs[id{op.Kind, op.Name}] || op.Kind == state.KindSystem && differs[id{op.Kind, ""}] {
			out = append(out, p.ops[i])
		}
	}
	return out, nil
}
