package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"blockgate/internal/api/client"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

func (a *app) targetCommand() *cobra.Command {
	return noun(&cobra.Command{
		Use: "target", Short: "Targets: what initiators log in to",
		Long: `A target has an iSCSI name, LUNs (volumes), and rules that say who may log in
(see: blockgate initiator). Without a rule nobody can.`,
		Example: examples("blockgate target create iqn.2025-01.io.example:db --volume db --allow 10.0.0.0/24",
			"blockgate target list", "blockgate target delete iqn.2025-01.io.example:db"),
	}, a.targetCreate(), a.targetList(), a.targetShow(), a.targetSet(), a.targetDelete(), a.targetGroup())
}

func (a *app) targetCreate() *cobra.Command {
	var volumes, allow, chap, params []string
	t := state.Target{}
	c := &cobra.Command{
		Use: "create NAME", Short: "Create a target",
		Long: `Create a target with an iSCSI name (iqn.YYYY-MM.reversed.domain:anything). The
volumes become its LUNs 0, 1 and so on.`,
		Example: examples("blockgate target create iqn.2025-01.io.example:db --volume db --allow all",
			"blockgate target create iqn.2025-01.io.example:web --volume w1 --volume w2 --allow iqn.1993-08.org.debian:01:abc",
			"blockgate target create iqn.2025-01.io.example:safe --volume db --allow 10.0.0.0/24 --chap joe"),
		Args: args(1, 1),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			t.Name = args[0]
			if err := state.CheckISCSIName(t.Name); err != nil {
				return err
			}
			for i, v := range volumes {
				t.LUNs = append(t.LUNs, state.LUN{Number: uint64(i), Volume: v})
			}
			for _, who := range allow {
				rule, err := newRule(who)
				if err != nil {
					return err
				}
				t.ACL = append(t.ACL, rule)
			}
			t.Accounts = chap
			var err error
			if t.Params, err = parseParams(params); err != nil {
				return err
			}
			got, err := c.CreateTarget(ctx, t)
			if err != nil {
				return err
			}
			if len(t.ACL) == 0 {
				a.note("note: nobody can log in yet; next: blockgate initiator allow %s WHO", t.Name)
			}
			return a.targets(got)
		}),
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringArrayVar(&volumes, "volume", nil, "map this volume as the next LUN (repeat for more)")
	f.StringArrayVar(&allow, "allow", nil, "let log in: all, an address or network, or an initiator's name (repeat for more)")
	f.StringArrayVar(&chap, "chap", nil, "ask for CHAP with this account (repeat for more; see: blockgate account)")
	f.StringVar(&t.OutgoingAccount, "mutual", "", "the account by which the target proves itself (mutual CHAP)")
	f.StringVar(&t.Alias, "alias", "", "a name for people, shown by initiators")
	f.StringArrayVar(&params, "param", nil, "set an iSCSI parameter, for example HeaderDigest=CRC32C (repeat for more)")
	return c
}

func parseParams(list []string) (map[string]string, error) {
	var m map[string]string
	for _, kv := range list {
		k, v, ok := strings.Cut(kv, "=")
		if !ok {
			return nil, &state.Error{Class: state.Usage, Code: "usage", Object: "parameter " + kv, Reason: "is not NAME=VALUE", Hint: "for example --param MaxConnections=4"}
		}
		if m == nil {
			m = map[string]string{}
		}
		m[k] = v
	}
	return m, nil
}

// newRule reads who is to be let in. A name that no initiator can have, such as
// that of a host, is refused: the rule would match nobody.
func newRule(who string) (state.ACLRule, error) {
	rule := parseRule(who)
	if rule.Name == "" && (rule.All || rule.Address != "") || strings.ContainsAny(rule.Name, "*?") {
		return rule, nil
	}
	if kind, rest, _ := strings.Cut(strings.ToLower(rule.Name), "."); rest != "" && (kind == "iqn" || kind == "eui" || kind == "naa") {
		return rule, nil
	}
	return rule, &state.Error{Class: state.Usage, Code: state.CodeInvalidValue, Object: fmt.Sprintf("access rule %q", who),
		Reason: "is neither all, nor an address, nor an initiator's name (iqn.…, eui.…, naa.…)",
		Hint:   "an initiator's name is in its /etc/iscsi/initiatorname.iscsi"}
}

// parseRule reads who is meant: all, an address, or a name.
func parseRule(who string) state.ACLRule {
	if strings.EqualFold(who, "all") {
		return state.ACLRule{All: true}
	}
	if _, err := state.ParseACLAddress(who); err == nil {
		return state.ACLRule{Address: who}
	}
	// Something that begins like an address is meant as one: the daemon says
	// what is wrong with it.
	if strings.HasPrefix(who, "[") || strings.Contains(who, "/") || strings.Trim(who, "0123456789.") == "" {
		return state.ACLRule{Address: who}
	}
	return state.ACLRule{Name: who}
}

func (a *app) targets(list ...v1.Target) error {
	var v any = list
	if len(list) == 1 {
		v = list[0]
	}
	return a.answer(v, func() *table { return targetTable(list) })
}

