package cli

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"blockgate/internal/api/client"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/declare"
	"blockgate/internal/state"
)

// statusDifferent is the exit status of a command that was asked for
// differences and found some.
const statusDifferent = 8

// declaration is the flags that say what is declared and what to do with it.
type declaration struct {
	files                      []string
	diff, dryRun, force, adopt bool
}

func (a *app) applyCommand() *cobra.Command {
	var o declaration
	c := &cobra.Command{
		Use: "apply -f FILE...", Short: "Make the state what files declare, all or nothing",
		Long: `Make the state what files declare (docs/declared-state.md has the format). A FILE
is YAML or JSON, a directory stands for the files in it, "-" for standard input.

Either everything is done or nothing. What a file's "scope" owns and the files do
not declare any more is deleted; what was made by hand, or belongs to another
scope, is never touched: where the files declare such an object, that is an error
that names the owner. A LUN, target or volume that initiators with sessions use
is not taken away without --force.

With --dry-run nothing is changed, the differences are printed, and the exit
status is 0 if there are none and 8 if there are some. Otherwise it is 0 when
all is as declared, whether or not something had to be changed.`,
		Args: args(0, 0),
		Example: examples("blockgate apply -f site.yaml --dry-run", "blockgate apply -f site.yaml --diff",
			"blockgate export --scope site | blockgate apply -f - --dry-run"),
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringArrayVarP(&o.files, "file", "f", nil, `file or directory with what is declared, "-" for standard input (repeat for more)`)
	f.BoolVar(&o.diff, "diff", false, "print what is changed")
	f.BoolVar(&o.dryRun, "dry-run", false, "change nothing; print what would be changed")
	f.BoolVar(&o.force, "force", false, "also take away what initiators use: they lose the disks")
	f.BoolVar(&o.adopt, "adopt", false, "take over declared objects that were made by hand")
	c.RunE = a.call(func(ctx context.Context, cl *client.Client, _ []string) error {
		set, err := a.load(c, o.files)
		if err != nil {
			return err
		}
		return a.declare(ctx, cl, set, o)
	})
	return c
}

// load reads the files of a declaration.
func (a *app) load(c *cobra.Command, files []string) (*declare.Set, error) {
	if len(files) == 0 {
		return nil, usage(c, "what is declared? Name a file with -f")
	}
	set := &declare.Set{}
	secrets := declare.Secrets{
		Env: a.Getenv,
		File: func(dir, name string) ([]byte, error) {
			if !filepath.IsAbs(name) {
				name = filepath.Join(dir, name)
			}
			return readBounded(name, 4096)
		},
	}
	for _, name := range files {
		list, err := expand(name)
		if err != nil {
			return nil, err
		}
		for _, file := range list {
			var raw []byte
			if file == "-" {
				raw, err = io.ReadAll(io.LimitReader(a.Stdin, declare.MaxFile+1))
				file = "standard input"
			} else {
				raw, err = readBounded(file, declare.MaxFile)
			}
			if err != nil {
				return nil, fileError(file, err)
			}
			if err := set.Load(file, raw, secrets); err != nil {
				return nil, err
			}
		}
	}
	if len(set.Configs) == 0 {
		return nil, &state.Error{Class: state.Usage, Code: state.CodeInvalidFile, Object: strings.Join(files, ", "), Reason: "declares nothing",
			Hint: "to delete what a scope owns, declare the scope alone: scope: NAME"}
	}
	return set, nil
}

func fileError(name string, err error) error {
	e := &state.Error{Class: state.Refused, Code: state.CodeInvalidFile, Object: name, Reason: cause(err), Err: err}
	if os.IsNotExist(err) {
		e.Class = state.NotFound
	}
	return e
}

// cause is what the system says, without the call and the path.
func cause(err error) string {
	if p, ok := err.(*fs.PathError); ok {
		return p.Err.Error()
	}
	return err.Error()
}

func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(raw)) > limit {
		err = fmt.Errorf("has more than %d bytes", limit)
	}
	return raw, err
}

// expand gives the files of a directory, or the file itself.
func expand(name string) ([]string, error) {
	if name == "-" {
		return []string{name}, nil
	}
	st, err := os.Stat(name)
	if err != nil {
		return nil, fileError(name, err)
	}
	if !st.IsDir() {
		return []string{name}, nil
	}
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, fileError(name, err)
	}
	var list []string
	for _, e := range entries {
		if slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) && !strings.HasPrefix(e.Name(), ".") && !e.IsDir() {
			list = append(list, filepath.Join(name, e.Name()))
		}
	}
	if len(list) == 0 {
		return nil, &state.Error{Class: state.NotFound, Code: state.CodeInvalidFile, Object: name, Reason: "has no .yaml, .yml or .json files"}
	}
	return list, nil
}

