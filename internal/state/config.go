package state

import "strings"

// Config is a set of resources that are declared together: what one scope
// wants to exist. The scope owns what it made: an object of the scope that is
// not in the set any more is deleted when the set is applied. A Config without
// a scope owns nothing and so deletes nothing.
type Config struct {
	Scope    string    `json:"scope,omitempty"`
	Portals  []Portal  `json:"portals,omitempty"`
	Accounts []Account `json:"accounts,omitempty"` // an empty secret keeps the one there is
	Volumes  []Volume  `json:"volumes,omitempty"`  // a size of 0 keeps the one there is
	Targets  []Target  `json:"targets,omitempty"`
	// LUNs and ACL are parts of targets that others own.
	LUNs   []PlacedLUN  `json:"luns,omitempty"`
	ACL    []PlacedRule `json:"acl,omitempty"`
	System *System      `json:"system,omitempty"` // nil: not declared

	NBDPortals []NBDPortal `json:"nbdPortals,omitempty"`
	Exports    []Export    `json:"exports,omitempty"`
}

// PlacedLUN is a LUN with the name of its target.
type PlacedLUN struct {
	Target string `json:"target"`
	LUN    `yaml:",inline"`
}

// PlacedRule is an access rule with the name of its target.
type PlacedRule struct {
	Target  string `json:"target"`
	ACLRule `yaml:",inline"`
}

// CheckScope tells what is wrong with a scope's name: 1 to 64 letters, digits,
// dots, dashes and underscores, the first a letter or digit.
func CheckScope(name string) error {
	bad := func(reason string) error {
		return &Error{Class: Usage, Code: CodeInvalidName, Object: `scope "` + name + `"`, Reason: reason,
			Hint: "use letters, digits, '.', '-' and '_', beginning with a letter or digit"}
	}
	if name == "" || len(name) > 64 {
		return bad("a scope's name has 1 to 64 characters")
	}
	for i, c := range []byte(name) {
		if !alnum(c) && (i == 0 || !strings.ContainsRune("._-", rune(c))) {
			return bad("is no name for a scope")
		}
	}
	return nil
}

// checkOwner checks the scope of a resource, which may be empty.
func checkOwner(k Kind, name, scope string) error {
	if scope == "" {
		return nil
	}
	if err := CheckScope(scope); err != nil {
		return invalid(CodeInvalidValue, k, name, "", "%v", err)
	}
	return nil
}

// Owner says who made an object, for people.
func Owner(scope string) string {
	if scope == "" {
		return "made by hand"
	}
	return `owned by scope "` + scope + `"`
}

// keepScope lets an object that names no owner keep the one it has.
func (op *Op) keepScope(scope *string, was string) {
	if *scope == "" && !op.Exact {
		*scope = was
	}
}

func (op *Op) keepScopes(t, old *Target) {
	op.keepScope(&t.Scope, old.Scope)
	for i, l := range t.LUNs {
		if was, ok := old.LUN(l.Number); ok {
			op.keepScope(&t.LUNs[i].Scope, was.Scope)
		}
	}
	for i, r := range t.ACL {
		for _, was := range old.ACL {
			if r.same(was) {
				op.keepScope(&t.ACL[i].Scope, was.Scope)
			}
		}
	}
}
