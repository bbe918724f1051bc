package declare

import (
	"path/filepath"
	"reflect"
	"strings"

	"blockgate/internal/state"
)

// declared are the resources of a document, as they are written.
type declared struct {
	Portals  []state.Portal     `json:"portals,omitempty"`
	Accounts []account          `json:"accounts,omitempty"`
	Volumes  []state.Volume     `json:"volumes,omitempty"`
	Targets  []state.Target     `json:"targets,omitempty"`
	LUNs     []state.PlacedLUN  `json:"luns,omitempty"`
	ACL      []state.PlacedRule `json:"acl,omitempty"`
	System   *state.System      `json:"system,omitempty"`

	NBDPortals []state.NBDPortal `json:"nbdPortals,omitempty"`
	Exports    []state.Export    `json:"exports,omitempty"`
}

// account has its secret in the file, in another file or in the environment,
// or has none: then the account is to be there already and keeps its own.
type account struct {
	state.Account
	SecretFile string `json:"secretFile,omitempty"`
	SecretEnv  string `json:"secretEnv,omitempty"`
}

// Load reads one file into the set. name is what errors call it, and where
// files named in it are looked for.
func (s *Set) Load(name string, raw []byte, secrets Secrets) error {
	docs, err := parse(name, raw)
	if err != nil {
		return err
	}
	if s.Where == nil {
		s.Where = map[string]Position{}
	}
	for _, n := range docs {
		d := decoder{file: name, at: map[string]Position{}}
		var doc document
		if err := d.decode(n.Body, reflect.ValueOf(&doc).Elem(), ""); err != nil {
			return err
		}
		at := d.position(n.Body)
		if doc.Scope != "" {
			if err := state.CheckScope(doc.Scope); err != nil {
				return fail(at, state.ErrorOf(err).Hint, "%v", err)
			}
		}
		if err := s.add(&doc, &d, at, secrets); err != nil {
			return err
		}
	}
	return nil
}

// add takes a document into the Config of its scope.
func (s *Set) add(doc *document, d *decoder, at Position, secrets Secrets) error {
	var c *state.Config
	for i := range s.Configs {
		if s.Configs[i].Scope == doc.Scope {
			c = &s.Configs[i]
		}
	}
	if c == nil {
		s.Configs = append(s.Configs, state.Config{Scope: doc.Scope})
		c = &s.Configs[len(s.Configs)-1]
	}
	claim := func(what string, at Position) error {
		if before, twice := s.Where[what]; twice {
			return fail(at, "", "%s is declared already, at %s", what, before)
		}
		s.Where[what] = at
		return nil
	}
	for i, p := range doc.Portals {
		addr, err := state.ParsePortal(p.Address)
		if err != nil {
			return fail(d.elem("portals", i), state.ErrorOf(err).Hint, "%v", err)
		}
		p.Address = addr
		if err := claim(object(state.KindPortal, addr), d.elem("portals", i)); err != nil {
			return err
		}
		c.Portals = append(c.Portals, p)
	}
	for i := range doc.Accounts {
		a := &doc.Accounts[i]
		if err := claim(object(state.KindAccount, a.User), d.elem("accounts", i)); err != nil {
			return err
		}
		if err := a.resolve(d.elem("accounts", i), secrets); err != nil {
			return err
		}
		c.Accounts = append(c.Accounts, a.Account)
	}
	for i, v := range doc.Volumes {
		if err := claim(object(state.KindVolume, v.Name), d.elem("volumes", i)); err != nil {
			return err
		}
		c.Volumes = append(c.Volumes, v)
	}
	for i, t := range doc.Targets {
		if err := claim(object(state.KindTarget, t.Name), d.elem("targets", i)); err != nil {
			return err
		}
		c.Targets = append(c.Targets, t)
	}
	for i, p := range doc.NBDPortals {
		addr, err := state.ParseNBDPortal(p.Address)
		if err != nil {
			return fail(d.elem("nbdPortals", i), state.ErrorOf(err).Hint, "%v", err)
		}
		p.Address = addr
		if err := claim(object(state.KindNBDPortal, addr), d.elem("nbdPortals", i)); err != nil {
			return err
		}
		c.NBDPortals = append(c.NBDPortals, p)
	}
	for i, e := range doc.Exports {
		if err := claim(object(state.KindExport, e.Name), d.elem("exports", i)); err != nil {
			return err
		}
		c.Exports = append(c.Exports, e)
	}
	c.LUNs, c.ACL = append(c.LUNs, doc.LUNs...), append(c.ACL, doc.ACL...)
	if doc.System != nil {
		if err := claim("system", at); err != nil {
			return err
		}
		c.System = doc.System
	}
	return nil
}

func (d *decoder) elem(list string, i int) Position {
	return d.at[list+"."+itoa(i)]
}

func (a *account) resolve(at Position, secrets Secrets) error {
	given := 0
	for _, s := range []string{a.Secret, a.SecretFile, a.SecretEnv} {
		if s != "" {
			given++
		}
	}
	if given > 1 {
		return fail(at, "", "an account has one of secret, secretFile and secretEnv")
	}
	switch {
	case a.SecretFile != "":
		raw, err := secrets.File(filepath.Dir(at.File), a.SecretFile)
		if err != nil {
			return fail(at, "", "the secret of account %q: %v", a.User, err)
		}
		a.Secret = strings.TrimRight(string(raw), "\r\n")
		if a.Secret == "" {
			return fail(at, "", "the secret of account %q: %s is empty", a.User, a.SecretFile)
		}
	case a.SecretEnv != "":
		if a.Secret = secrets.Env(a.SecretEnv); a.Secret == "" {
			return fail(at, "", "the secret of account %q: the environment variable %s is not set", a.User, a.SecretEnv)
		}
	}
	return nil
}

// Locate gives an error about a declared object the place of its declaration.
func (s *Set) Locate(err error) error {
	e := state.ErrorOf(err)
	if e == nil {
		return nil
	}
	what := e.Object
	// A part is where its target is: `LUN 1 of target "iqn…"`.
	if _, target, ok := strings.Cut(what, " of "); ok {
		what = target
	}
	if at, ok := s.Where[what]; ok {
		out := *e
		out.Object = at.String() + ": " + e.Object
		return &out
	}
	return err
}