// declare has the daemon carry out a declaration and says what came of it.
func (a *app) declare(ctx context.Context, c *client.Client, set *declare.Set, o declaration) error {
	for _, cfg := range set.Configs {
		for _, acc := range cfg.Accounts {
			if acc.Secret != "" && len(acc.Secret) < 12 {
				a.note("warning: the CHAP secret of %s has %d characters; initiators want 12 or more, and shorter ones can be guessed", acc.User, len(acc.Secret))
			}
		}
	}
	res, err := c.Declare(ctx, v1.Declare{Configs: set.Configs, DryRun: o.dryRun, Force: o.force, Adopt: o.adopt})
	if err != nil {
		return set.Locate(err)
	}
	return a.declared(res, o, set.Locate)
}

// declared prints what a declaration or a rollback changed, or would change.
func (a *app) declared(res v1.Declared, o declaration, locate func(error) error) error {
	if o.diff || o.dryRun || a.output != "table" {
		if err := a.differences(res, res.Differences); err != nil {
			return err
		}
	}
	a.warnings(res.Warnings)
	if res.Refusal != nil {
		return locate(client.ErrorOf(res.Refusal))
	}
	if o.dryRun && len(res.Differences) > 0 {
		a.status = statusDifferent
	}
	return a.done("%s", summary(res, o.dryRun))
}

// differences prints v, or the differences as lines.
func (a *app) differences(v any, list []state.Difference) error {
	if a.output != "table" {
		return a.answer(v, nil)
	}
	var b strings.Builder
	for _, d := range list {
		b.WriteString(d.String() + "\n")
	}
	_, err := io.WriteString(a.Stdout, b.String())
	return err
}

func summary(res v1.Declared, dry bool) string {
	if len(res.Differences) == 0 {
		return "no difference"
	}
	n := map[state.Verb]int{}
	for _, d := range res.Differences {
		n[d.Verb]++
	}
	would, revision := "", fmt.Sprintf("; revision %d", res.Revision)
	if dry {
		would, revision = "would be ", ""
	}
	return fmt.Sprintf("%d %screated, %d changed, %d deleted%s", n[state.Create], would, n[state.Update], n[state.Delete], revision)
}

func (a *app) exportCommand() *cobra.Command {
	var req v1.Export
	c := &cobra.Command{
		Use: "export", Short: "Print the state as a file that apply takes",
		Long: `Print the state as YAML that "blockgate apply" takes: one document for each scope,
and one without a scope for what was made by hand. Applied to this daemon it
changes nothing; applied to an empty one it makes everything again, the disks
with the same identity.

Secrets are left out unless --secrets asks for them. An account without its
secret can be applied only where the account exists already.`,
		Args: args(0, 0),
		Example: examples("blockgate export > site.yaml", "blockgate export --scope site",
			"blockgate export --secrets --scope site -o json"),
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringArrayVar(&req.Scopes, "scope", nil, `only what this scope owns; "" for what was made by hand (repeat for more)`)
	f.BoolVar(&req.Secrets, "secrets", false, "with the secrets of the accounts, readable by everyone who reads the output")
	f.BoolVar(&req.NoIdentity, "no-identity", false, "without serial numbers and other identifiers, as a template for other disks")
	c.RunE = a.call(func(ctx context.Context, cl *client.Client, _ []string) error {
		list, err := cl.Export(ctx, req)
		if err != nil {
			return err
		}
		for _, s := range req.Scopes {
			if s != "" && !slices.ContainsFunc(list, func(c state.Config) bool { return c.Scope == s }) {
				return &state.Error{Class: state.NotFound, Code: "scope_not_found", Object: fmt.Sprintf("scope %q", s), Reason: "owns nothing",
					Hint: "blockgate export shows what there is"}
			}
		}
		if a.output == "json" {
			return a.answer(list, nil)
		}
		_, err = a.Stdout.Write(declare.Encode(list))
		return err
	})
	return c
}

func (a *app) diffCommand() *cobra.Command {
	var o declaration
	c := &cobra.Command{
		Use: "diff -f FILE... | diff [REVISION [REVISION]]", Short: "Print how the state differs from files, or from what it was",
		Long: `With -f, print what "blockgate apply" would change, and change nothing. With
revisions, print what changed from the first to the second, or to now; without
any, what the last change changed. The exit status is 0 if there is no
difference and 8 if there is one.`,
		Args:    args(0, 2),
		Example: examples("blockgate diff -f site.yaml", "blockgate diff", "blockgate diff 17 20"),
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringArrayVarP(&o.files, "file", "f", nil, `file or directory with what is declared, "-" for standard input (repeat for more)`)
	f.BoolVar(&o.adopt, "adopt", false, "as if declared objects that were made by hand were taken over")
	c.RunE = a.call(func(ctx context.Context, cl *client.Client, args []string) error {
		if len(o.files) > 0 {
			if len(args) > 0 {
				return usage(c, "compare with files or with revisions, not with both")
			}
			set, err := a.load(c, o.files)
			if err != nil {
				return err
			}
			o.dryRun = true
			return a.declare(ctx, cl, set, o)
		}
		rev := [2]uint64{}
		for i, s := range args {
			n, err := parseRevision(s)
			if err != nil {
				return err
			}
			rev[i] = n
		}
		list, err := cl.Differences(ctx, rev[0], rev[1])
		if err != nil {
			return err
		}
		if len(list) > 0 {
			a.status = statusDifferent
		}
		return a.differences(list, list)
	})
	return c
}
