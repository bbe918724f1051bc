package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"blockgate/internal/api/client"
	"blockgate/internal/state"
)

func (a *app) lunCommand() *cobra.Command {
	return noun(&cobra.Command{
		Use: "lun", Short: "LUNs: volumes in targets",
		Long: `A LUN makes a volume a disk of a target. Adding and removing works while
initiators are logged in; they are told and may have to rescan.`,
		Example: examples("blockgate lun add iqn.2025-01.io.example:db db", "blockgate lun list iqn.2025-01.io.example:db",
			"blockgate lun remove iqn.2025-01.io.example:db 0"),
	}, a.lunAdd(), a.lunRemove(), a.lunList())
}

func (a *app) lunAdd() *cobra.Command {
	var number int
	c := &cobra.Command{
		Use: "add TARGET VOLUME", Short: "Map a volume into a target", Args: args(2, 2),
		Example: examples("blockgate lun add iqn.2025-01.io.example:db db", "blockgate lun add iqn.2025-01.io.example:db logs --number 7",
			"blockgate lun list iqn.2025-01.io.example:db"),
		ValidArgsFunction: a.complete(targetNames, volumeNames),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			n := uint64(number)
			if number < 0 {
				t, err := c.Target(ctx, args[0])
				if err != nil {
					return err
				}
				if n = 0; t.ControllerLUN0 {
					n = 1
				}
				for _, l := range t.LUNs {
					if l.Number == n {
						n++
					}
				}
			}
			r, err := c.AddLUN(ctx, args[0], state.LUN{Number: n, Volume: args[1]})
			if err != nil {
				return err
			}
			a.warnings(r.Warnings)
			return a.done("volume %q is LUN %d of %s", args[1], n, args[0])
		}),
	}
	c.Flags().IntVar(&number, "number", -1, "the LUN, 0 to 16383 (default the lowest free one)")
	c.Flags().Lookup("number").DefValue = "0" // no "(default -1)" in the help
	return c
}

func (a *app) lunRemove() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "remove TARGET LUN", Short: "Take a LUN out of a target; the volume stays", Args: args(2, 2),
		Example: examples("blockgate lun remove iqn.2025-01.io.example:db 0", "blockgate lun remove iqn.2025-01.io.example:db 0 --force",
			"blockgate lun list iqn.2025-01.io.example:db"),
		ValidArgsFunction: a.complete(targetNames),
	}
	c.Flags().BoolVar(&force, "force", false, "also while commands are running on it")
	c.RunE = a.call(func(ctx context.Context, cl *client.Client, args []string) error {
		n, err := strconv.ParseUint(args[1], 10, 64)
		if err != nil {
			return usage(c, "%q is not a LUN", args[1])
		}
		r, err := cl.DeleteLUN(ctx, args[0], n, force)
		if err != nil {
			return err
		}
		a.warnings(r.Warnings)
		return a.done("LUN %d of %s removed; the volume is still there", n, args[0])
	})
	return c
}

func (a *app) lunList() *cobra.Command {
	return &cobra.Command{
		Use: "list TARGET", Short: "List a target's LUNs", Args: args(1, 1),
		Example: examples("blockgate lun list iqn.2025-01.io.example:db", "blockgate lun list iqn.2025-01.io.example:db -o json",
			"blockgate lun list iqn.2025-01.io.example:db -o yaml"),
		ValidArgsFunction: a.complete(targetNames),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			l, err := c.LUNs(ctx, args[0])
			if err != nil {
				return err
			}
			return a.answer(l, func() *table {
				t := &table{head: []string{"LUN", "VOLUME", "SIZE", "STATE", "STORE"}}
				for _, u := range l {
					t.add(fmt.Sprint(u.Number), u.Volume.Name, formatSize(u.Volume.Status.Size), shortState(&u.Volume.Status), u.Volume.URL)
				}
				return t
			})
		}),
	}
}
