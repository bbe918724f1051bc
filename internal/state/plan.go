package state

import (
	"cmp"
	"fmt"
	"slices"
)

// MaxOps is the longest transaction.
const MaxOps = 100000

// Plan validates the operations against the snapshot and works out the next
// one. It changes nothing.
func (s *Snapshot) Plan(ops []Op) (*Plan, error) {
	if len(ops) > MaxOps {
		return nil, &Error{Class: Usage, Code: CodeInvalidRequest, Reason: fmt.Sprintf("a transaction has at most %d operations", MaxOps)}
	}
	b := s.edit()
	done := make([]Op, 0, len(ops))
	for i, op := range ops {
		if err := b.apply(&op); err != nil {
			if e := ErrorOf(err); len(ops) > 1 && e.Object == "" {
				e.Object = fmt.Sprintf("operation %d", i+1)
			}
			return nil, err
		}
		done = append(done, op)
	}
	if err := b.checkReferences(); err != nil {
		return nil, err
	}
	return &Plan{Old: s, New: b.Snapshot, Ops: done, Changes: b.changes()}, nil
}

func (b *builder) apply(op *Op) error {
	switch op.Verb {
	case Create, Update, Put, Delete:
	default:
		return &Error{Class: Usage, Code: CodeInvalidRequest, Reason: fmt.Sprintf("there is no verb %q", op.Verb)}
	}
	switch op.Kind {
	case KindVolume:
		return b.applyVolume(op)
	case KindTarget:
		return b.applyTarget(op)
	case KindLUN, KindACL:
		return b.applyPart(op)
	case KindAccount:
		return b.applyAccount(op)
	case KindPortal:
		return b.applyPortal(op)
	case KindExport:
		return b.applyExport(op)
	case KindNBDPortal:
		return b.applyNBDPortal(op)
	case KindSystem:
		if op.System == nil || op.Verb == Delete || op.Verb == Create {
			return &Error{Class: Usage, Code: CodeInvalidRequest, Object: "system", Reason: "the system settings can only be updated"}
		}
		if err := checkRevision(op, "system", b.system.Revision); err != nil {
			return err
		}
		sys := *op.System
		op.keepScope(&sys.Scope, b.system.Value.Scope)
		if err := checkOwner(KindSystem, "", sys.Scope); err != nil {
			return err
		}
		b.system.Value = sys
		b.touch(KindSystem, "")
		return nil
	}
	return &Error{Class: Usage, Code: CodeInvalidRequest, Reason: fmt.Sprintf("there is no kind %q", op.Kind)}
}

func checkRevision(op *Op, obj string, rev uint64) error {
	if op.IfRevision == 0 || op.IfRevision == rev {
		return nil
	}
	return &Error{Class: Conflict, Code: CodeRevision, Object: obj, Hint: "read it again and repeat",
		Reason: fmt.Sprintf("has changed meanwhile (revision %d, expected %d)", rev, op.IfRevision)}
}

// listOf is the command that lists a kind.
func listOf(k Kind) string {
	if k == KindExport || k == KindNBDPortal {
		return "blockgate nbd list"
	}
	return fmt.Sprintf("blockgate %s list", k)
}

// checkVerb applies the rules that all kinds share.
func checkVerb(op *Op, exists bool, rev uint64, given bool, notFound, there string) error {
	if op.Verb != Delete && !given {
		return &Error{Class: Usage, Code: CodeInvalidRequest, Object: object(op.Kind, op.Name), Reason: fmt.Sprintf("%s without a %s", op.Verb, op.Kind.Noun())}
	}
	switch {
	case op.Verb == Create && exists:
		return conflict(there, op.Kind, op.Name, "", "exists already")
	case (op.Verb == Update || op.Verb == Delete) && !exists:
		return missing(notFound, op.Kind, op.Name, listOf(op.Kind))
	}
	return checkRevision(op, object(op.Kind, op.Name), rev)
}

