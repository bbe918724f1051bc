package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"blockgate/internal/api/client"
	v1 "blockgate/internal/api/v1"
)

func (a *app) targetGroup() *cobra.Command {
	return noun(&cobra.Command{
		Use: "group", Short: "Paths to a target: the access states of its portal groups (ALUA)",
		Long: `The paths to a target through one portal group have an asymmetric access state
(ALUA), by which multipath hosts choose: active/optimized, active/non-optimized,
standby, unavailable, offline or transitioning. It holds for all LUNs of the
target, is kept, and initiators are told when it changes; they may change it
themselves (SET TARGET PORT GROUPS).`,
		Example: examples("blockgate target group list iqn.2025-01.io.example:db",
			"blockgate target group set iqn.2025-01.io.example:db 2 standby",
			"blockgate target group set iqn.2025-01.io.example:db 1 active/optimized --preferred"),
	}, a.targetGroupList(), a.targetGroupSet())
}

func portGroupTable(list []v1.PortGroup) *table {
	t := &table{head: []string{"GROUP", "STATE", "PREFERRED", "SET BY", "PORT IDS"}}
	for _, g := range list {
		preferred, by := "no", g.ChangedBy
		if g.Preferred {
			preferred = "yes"
		}
		if by == "" {
			by = "-"
		}
		var ports []string
		for _, p := range g.Ports {
			ports = append(ports, fmt.Sprint(p))
		}
		t.add(fmt.Sprint(g.Group), g.State, preferred, by, strings.Join(ports, ","))
	}
	return t
}

func (a *app) targetGroupList() *cobra.Command {
	return &cobra.Command{
		Use: "list TARGET", Short: "List the portal groups by which a target is reached", Args: args(1, 1),
		Example: examples("blockgate target group list iqn.2025-01.io.example:db", "blockgate target group list iqn.2025-01.io.example:db -o json",
			"blockgate portal list"),
		ValidArgsFunction: a.complete(targetNames),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			l, err := c.PortGroups(ctx, args[0])
			if err != nil {
				return err
			}
			return a.answer(l, func() *table { return portGroupTable(l) })
		}),
	}
}

func (a *app) targetGroupSet() *cobra.Command {
	var preferred bool
	c := &cobra.Command{
		Use: "set TARGET GROUP [STATE]", Short: "Set the access state of a portal group", Args: args(2, 3),
		Long: `Set the access state of a target's portal group: active/optimized,
active/non-optimized, standby, unavailable, offline or transitioning. Commands
that are running go on; the next ones are answered as the state says.`,
		Example: examples("blockgate target group set iqn.2025-01.io.example:db 2 standby",
			"blockgate target group set iqn.2025-01.io.example:db 1 --preferred",
			"blockgate target group set iqn.2025-01.io.example:db 1 active/non-optimized --preferred=false"),
		ValidArgsFunction: a.complete(targetNames),
	}
	c.Flags().BoolVar(&preferred, "preferred", false, "the group that hosts should use when several are equal")
	c.RunE = a.call(func(ctx context.Context, cl *client.Client, args []string) error {
		group, err := strconv.ParseUint(args[1], 10, 16)
		if err != nil {
			return usage(c, "%q is not a portal group", args[1])
		}
		var set v1.SetPortGroup
		if len(args) == 3 {
			set.State = strings.ToLower(args[2])
		}
		if c.Flags().Changed("preferred") {
			set.Preferred = &preferred
		}
		if set == (v1.SetPortGroup{}) {
			return usage(c, "nothing to set: give a state or --preferred")
		}
		l, err := cl.SetPortGroup(ctx, args[0], uint16(group), set)
		if err != nil {
			return err
		}
		return a.answer(l, func() *table { return portGroupTable(l) })
	})
	return c
}
