package cli

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"blockgate/internal/api/client"
	"blockgate/internal/state"
)

func (a *app) initiatorCommand() *cobra.Command {
	return noun(&cobra.Command{
		Use: "initiator", Short: "Initiators: who may log in to a target",
		Long: `Rules of a target say who may log in: everyone ("all"), an address or network
(10.0.0.7, 10.0.0.0/24, [2001:db8::]/64), or an initiator by its iSCSI name. An
initiator that no rule matches does not even learn that the target exists. A
name is only what an initiator says of itself; CHAP proves it (see: account).`,
		Example: examples("blockgate initiator allow iqn.2025-01.io.example:db 10.0.0.0/24", "blockgate initiator list iqn.2025-01.io.example:db",
			"blockgate initiator deny iqn.2025-01.io.example:db 10.0.0.0/24"),
	}, a.allow(), a.deny(), a.rules())
}

func (a *app) allow() *cobra.Command {
	var luns []uint
	c := &cobra.Command{
		Use: "allow TARGET WHO", Short: "Let initiators log in to a target", Args: args(2, 2),
		Example: examples("blockgate initiator allow iqn.2025-01.io.example:db iqn.1993-08.org.debian:01:abc",
			"blockgate initiator allow iqn.2025-01.io.example:db 10.0.0.0/24 --lun 0,2", "blockgate initiator allow iqn.2025-01.io.example:db all"),
		ValidArgsFunction: a.complete(targetNames),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			rule, err := newRule(args[1])
			if err != nil {
				return err
			}
			for _, n := range luns {
				rule.LUNs = append(rule.LUNs, uint64(n))
			}
			if _, err := c.Apply(ctx, state.Op{Verb: state.Create, Kind: state.KindACL, Name: args[0], ACL: &rule}); err != nil {
				return err
			}
			return a.done("%s may log in to %s", args[1], args[0])
		}),
	}
	c.Flags().UintSliceVar(&luns, "lun", nil, "show them only these LUNs")
	return c
}

func (a *app) deny() *cobra.Command {
	return &cobra.Command{
		Use: "deny TARGET WHO", Short: "Take a rule away; sessions that are there go on", Args: args(2, 2),
		Example: examples("blockgate initiator deny iqn.2025-01.io.example:db all", "blockgate initiator list iqn.2025-01.io.example:db",
			"blockgate session list --target iqn.2025-01.io.example:db"),
		ValidArgsFunction: a.complete(targetNames),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			rule := parseRule(args[1])
			if _, err := c.Apply(ctx, state.Op{Verb: state.Delete, Kind: state.KindACL, Name: args[0], ACL: &rule}); err != nil {
				return err
			}
			return a.done("the rule %s of %s is gone", args[1], args[0])
		}),
	}
}

func (a *app) rules() *cobra.Command {
	return &cobra.Command{
		Use: "list TARGET", Short: "List who may log in to a target", Args: args(1, 1),
		Example: examples("blockgate initiator list iqn.2025-01.io.example:db", "blockgate initiator list iqn.2025-01.io.example:db -o json",
			"blockgate initiator list iqn.2025-01.io.example:db -o yaml"),
		ValidArgsFunction: a.complete(targetNames),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			t, err := c.Target(ctx, args[0])
			if err != nil {
				return err
			}
			acl := t.ACL
			if acl == nil {
				acl = []state.ACLRule{}
			}
			return a.answer(acl, func() *table {
				tab := &table{head: []string{"WHO", "LUNS"}}
				for _, r := range acl {
					luns := "all"
					if len(r.LUNs) > 0 {
						luns = strings.Trim(fmt.Sprint(r.LUNs), "[]")
					}
					tab.add(strings.Replace(r.String(), "ALL", "all", 1), luns)
				}
				return tab
			})
		}),
	}
}

func (a *app) accountCommand() *cobra.Command {
	return noun(&cobra.Command{
		Use: "account", Short: "Accounts: CHAP users and secrets",
		Long: `An account is a CHAP user with its secret, of 12 characters or more. A target
asks for it with: blockgate target set TARGET --chap USER. Secrets are never
shown again.`,
		Example: examples("blockgate account create joe", "blockgate account list", "blockgate account delete joe"),
	}, a.accountCreate(), a.accountList(), a.accountDelete())
}

func (a *app) accountCreate() *cobra.Command {
	c := &cobra.Command{
		Use: "create USER", Short: "Create an account",
		Long: `Create an account. The secret is asked for, or taken from the environment
variable BLOCKGATE_CHAP_SECRET, or from standard input when that is no terminal;
never from the command line, which others can see.`,
		Args: args(1, 1),
		Example: examples("blockgate account create joe", "pass show san/joe | blockgate account create joe",
			"BLOCKGATE_CHAP_SECRET=$(cat secret) blockgate account create joe"),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			secret, err := a.secret(args[0], true)
			if err != nil {
				return err
			}
			if _, err := c.CreateAccount(ctx, state.Account{User: args[0], Secret: secret}); err != nil {
				return err
			}
			return a.done("account %q created; next: blockgate target set TARGET --chap %s", args[0], args[0])
		}),
	}
	return c
}

// secret finds a CHAP secret: in the environment, by asking, or, if that is
// allowed, on standard input.
func (a *app) secret(user string, stdin bool) (string, error) {
	s := a.Getenv("BLOCKGATE_CHAP_SECRET")
	switch {
	case s != "":
	case a.Stdin != nil && term.IsTerminal(int(a.Stdin.Fd())):
		fmt.Fprintf(a.Stderr, "CHAP secret for %s: ", user)
		raw, err := term.ReadPassword(int(a.Stdin.Fd()))
		fmt.Fprintln(a.Stderr)
		if err != nil {
			return "", err
		}
		s = string(raw)
	case stdin && a.Stdin != nil:
		line, err := bufio.NewReader(&limitedFile{a.Stdin, 4096}).ReadString('\n')
		if err != nil && line == "" {
			line = ""
		}
		s = strings.TrimRight(line, "\r\n")
	}
	if s == "" {
		return "", &state.Error{Class: state.Usage, Code: "usage", Object: fmt.Sprintf("account %q", user), Reason: "has no secret",
			Hint: "set BLOCKGATE_CHAP_SECRET, or run it in a terminal to be asked"}
	}
	if len(s) < 12 {
		a.note("warning: the CHAP secret has %d characters; initiators want 12 or more, and shorter ones can be guessed", len(s))
	}
	return s, nil
}

// limitedFile bounds what is read of a secret.
type limitedFile struct {
	f    *os.File
	left int
}

func (l *limitedFile) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, os.ErrInvalid
	}
	n, err := l.f.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}

func (a *app) accountList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the accounts", Args: args(0, 0),
		Example: examples("blockgate account list", "blockgate account list -o json", "blockgate account list -o yaml"),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			l, err := c.Accounts(ctx)
			if err != nil {
				return err
			}
			return a.answer(l, func() *table {
				t := &table{head: []string{"USER"}}
				for _, u := range l {
					t.add(u.User)
				}
				return t
			})
		}),
	}
}

func (a *app) accountDelete() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "delete USER", Short: "Delete an account", Args: args(1, 1),
		Example:           examples("blockgate account delete joe", "blockgate account delete joe --force", "blockgate account list"),
		ValidArgsFunction: a.complete(accountNames),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			r, err := c.DeleteAccount(ctx, args[0], force)
			if err != nil {
				return err
			}
			a.warnings(r.Warnings)
			return a.done("account %q deleted", args[0])
		}),
	}
	c.Flags().BoolVar(&force, "force", false, "also when targets use it; one that has no other is set offline")
	return c
}