func (b *builder) applyVolume(op *Op) error {
	if op.Volume != nil {
		op.Name = op.Volume.Name
	}
	old, exists := b.volumes.find(op.Name)
	if err := checkVerb(op, exists, old.Revision, op.Volume != nil, CodeVolumeNotFound, CodeVolumeExists); err != nil {
		return err
	}
	if op.Verb == Delete {
		refs := slices.Clone(b.users.get(op.Name))
		if len(refs) > 0 && !op.Force {
			return conflict(CodeVolumeInUse, KindVolume, op.Name,
				fmt.Sprintf("blockgate lun remove %s %d, or delete it with --force (initiators will see the LUN vanish)", refs[0].Target, refs[0].Number),
				"is mapped as LUN %d of target %q%s", refs[0].Number, refs[0].Target, andMore(len(refs)-1))
		}
		for _, r := range refs {
			t := b.targets.get(r.Target).Value
			if i, ok := t.findLUN(r.Number); ok {
				t.LUNs = slices.Delete(slices.Clone(t.LUNs), i, i+1)
				b.setTarget(t)
			}
		}
		if err := b.releaseExports(op); err != nil {
			return err
		}
		b.own(KindVolume)
		b.volumes.delete(op.Name)
		b.touch(KindVolume, op.Name)
		return nil
	}
	v := *op.Volume
	var was *Volume
	if exists {
		was = &old.Value
		op.keepScope(&v.Scope, old.Value.Scope)
	}
	if err := v.normalize(was); err != nil {
		return err
	}
	b.setVolume(v)
	return nil
}

func andMore(n int) string {
	if n <= 0 {
		return ""
	}
	return fmt.Sprintf(" and %d more", n)
}

func (b *builder) applyTarget(op *Op) error {
	if op.Target != nil {
		op.Name = op.Target.Name
	}
	old, exists := b.targets.find(op.Name)
	if err := checkVerb(op, exists, old.Revision, op.Target != nil, CodeTargetNotFound, CodeTargetExists); err != nil {
		return err
	}
	if op.Verb == Delete {
		b.deleteTarget(op.Name)
		return nil
	}
	t := *op.Target
	t.LUNs, t.ACL = slices.Clone(t.LUNs), slices.Clone(t.ACL)
	if err := t.normalize(); err != nil {
		return err
	}
	if exists {
		op.keepScopes(&t, &old.Value)
	}
	b.own(KindTarget)
	if t.ID == 0 && exists {
		t.ID = old.Value.ID
	}
	if t.ID == 0 {
		t.ID = b.freeID()
	}
	if other := b.ids.get(t.ID); other != "" && other != t.Name {
		return conflict(CodeTargetIDExists, KindTarget, t.Name, "leave the id away to get a free one", "the id %d belongs to target %q", t.ID, other)
	}
	if exists && t.PortIDs == nil {
		t.PortIDs = old.Value.PortIDs
	}
	b.setTarget(t)
	return nil
}

