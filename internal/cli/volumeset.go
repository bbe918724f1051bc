package cli

import (
	"context"

	"github.com/spf13/cobra"

	"blockgate/internal/api/client"
	"blockgate/internal/state"
)

// stallFlag adds --stall.
func stallFlag(c *cobra.Command, p *string) {
	c.Flags().StringVar(p, "stall", "", "when the store hangs, commands wait (hold, the default), fail (fail=30s), or new ones get BUSY (busy=10s)")
}

// partialBlockFlag adds --partial-block.
func partialBlockFlag(c *cobra.Command, p *string) {
	c.Flags().StringVar(p, "partial-block", "", "a size that is no multiple of the block size: refuse (the default), or ignore what is over")
}

func (a *app) volumeSet() *cobra.Command {
	var stall, partial string
	c := &cobra.Command{
		Use: "set NAME", Short: "Change a volume's settings while it is in use", Args: args(1, 1),
		Long: `Change a volume's settings while it is in use; nobody is logged out. What each
stall policy means to which initiator: docs/operations.md. --partial-block counts
when a store is opened, and when it grows.`,
		Example:           examples("blockgate volume set db --stall fail=30s", "blockgate volume set db --stall hold", "blockgate volume set db --partial-block ignore"),
		ValidArgsFunction: a.complete(volumeNames),
	}
	f := c.Flags()
	f.SortFlags = false
	stallFlag(c, &stall)
	partialBlockFlag(c, &partial)
	c.RunE = a.call(func(ctx context.Context, cl *client.Client, args []string) error {
		if !f.Changed("stall") && !f.Changed("partial-block") {
			return usage(c, "what shall be changed? For example --stall hold")
		}
		_, err := cl.ChangeVolume(ctx, args[0], func(v *state.Volume) error {
			if f.Changed("stall") {
				v.Stall = stall
			}
			if f.Changed("partial-block") {
				v.PartialBlock = partial
			}
			return nil
		})
		if err != nil {
			return err
		}
		return a.done("volume %q changed", args[0])
	})
	return c
}
