package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"blockgate/internal/api/client"
	"blockgate/internal/declare"
	"blockgate/internal/state"
)

// importers are the configurations of other targets that can be imported.
func importers() []declare.Importer { return []declare.Importer{tgtImporter{}} }

func (a *app) importCommand() *cobra.Command {
	var o declaration
	var format, scope string
	var apply bool
	var names []string
	for _, i := range importers() {
		names = append(names, i.Format())
	}
	c := &cobra.Command{
		Use: "import FILE", Short: "Turn another target's configuration into ours",
		Long: `Read the configuration of another target and print what it is here, as YAML that
"blockgate apply" takes, secrets included; with --apply, apply it at once. What
has no counterpart is warned of. What would serve other data than the original,
or serve them to others, is an error, and nothing is imported.

Formats: ` + strings.Join(names, ", ") + ` (tgt-admin's). Disks keep the identity that tgt gives them:
initiators find them under the same names. Without --scope the result is owned by
nobody, as if it was made by hand, and tgtadm goes on to manage it.`,
		Args: args(1, 1),
		Example: examples("blockgate import /etc/tgt/targets.conf > site.yaml", "blockgate import /etc/tgt/targets.conf --apply --dry-run",
			"blockgate import /etc/tgt/targets.conf --scope tgt --apply"),
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&format, "format", "", "what FILE is: "+strings.Join(names, ", ")+" (default by its name)")
	f.StringVar(&scope, "scope", "", "the scope that shall own what is imported")
	f.BoolVar(&apply, "apply", false, "apply it")
	f.BoolVar(&o.diff, "diff", false, "with --apply: print what is changed")
	f.BoolVar(&o.dryRun, "dry-run", false, "with --apply: change nothing; print what would be changed")
	f.BoolVar(&o.force, "force", false, "with --apply: also take away what initiators use")
	f.BoolVar(&o.adopt, "adopt", false, "with --apply: take over objects that were made by hand")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if !apply && (o.diff || o.dryRun || o.force || o.adopt) {
			return usage(c, "--diff, --dry-run, --force and --adopt go with --apply")
		}
		imp, err := importerFor(c, format, args[0])
		if err != nil {
			return err
		}
		if scope != "" {
			if err := state.CheckScope(scope); err != nil {
				return err
			}
		}
		path, err := filepath.Abs(args[0])
		if err != nil {
			return err
		}
		got, err := imp.Import(path)
		if err != nil {
			return err
		}
		a.warnings(got.Warnings)
		got.Config.Scope = scope
		set := &declare.Set{Configs: []state.Config{got.Config}}
		if !apply {
			if a.output == "json" {
				return a.answer(set.Configs, nil)
			}
			_, err := a.Stdout.Write(declare.Encode(set.Configs))
			return err
		}
		return a.call(func(ctx context.Context, cl *client.Client, _ []string) error {
			return a.declare(ctx, cl, set, o)
		})(cmd, args)
	}
	return c
}

func importerFor(c *cobra.Command, format, path string) (declare.Importer, error) {
	for _, i := range importers() {
		if format == i.Format() || format == "" && i.Recognizes(path) {
			return i, nil
		}
	}
	var names []string
	for _, i := range importers() {
		names = append(names, i.Format())
	}
	if format == "" {
		return nil, usage(c, "%s: its name does not tell the format; say it with --format %s", path, strings.Join(names, " or "))
	}
	return nil, usage(c, "there is no format %q; there is %s", format, strings.Join(names, ", "))
}

// importError lists everything that is wrong in a configuration.
func importError(file string, problems []string) error {
	return &state.Error{Class: state.Usage, Code: state.CodeInvalidFile, Object: file,
		Reason: fmt.Sprintf("cannot be imported as it is:\n  %s", strings.Join(problems, "\n  ")), Hint: "change these lines; nothing was imported"}
}