// applyPart changes one LUN or access rule of a target.
func (b *builder) applyPart(op *Op) error {
	st, ok := b.targets.find(op.Name)
	if !ok {
		return missing(CodeTargetNotFound, KindTarget, op.Name, "blockgate target list")
	}
	if err := checkRevision(op, object(KindTarget, op.Name), st.Revision); err != nil {
		return err
	}
	t := st.Value
	if op.Kind == KindACL {
		if op.ACL == nil {
			return invalid(CodeInvalidRequest, KindTarget, op.Name, "", "%s of an access rule without the rule", op.Verb)
		}
		i := slices.IndexFunc(t.ACL, op.ACL.same)
		switch {
		case op.Verb == Create && i >= 0:
			return conflict(CodeACLExists, KindTarget, op.Name, "", "the access rule %s is there already", op.ACL)
		case (op.Verb == Delete || op.Verb == Update) && i < 0:
			return &Error{Class: NotFound, Code: CodeACLNotFound, Object: object(KindTarget, op.Name),
				Reason: fmt.Sprintf("has no access rule %s", op.ACL), Hint: "blockgate initiator list " + op.Name}
		}
		t.ACL = slices.Clone(t.ACL)
		switch {
		case op.Verb == Delete:
			t.ACL = slices.Delete(t.ACL, i, i+1)
		case i >= 0:
			scope := t.ACL[i].Scope
			t.ACL[i] = *op.ACL
			op.keepScope(&t.ACL[i].Scope, scope)
		default:
			t.ACL = append(t.ACL, *op.ACL)
		}
	} else {
		if op.LUN == nil {
			return invalid(CodeInvalidRequest, KindTarget, op.Name, "", "%s of a LUN without its number", op.Verb)
		}
		i, there := t.findLUN(op.LUN.Number)
		switch {
		case op.Verb == Create && (there || op.LUN.Number == 0 && t.ControllerLUN0):
			return conflict(CodeLUNExists, KindTarget, op.Name, "blockgate lun list "+op.Name, "LUN %d exists already", op.LUN.Number)
		case (op.Verb == Delete || op.Verb == Update) && !there:
			return &Error{Class: NotFound, Code: CodeLUNNotFound, Object: object(KindTarget, op.Name),
				Reason: fmt.Sprintf("has no LUN %d", op.LUN.Number), Hint: "blockgate lun list " + op.Name}
		}
		t.LUNs = slices.Clone(t.LUNs)
		switch {
		case op.Verb == Delete:
			t.LUNs = slices.Delete(t.LUNs, i, i+1)
		case there:
			scope := t.LUNs[i].Scope
			t.LUNs[i] = *op.LUN
			op.keepScope(&t.LUNs[i].Scope, scope)
		default:
			t.LUNs = slices.Insert(t.LUNs, i, *op.LUN)
		}
	}
	if err := t.normalize(); err != nil {
		return err
	}
	b.setTarget(t)
	return nil
}

func (b *builder) applyAccount(op *Op) error {
	if op.Account != nil {
		op.Name = op.Account.User
	}
	old, exists := b.accounts.find(op.Name)
	if err := checkVerb(op, exists, old.Revision, op.Account != nil, CodeAccountNotFound, CodeAccountExists); err != nil {
		return err
	}
	if op.Verb == Delete {
		if err := b.releaseAccount(op); err != nil {
			return err
		}
		b.own(KindAccount)
		b.accounts.delete(op.Name)
		b.touch(KindAccount, op.Name)
		return nil
	}
	a := *op.Account
	if a.Secret == "" {
		a.Secret = old.Value.Secret
	}
	op.keepScope(&a.Scope, old.Value.Scope)
	if err := checkOwner(KindAccount, a.User, a.Scope); err != nil {
		return err
	}
	if err := checkAccount(a); err != nil {
		return err
	}
	b.own(KindAccount)
	b.accounts.set(a.User, Stored[Account]{Value: a, Revision: old.Revision})
	b.touch(KindAccount, a.User)
	return nil
}

// releaseAccount refuses to delete an account in use or, with Force, takes it
// away wherever it is named. A target whose last account this was is set
// offline: without one it would be open to everyone its access rules allow.
func (b *builder) releaseAccount(op *Op) error {
	user := op.Name
	inUse := func(where string) error {
		return conflict(CodeAccountInUse, KindAccount, user, "take it from there first, or delete it with --force", "is used by %s", where)
	}
	for name, st := range b.targets.all() {
		t := st.Value
		if !slices.Contains(t.Accounts, user) && t.OutgoingAccount != user {
			continue
		}
		if !op.Force {
			return inUse(object(KindTarget, name))
		}
		had := len(t.Accounts)
		t.Accounts = without(t.Accounts, user)
		if had > 0 && len(t.Accounts) == 0 {
			t.Offline = true
		}
		if t.OutgoingAccount == user {
			t.OutgoingAccount = ""
		}
		b.setTarget(t)
	}
	sys := b.system.Value
	if slices.Contains(sys.DiscoveryAccounts, user) || sys.DiscoveryOutgoingAccount == user {
		if !op.Force {
			return inUse("discovery")
		}
		sys.DiscoveryAccounts = without(sys.DiscoveryAccounts, user)
		if sys.DiscoveryOutgoingAccount == user {
			sys.DiscoveryOutgoingAccount = ""
		}
		b.system.Value = sys
		b.touch(KindSystem, "")
	}
	return nil
}

