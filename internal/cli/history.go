package cli

import (
	"context"
	"fmt"
	"os/user"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"blockgate/internal/api/client"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

func parseRevision(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return 0, &state.Error{Class: state.Usage, Code: "usage", Object: fmt.Sprintf("revision %q", s), Reason: "is not a number above 0", Hint: "blockgate history"}
	}
	return n, nil
}

func (a *app) historyCommand() *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use: "history [REVISION]", Short: "List the last changes: who, when, what",
		Long: fmt.Sprintf(`List the last changes, the newest first: the revision that a change made, when,
who asked for it and with what command. With a REVISION, print what that change
changed. The last %d changes are kept, fewer if they are large.`, state.MaxHistory),
		Args:    args(0, 1),
		Example: examples("blockgate history", "blockgate history 17", "blockgate history --limit 5 -o json"),
	}
	c.Flags().IntVar(&limit, "limit", 0, "only so many (default all)")
	c.RunE = a.call(func(ctx context.Context, cl *client.Client, args []string) error {
		if len(args) == 1 {
			n, err := parseRevision(args[0])
			if err != nil {
				return err
			}
			ch, err := cl.HistoryChange(ctx, n)
			if err != nil {
				return err
			}
			if ch.Incomplete {
				a.note("note: this change was too large to be kept")
			}
			return a.differences(ch, ch.Differences)
		}
		list, err := cl.History(ctx)
		if err != nil {
			return err
		}
		if limit > 0 {
			list = list[:min(limit, len(list))]
		}
		return a.answer(list, func() *table {
			t := &table{head: []string{"REVISION", "TIME", "WHO", "CHANGES", "COMMAND"}}
			for _, ch := range list {
				t.add(fmt.Sprint(ch.Revision), ch.Time.Local().Format(time.DateTime), who(ch), counts(ch), ch.Command)
			}
			return t
		})
	})
	return c
}

// who is the user and the program that asked for a change.
func who(c v1.Change) string {
	name := "uid " + strconv.Itoa(c.UID)
	if u, err := user.LookupId(strconv.Itoa(c.UID)); err == nil {
		name = u.Username
	}
	if c.Comm != "" {
		name += " (" + c.Comm + ")"
	}
	return name
}

func counts(c v1.Change) string {
	if c.Incomplete {
		return "large"
	}
	s := ""
	for _, n := range []struct {
		sign string
		n    int
	}{{"+", c.Created}, {"~", c.Changed}, {"-", c.Deleted}} {
		if n.n > 0 {
			if s != "" {
				s += " "
			}
			s += n.sign + strconv.Itoa(n.n)
		}
	}
	return s
}

func (a *app) rollbackCommand() *cobra.Command {
	var o declaration
	c := &cobra.Command{
		Use: "rollback [REVISION]", Short: "Bring back the state of an earlier revision",
		Long: `Undo the last change, or all changes after REVISION. That is a change by itself,
all or nothing, and can be undone in the same way. What initiators with sessions
use is not taken away without --force. Stores are neither made nor shrunk:
a volume that has grown stays as large as it is.

With --dry-run the exit status is 8 if something would be changed, 0 otherwise.`,
		Args:    args(0, 1),
		Example: examples("blockgate rollback --dry-run", "blockgate rollback", "blockgate rollback 17 --diff"),
	}
	f := c.Flags()
	f.SortFlags = false
	f.BoolVar(&o.diff, "diff", false, "print what is changed")
	f.BoolVar(&o.dryRun, "dry-run", false, "change nothing; print what would be changed")
	f.BoolVar(&o.force, "force", false, "also take away what initiators use: they lose the disks")
	c.RunE = a.call(func(ctx context.Context, cl *client.Client, args []string) error {
		req := v1.Rollback{DryRun: o.dryRun, Force: o.force}
		if len(args) == 1 {
			n, err := parseRevision(args[0])
			if err != nil {
				return err
			}
			req.Revision = n
		}
		res, err := cl.Rollback(ctx, req)
		if err != nil {
			return err
		}
		return a.declared(res, o, func(err error) error { return err })
	})
	return c
}