func targetTable(list []v1.Target) *table {
	t := &table{head: []string{"ID", "NAME", "LUNS", "STATE", "SESSIONS", "ALLOWED", "CHAP"}}
	for _, g := range list {
		var who []string
		for i, r := range g.ACL {
			if i == 3 {
				who = append(who, fmt.Sprintf("and %d more", len(g.ACL)-i))
				break
			}
			who = append(who, strings.ToLower(r.String()))
		}
		st := g.Status.State
		if n := len(g.Status.FailedLUNs); n > 0 {
			st += fmt.Sprintf(", %d LUNs failed", n)
		}
		chap := "no"
		if len(g.Accounts) > 0 {
			chap = strings.Join(g.Accounts, ",")
		}
		allowed := strings.Join(who, ", ")
		if allowed == "" {
			allowed = "nobody"
		}
		t.add(fmt.Sprint(g.ID), g.Name, fmt.Sprint(len(g.LUNs)), st, fmt.Sprint(g.Status.Sessions), allowed, chap)
	}
	return t
}

func (a *app) targetList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the targets", Args: args(0, 0),
		Example: examples("blockgate target list", "blockgate target list -o json", "blockgate target list -o yaml"),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			l, err := c.Targets(ctx)
			if err != nil {
				return err
			}
			return a.answer(l, func() *table { return targetTable(l) })
		}),
	}
}

func (a *app) targetShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show a target with everything known of it", Args: args(1, 1),
		Example: examples("blockgate target show iqn.2025-01.io.example:db", "blockgate target show iqn.2025-01.io.example:db -o json",
			"blockgate lun list iqn.2025-01.io.example:db"),
		ValidArgsFunction: a.complete(targetNames),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			t, err := c.Target(ctx, args[0])
			if err != nil {
				return err
			}
			return a.show(t)
		}),
	}
}

func (a *app) targetSet() *cobra.Command {
	var (
		alias, mutual            string
		online, offline, noChap  bool
		chap, params, groupNames []string
	)
	c := &cobra.Command{
		Use: "set NAME", Short: "Change a target's settings; logins from now on follow them", Args: args(1, 1),
		Example: examples("blockgate target set iqn.2025-01.io.example:db --chap joe", "blockgate target set iqn.2025-01.io.example:db --offline",
			"blockgate target set iqn.2025-01.io.example:db --param MaxConnections=4"),
		ValidArgsFunction: a.complete(targetNames),
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&alias, "alias", "", "a name for people, shown by initiators")
	f.BoolVar(&offline, "offline", false, "refuse logins")
	f.BoolVar(&online, "online", false, "accept logins again")
	f.StringArrayVar(&chap, "chap", nil, "ask for CHAP with these accounts, and no others (repeat for more)")
	f.BoolVar(&noChap, "no-chap", false, "ask for no authentication")
	f.StringVar(&mutual, "mutual", "", `the account by which the target proves itself; "" for none`)
	f.StringArrayVar(&params, "param", nil, "set an iSCSI parameter; NAME= goes back to the default (repeat for more)")
	f.StringArrayVar(&groupNames, "group", nil, `reach it by these portal groups only; "all" for every one (repeat for more)`)
	c.RunE = a.call(func(ctx context.Context, cl *client.Client, args []string) error {
		if online && offline || noChap && len(chap) > 0 {
			return usage(c, "the flags contradict each other")
		}
		set, err := parseParams(params)
		if err != nil {
			return err
		}
		groups, err := parseGroups(groupNames)
		if err != nil {
			return err
		}
		_, err = cl.UpdateTarget(ctx, args[0], func(t *state.Target) error {
			if f.Changed("alias") {
				t.Alias = alias
			}
			if online || offline {
				t.Offline = offline
			}
			if noChap || len(chap) > 0 {
				t.Accounts = chap
			}
			if f.Changed("mutual") {
				t.OutgoingAccount = mutual
			}
			if len(groupNames) > 0 {
				t.PortalGroups = groups
			}
			for k, v := range set {
				if t.Params == nil {
					t.Params = map[string]string{}
				}
				for have := range t.Params {
					if strings.EqualFold(have, k) {
						delete(t.Params, have)
					}
				}
				if v != "" {
					t.Params[k] = v
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		return a.done("target %s changed", args[0])
	})
	return c
}

func parseGroups(list []string) ([]int, error) {
	var out []int
	for _, s := range list {
		if strings.EqualFold(s, "all") {
			return nil, nil
		}
		var n int
		if _, err := fmt.Sscanf(s, "%d", &n); err != nil || fmt.Sprint(n) != s {
			return nil, &state.Error{Class: state.Usage, Code: "usage", Object: "portal group " + s, Reason: "is not a number", Hint: "for example --group 2"}
		}
		out = append(out, n)
	}
	return out, nil
}

func (a *app) targetDelete() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "delete NAME", Short: "Delete a target; its volumes stay", Args: args(1, 1),
		Example: examples("blockgate target delete iqn.2025-01.io.example:db", "blockgate target delete iqn.2025-01.io.example:db --force",
			"blockgate session list --target iqn.2025-01.io.example:db"),
		ValidArgsFunction: a.complete(targetNames),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			r, err := c.DeleteTarget(ctx, args[0], force)
			if err != nil {
				return err
			}
			a.warnings(r.Warnings)
			return a.done("target %s deleted; its volumes are still there", args[0])
		}),
	}
	c.Flags().BoolVar(&force, "force", false, "also when initiators are logged in: they lose the disks")
	return c
}