func without(list []string, s string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(e string) bool { return e == s })
}

func (b *builder) applyPortal(op *Op) error {
	var p Portal
	if op.Portal != nil {
		p = *op.Portal
		if err := p.normalize(); err != nil {
			return err
		}
		op.Name = p.Address
	} else if addr, err := ParsePortal(op.Name); err == nil {
		op.Name = addr
	}
	old, exists := b.portals.find(op.Name)
	if err := checkVerb(op, exists, old.Revision, op.Portal != nil, CodePortalNotFound, CodePortalExists); err != nil {
		return err
	}
	b.own(KindPortal)
	b.touch(KindPortal, op.Name)
	if op.Verb == Delete {
		b.portals.delete(op.Name)
		return nil
	}
	op.keepScope(&p.Scope, old.Value.Scope)
	newGroup := true
	for _, q := range b.portals.all() {
		newGroup = newGroup && q.Value.Group != p.Group
	}
	b.portals.set(p.Address, Stored[Portal]{Value: p, Revision: old.Revision})
	if newGroup && p.Group != 1 {
		// Targets that are in every group get a port in this one.
		for _, name := range sortedNames(b.targets) {
			if t := b.targets.get(name).Value; len(t.PortalGroups) == 0 && t.PortIDs[p.Group] == 0 {
				b.setTarget(t)
			}
		}
	}
	return nil
}

// checkReferences makes sure that whatever the changed resources name exists.
func (b *builder) checkReferences() error {
	for _, c := range b.dirty {
		switch c.Kind {
		case KindTarget:
			t := b.targets.get(c.Name).Value
			for _, l := range t.LUNs {
				if _, ok := b.volumes.find(l.Volume); !ok {
					e := missing(CodeVolumeNotFound, KindVolume, l.Volume, "blockgate volume list")
					e.Reason = fmt.Sprintf("does not exist (wanted as LUN %d of target %q)", l.Number, t.Name)
					return e
				}
			}
			if err := b.needAccounts(t.Accounts, t.OutgoingAccount); err != nil {
				return err
			}
			if t.OutgoingAccount != "" {
				if err := b.checkMutual(t); err != nil {
					return err
				}
			}
		case KindSystem:
			sys := b.system.Value
			if err := b.needAccounts(sys.DiscoveryAccounts, sys.DiscoveryOutgoingAccount); err != nil {
				return err
			}
		case KindExport:
			if err := b.checkExport(c.Name); err != nil {
				return err
			}
		case KindVolume:
			if _, ok := b.volumes.find(c.Name); !ok && len(b.users.get(c.Name)) > 0 {
				r := b.users.get(c.Name)[0]
				return conflict(CodeVolumeInUse, KindVolume, c.Name, "", "is mapped as LUN %d of target %q", r.Number, r.Target)
			}
		}
	}
	return nil
}

// needAccounts wants all of users, and outgoing if there is one.
func (b *builder) needAccounts(users []string, outgoing string) error {
	for _, u := range users {
		if _, ok := b.accounts.find(u); !ok {
			return missing(CodeAccountNotFound, KindAccount, u, "blockgate account create "+cmp.Or(u, "USER"))
		}
	}
	if _, ok := b.accounts.find(outgoing); !ok && outgoing != "" {
		return missing(CodeAccountNotFound, KindAccount, outgoing, "blockgate account create "+outgoing)
	}
	return nil
}

// checkMutual refuses one secret for both directions (RFC 7143 §12.1.3).
func (b *builder) checkMutual(t Target) error {
	out := b.accounts.get(t.OutgoingAccount).Value.Secret
	for _, u := range t.Accounts {
		if b.accounts.get(u).Value.Secret == out {
			return conflict(CodeInvalidValue, KindTarget, t.Name, "give the target's own account another secret",
				"accounts %q and %q have the same secret, which mutual CHAP forbids", u, t.OutgoingAccount)
		}
	}
	return nil
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	l := make([]K, 0, len(m))
	for k := range m {
		l = append(l, k)
	}
	slices.Sort(l)
	return l
}
