// Package cli is the blockgate command tree. It writes what was asked for to
// stdout and everything else to stderr; an error names the object, the reason
// and the next step, and has a stable code and an exit status: 2 usage, 3 not
// found, 4 conflict, 5 daemon unreachable, 6 refused, 1 anything else; and 8, which
// is no error, when differences were asked for and there are some.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"blockgate/internal/api/client"
	"blockgate/internal/state"
)

// Env is the world around the command line.
type Env struct {
	Args   []string // without the program's name
	Stdin  *os.File
	Stdout io.Writer
	Stderr io.Writer
	Getenv func(string) string
	// Personalities are other tools' command lines that the binary speaks too,
	// by their names ("tgtadm"); they are called with their arguments.
	Personalities map[string]func(ctx context.Context, args []string) int
}

// app is one run of the command line.
type app struct {
	Env
	socket, output string
	started        bool // flags and arguments were right
	status         int  // exit status when it is not an error's
}

// Main runs the command line and returns the exit status.
func Main(ctx context.Context, env Env) int {
	a := &app{Env: env}
	root := a.root()
	root.SetArgs(env.Args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		return a.fail(root, err)
	}
	return a.status
}

const (
	groupServe   = "serve"
	groupManage  = "manage"
	groupDeclare = "declare"
	groupInspect = "inspect"
	groupOther   = "other"
)

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "blockgate",
		Short: "Turn any storage into an iSCSI SAN disk",
		Long: `Blockgate turns any storage into an iSCSI SAN disk.

The quickest way is one line, without root and without a configuration:
"blockgate serve disk.img --size 10G". For more, a daemon keeps volumes (named
stores), targets (what initiators log in to), LUNs (volumes in targets) and
portals (addresses); whatever a command changes is kept at once.`,
		Example: examples(
			"blockgate serve disk.img --size 10G",
			"blockgate daemon --state /var/lib/blockgate",
			"blockgate target list -o json"),
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			switch a.output {
			case "table", "json", "yaml":
			default:
				return usage(cmd, "there is no output format %q: use table, json or yaml", a.output)
			}
			a.started = true
			return nil
		},
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage(cmd, "there is no command %q%s", args[0], suggestion(cmd, args[0]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.AddGroup(
		&cobra.Group{ID: groupServe, Title: "Serve:"}, &cobra.Group{ID: groupManage, Title: "Manage:"},
		&cobra.Group{ID: groupDeclare, Title: "Declare:"},
		&cobra.Group{ID: groupInspect, Title: "Inspect:"}, &cobra.Group{ID: groupOther, Title: "Other:"})
	f := root.PersistentFlags()
	f.SortFlags = false
	f.StringVar(&a.socket, "socket", "", "the daemon's socket (default $BLOCKGATE_SOCKET, or "+shown(a.defaultSocket())+")")
	f.StringVarP(&a.output, "output", "o", "table", "how to print the answer: table, json or yaml")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, "%v", err) })
	root.SetHelpCommandGroupID(groupOther)
	a.add(root, groupServe, a.serveCommand(), a.daemonCommand())
	a.add(root, groupManage, a.volumeCommand(), a.snapshotCommand(), a.targetCommand(), a.lunCommand(), a.portalCommand(), a.initiatorCommand(), a.accountCommand(), a.nbdCommand())
	a.add(root, groupDeclare, a.applyCommand(), a.diffCommand(), a.exportCommand(), a.importCommand(), a.historyCommand(), a.rollbackCommand())
	a.add(root, groupInspect, a.statusCommand(), a.sessionCommand(), a.engineCommand(), a.selftestCommand(), a.benchCommand(), a.lsCommand())
	a.add(root, groupOther, a.versionCommand(), a.completionCommand())
	for name, run := range a.Personalities {
		a.add(root, groupOther, a.personality(name, run))
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	return root
}

func (a *app) add(root *cobra.Command, group string, cmds ...*cobra.Command) {
	for _, c := range cmds {
		c.GroupID = group
		root.AddCommand(c)
	}
}

// noun makes a command that only has verbs below it.
func noun(c *cobra.Command, verbs ...*cobra.Command) *cobra.Command {
	c.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usage(cmd, "%s has no command %q%s", cmd.Name(), args[0], suggestion(cmd, args[0]))
		}
		return nil
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	c.AddCommand(verbs...)
	return c
}

func suggestion(cmd *cobra.Command, word string) string {
	cmd.SuggestionsMinimumDistance = 2
	if s := cmd.SuggestionsFor(word); len(s) > 0 {
		return fmt.Sprintf(" (did you mean %s?)", strings.Join(s, " or "))
	}
	return ""
}

func (a *app) personality(name string, run func(context.Context, []string) int) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: "The command line of " + name, DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			a.status = run(cmd.Context(), args)
			return nil
		},
	}
}

