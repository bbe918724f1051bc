package tgt

import (
	"slices"
	"strings"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

func (a *admin) target() error {
	switch a.op {
	case opNew:
		return a.newTarget()
	case opDelete:
		return a.deleteTarget()
	case opShow:
		if a.tid >= 0 {
			return a.showParams()
		}
		return a.showTargets()
	case opUpdate:
		return a.updateTarget()
	case opStat:
		t, err := a.findTarget()
		if err != nil {
			return err
		}
		return a.stat(func(s statRow) bool { return s.tid == t.ID }, t.Name)
	default:
		return a.bindTarget()
	}
}

func (a *admin) newTarget() error {
	if i := strings.IndexFunc(a.targetName, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune(":.-", c))
	}); i >= 0 {
		return refuse("target name %q: only letters, digits, ':', '.' and '-' are allowed", a.targetName)
	}
	sys, err := a.settings()
	if err != nil {
		return err
	}
	t := state.Target{Name: a.targetName, ID: a.tid, ControllerLUN0: true}
	// What tgtd was told for new targets (--iscsi nop_interval=…).
	for _, k := range []string{"nop_interval", "nop_count"} {
		if v := sys.Params[k]; v != "" {
			if t.Params == nil {
				t.Params = map[string]string{}
			}
			t.Params[k] = v
		}
	}
	res, err := a.api.Apply(a.ctx, state.Op{Verb: state.Create, Kind: state.KindTarget, Target: &t})
	a.warn(res)
	return err
}

// deleteTarget removes the target with the volumes that were made for its
// units. Data stay.
func (a *admin) deleteTarget() error { return a.retry(a.tryDeleteTarget) }

func (a *admin) tryDeleteTarget() (v1.Result, error) {
	t, err := a.findTarget()
	if err != nil {
		return v1.Result{}, err
	}
	ops := []state.Op{{Verb: state.Delete, Kind: state.KindTarget, Name: t.Name, IfRevision: t.Revision, Force: a.force}}
	if len(t.LUNs) > 0 {
		luns, err := a.api.LUNs(a.ctx, t.Name)
		if err != nil {
			return v1.Result{}, err
		}
		for _, l := range luns {
			others := slices.ContainsFunc(l.Volume.Status.UsedBy, func(r state.LUNRef) bool { return r.Target != t.Name })
			done := slices.ContainsFunc(ops, func(o state.Op) bool { return o.Kind == state.KindVolume && o.Name == l.Volume.Name })
			if owned(&l.Volume.Volume) && !others && !done {
				ops = append(ops, state.Op{Verb: state.Delete, Kind: state.KindVolume, Name: l.Volume.Name})
			}
		}
	}
	return a.api.Apply(a.ctx, ops...)
}

func (a *admin) updateTarget() error {
	t, err := a.findTarget()
	if err != nil {
		return err
	}
	return a.changeTarget(t.Name, func(t *state.Target) error { return setTargetParam(t, a.name, a.value) })
}

// bindTarget adds or removes access rules: one for the address, one for the
// name, both or neither.
func (a *admin) bindTarget() error {
	t, err := a.findTarget()
	if err != nil {
		return err
	}
	if a.host {
		return &failure{message: msgNotSupported, detail: "--host and --bus bind SCSI hosts, which no driver here has"}
	}
	verb := state.Create
	if a.op == opUnbind {
		verb = state.Delete
	}
	var ops []state.Op
	rule := func(r state.ACLRule) {
		ops = append(ops, state.Op{Verb: verb, Kind: state.KindACL, Name: t.Name, ACL: &r})
	}
	if a.hasAddress {
		switch {
		case a.address == "ALL":
			rule(state.ACLRule{All: true})
		case a.address == "":
			return a.emptyRule("an empty address")
		default:
			rule(state.ACLRule{Address: a.address})
		}
	}
	if a.hasInitiator {
		if a.initiator == "" {
			return a.emptyRule("an empty initiator name")
		}
		rule(state.ACLRule{Name: a.initiator})
	}
	res, err := a.api.Apply(a.ctx, ops...)
	a.warn(res)
	if e := state.ErrorOf(err); e != nil && a.op == opUnbind && e.Code == state.CodeInvalidValue {
		return fail(msgNoRule) // what is no rule cannot be there
	}
	return err
}

func (a *admin) emptyRule(what string) error {
	if a.op == opUnbind {
		return fail(msgNoRule)
	}
	return refuse("%s matches nothing; ALL matches every initiator", what)
}
