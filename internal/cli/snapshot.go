package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"blockgate/internal/api/client"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

func (a *app) snapshotCommand() *cobra.Command {
	return noun(&cobra.Command{
		Use: "snapshot", Short: "Snapshots: what a volume held at one moment",
		Long: `A snapshot is what a volume held at one moment, kept by the volume's engine:
sheepdog and rbd have them, and curve if the volume's store names its snapshot
service (?snapshot=HOST:PORT). Writes that are under way are finished first, and
new ones wait until it is taken. A volume can be made of it, independent of the
first one (see: blockgate volume clone).`,
		Example: examples("blockgate snapshot create db before-upgrade", "blockgate snapshot list db", "blockgate volume clone db@before-upgrade db-test"),
	}, a.snapshotCreate(), a.snapshotList(), a.snapshotDelete())
}

func (a *app) snapshotCreate() *cobra.Command {
	return &cobra.Command{
		Use: "create VOLUME NAME", Short: "Make a snapshot of a volume, which stays in use",
		Long: `Make a snapshot of a volume, which stays in use. It has all that was written and
answered before, and is as a disk is after the power went: file systems and
databases repair that when they are mounted or started. How long writes were
held up is printed.`,
		Args: args(2, 2), ValidArgsFunction: a.complete(volumeNames),
		Example: examples("blockgate snapshot create db before-upgrade", "blockgate snapshot create db nightly -o json", "blockgate snapshot list db"),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			s, err := c.CreateSnapshot(ctx, args[0], args[1])
			if err != nil {
				return err
			}
			if a.output == "table" {
				a.note("snapshot %q of volume %q made; writes were held up for %s", s.Name, s.Volume, pause(s))
				return nil
			}
			return a.answer(s, nil)
		}),
	}
}

func pause(s v1.Snapshot) string {
	d := time.Duration(s.PauseMs * 1e6)
	switch {
	case d >= time.Second:
		d = d.Round(10 * time.Millisecond)
	case d >= time.Millisecond:
		d = d.Round(10 * time.Microsecond)
	}
	return d.String()
}

func (a *app) snapshotList() *cobra.Command {
	return &cobra.Command{
		Use: "list [VOLUME]", Short: "List the snapshots of a volume, or of all volumes",
		Long: `List the snapshots of a volume, oldest first, or those of all volumes. The exit
status is 6 when the engine of one of them could not be asked.`,
		Args: args(0, 1), ValidArgsFunction: a.complete(volumeNames),
		Example: examples("blockgate snapshot list", "blockgate snapshot list db", "blockgate snapshot list db -o json"),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			var list []v1.Snapshot
			if len(args) == 1 {
				l, err := c.Snapshots(ctx, args[0])
				if err != nil {
					return err
				}
				list = l
			} else {
				all, err := c.AllSnapshots(ctx)
				if err != nil {
					return err
				}
				if a.warnings(all.Warnings); len(all.Warnings) > 0 {
					a.status = int(state.Refused)
				}
				list = all.Snapshots
			}
			return a.answer(list, func() *table { return snapshotTable(list) })
		}),
	}
}

// completeSnapshot offers the volumes, and the snapshots of the one that is named.
func (a *app) completeSnapshot(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	volume, at, _ := strings.Cut(word, "@")
	switch {
	case cmd.Name() == "delete" && len(args) == 1:
		volume = args[0]
	case cmd.Name() == "clone" && len(args) == 0 && strings.Contains(word, "@"):
	default:
		return a.complete(volumeNames)(cmd, args, word)
	}
	return a.complete(func(ctx context.Context, c *client.Client) (names []string) {
		l, _ := c.Snapshots(ctx, volume)
		for _, s := range l {
			if cmd.Name() == "clone" {
				s.Name = volume + "@" + s.Name
			}
			names = append(names, s.Name)
		}
		return names
	})(cmd, nil, at)
}

func snapshotTable(list []v1.Snapshot) *table {
	t := &table{head: []string{"VOLUME", "NAME", "ID", "CREATED", "SIZE"}}
	for _, s := range list {
		t.add(s.Volume, s.Name, s.ID, s.Created.Local().Format(time.DateTime), formatSize(s.Size))
	}
	return t
}

func (a *app) snapshotDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete VOLUME NAME", Short: "Delete a snapshot; the volume and its clones stay", Args: args(2, 2),
		Example:           examples("blockgate snapshot delete db before-upgrade", "blockgate snapshot delete db nightly -o json", "blockgate snapshot list db"),
		ValidArgsFunction: a.completeSnapshot,
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			if _, err := c.DeleteSnapshot(ctx, args[0], args[1]); err != nil {
				return err
			}
			return a.done("snapshot %q of volume %q deleted", args[1], args[0])
		}),
	}
}

// cloneTimeout bounds the wait for a snapshot, a clone of it, and the start of that.
const cloneTimeout = 5 * time.Minute

func (a *app) volumeClone() *cobra.Command {
	var req v1.Clone
	var make string
	c := &cobra.Command{
		Use: "clone VOLUME[@SNAPSHOT] NAME", Short: "Make a volume of a snapshot of another one",
		Long: `Make a volume NAME that begins with what a snapshot of VOLUME has, in the same
engine, and goes its own way from there: the engine makes the clone and the
daemon a volume with an identity of its own and the settings of VOLUME. Without
@SNAPSHOT, --snapshot names one that is made first, and that stays.`,
		Args: args(2, 2), ValidArgsFunction: a.completeSnapshot,
		Example: examples("blockgate volume clone db@before-upgrade db-test", "blockgate volume clone db db-test --snapshot for-test",
			"blockgate volume clone db@nightly restored --store-name db-restored"),
	}
	c.RunE = a.callWithin(cloneTimeout, func(ctx context.Context, cl *client.Client, args []string) error {
		volume, snapshot, named := strings.Cut(args[0], "@")
		switch {
		case named && make != "":
			return usage(c, "both @%s and --snapshot %s: which shall it begin with?", snapshot, make)
		case named && snapshot == "":
			return usage(c, "after @ comes the name of a snapshot: blockgate snapshot list %s", volume)
		case !named && make == "":
			return usage(c, "%q names no snapshot: use %s@SNAPSHOT (see: blockgate snapshot list %s), or --snapshot NAME to make one first", volume, volume, volume)
		}
		req.Name, req.Snapshot, req.MakeSnapshot = args[1], snapshot, make != ""
		if make != "" {
			req.Snapshot = make
		}
		got, err := cl.CloneVolume(ctx, volume, req)
		if err != nil {
			return err
		}
		if s := got.Snapshot; s != nil && a.output == "table" {
			a.note("snapshot %q of volume %q made; writes were held up for %s", s.Name, s.Volume, pause(*s))
		}
		a.warnings(got.Warnings)
		if a.output == "table" {
			return a.volumes(got.Volume)
		}
		return a.answer(got, nil)
	})
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&make, "snapshot", "", "make a snapshot of this name first, and clone that")
	f.StringVar(&req.StoreName, "store-name", "", "what the clone is called in its engine (default NAME)")
	return c
}

// attempts says how far trying again has come for a volume that does not run.
func attempts(s *v1.VolumeStatus) string {
	if s.NextAttempt == nil {
		return ""
	}
	tried := ""
	if s.Attempts > 0 {
		tried = fmt.Sprintf("tried again %d times, ", s.Attempts)
	}
	return fmt.Sprintf(" (%snext at %s)", tried, s.NextAttempt.Local().Format(time.TimeOnly))
}