func examples(lines ...string) string { return "  " + strings.Join(lines, "\n  ") }

// args checks the number of arguments; names are what they are called in Use.
func args(lo, hi int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < lo:
			return usage(cmd, "an argument is missing: %s", cmd.UseLine())
		case hi >= 0 && len(args) > hi:
			return usage(cmd, "%q is one argument too many: %s", args[hi], cmd.UseLine())
		}
		return nil
	}
}

func usage(cmd *cobra.Command, format string, v ...any) error {
	return &state.Error{Class: state.Usage, Code: "usage", Reason: fmt.Sprintf(format, v...), Hint: cmd.CommandPath() + " --help"}
}

// fail prints an error and gives its exit status.
func (a *app) fail(root *cobra.Command, err error) int {
	var e *state.Error
	if !errors.As(err, &e) && !a.started {
		err = usage(root, "%v", err) // cobra's own words about flags and arguments
	}
	e = state.ErrorOf(err)
	if errors.Is(err, context.Canceled) {
		return 130
	}
	if a.output == "json" {
		json.NewEncoder(a.Stderr).Encode(map[string]any{"error": map[string]any{
			"code": e.Code, "object": e.Object, "reason": e.Reason, "hint": e.Hint, "status": int(e.Class)}})
		return int(e.Class)
	}
	fmt.Fprintf(a.Stderr, "error: %s\n", e.Error())
	if e.Hint != "" {
		fmt.Fprintf(a.Stderr, "  next: %s\n", e.Hint)
	}
	fmt.Fprintf(a.Stderr, "code: %s\n", e.Code)
	return int(e.Class)
}

// note says something that is not the answer.
func (a *app) note(format string, v ...any) { fmt.Fprintf(a.Stderr, format+"\n", v...) }

func (a *app) warnings(list []string) {
	for _, w := range list {
		a.note("warning: %s", w)
	}
}

// requestTimeout bounds one command's wait for the daemon, which itself bounds
// how long it waits for stores.
const requestTimeout = 2 * time.Minute

// call gives a command a client of the daemon.
func (a *app) call(f func(ctx context.Context, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return a.callWithin(requestTimeout, f)
}

func (a *app) callWithin(limit time.Duration, f func(ctx context.Context, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), limit)
		defer cancel()
		c := a.client()
		defer c.Close()
		c.Command = described(cmd, args)
		return f(ctx, c, args)
	}
}

// described is the command line as the history has it. No flag of these commands
// holds a secret.
func described(cmd *cobra.Command, args []string) string {
	s := cmd.CommandPath()
	for _, arg := range args {
		s += " " + arg
	}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Name == "socket" || f.Name == "output" {
			return
		}
		s += " --" + f.Name
		if f.Value.Type() != "bool" {
			s += "=" + strings.Trim(f.Value.String(), "[]")
		}
	})
	return s
}

func (a *app) client() *client.Client {
	sock := a.socket
	if sock == "" {
		sock = a.Getenv("BLOCKGATE_SOCKET")
	}
	if sock == "" {
		sock = a.defaultSocket()
	}
	return client.New(sock)
}

func (a *app) defaultSocket() string {
	if os.Geteuid() == 0 {
		return "/run/blockgate/blockgate.sock"
	}
	if dir := a.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "blockgate", "blockgate.sock")
	}
	return filepath.Join(a.defaultState(), "blockgate.sock")
}

func (a *app) defaultState() string {
	if os.Geteuid() == 0 {
		return "/var/lib/blockgate"
	}
	if dir := a.Getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "blockgate")
	}
	return filepath.Join(a.Getenv("HOME"), ".local", "state", "blockgate")
}

// shown is a path as help pages name it, the same for every user.
func shown(path string) string {
	if os.Geteuid() == 0 {
		return path
	}
	return "your runtime directory's"
}

// complete offers names from the daemon, if it answers at once.
func (a *app) complete(positions ...func(context.Context, *client.Client) []string) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= len(positions) || positions[len(args)] == nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		c := a.client()
		defer c.Close()
		return positions[len(args)](ctx, c), cobra.ShellCompDirectiveNoFileComp
	}
}

func volumeNames(ctx context.Context, c *client.Client) (names []string) {
	l, _ := c.Volumes(ctx)
	for _, v := range l {
		names = append(names, v.Name)
	}
	return names
}

func targetNames(ctx context.Context, c *client.Client) (names []string) {
	l, _ := c.Targets(ctx)
	for _, t := range l {
		names = append(names, t.Name)
	}
	return names
}

func accountNames(ctx context.Context, c *client.Client) (names []string) {
	l, _ := c.Accounts(ctx)
	for _, u := range l {
		names = append(names, u.User)
	}
	return names
}
