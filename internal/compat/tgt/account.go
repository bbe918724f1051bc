package tgt

import (
	"cmp"
	"fmt"
	"slices"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

func (a *admin) account() error {
	switch a.op {
	case opNew:
		res, err := a.api.Apply(a.ctx, state.Op{Verb: state.Create, Kind: state.KindAccount, Account: &state.Account{User: a.user, Secret: a.password}})
		a.warn(res)
		return err
	case opDelete:
		return a.deleteAccount()
	case opShow:
		return a.showAccounts()
	}
	if a.tid >= 0 {
		return a.bindAccount()
	}
	return a.bindDiscovery()
}

// deleteAccount unbinds the account wherever it is bound, as tgt does. A target
// that thereby loses its last account would be open to everyone; the daemon sets
// it offline, which tgt's user has to be told.
func (a *admin) deleteAccount() error {
	targets, err := a.api.Targets(a.ctx)
	if err != nil {
		return err
	}
	res, err := a.api.Apply(a.ctx, state.Op{Verb: state.Delete, Kind: state.KindAccount, Name: a.user, Force: true})
	a.warn(res)
	if err != nil {
		return err
	}
	for _, t := range targets {
		if len(t.Accounts) == 1 && t.Accounts[0] == a.user && !t.Offline {
			a.note(fmt.Sprintf("target %d has no account left and is offline now; --mode target --op update --tid %d --name state --value ready opens it without CHAP", t.ID, t.ID))
		}
	}
	return nil
}

// showAccounts lists the users, the newest first.
func (a *admin) showAccounts() error {
	list, err := a.api.Accounts(a.ctx)
	if err != nil || len(list) == 0 {
		return err
	}
	slices.SortStableFunc(list, func(x, y v1.Account) int { return cmp.Compare(y.Revision, x.Revision) })
	fmt.Fprintln(a.out, "Account list:")
	for _, acc := range list {
		fmt.Fprintf(a.out, "    %s\n", acc.User)
	}
	return nil
}

func (a *admin) bindAccount() error {
	t, err := a.findTarget()
	if err != nil {
		return err
	}
	if err := a.needAccount(); err != nil {
		return err
	}
	return a.changeTarget(t.Name, func(t *state.Target) error {
		return a.rebind(&t.Accounts, &t.OutgoingAccount)
	})
}

// bindDiscovery is for an account without --tid: it then guards discovery.
func (a *admin) bindDiscovery() error {
	if err := a.needAccount(); err != nil {
		return err
	}
	return a.changeSystem(func(s *state.System) error {
		return a.rebind(&s.DiscoveryAccounts, &s.DiscoveryOutgoingAccount)
	})
}

// needAccount makes sure that the account exists, before it is looked up where
// it may be bound: tgt's messages come in this order.
func (a *admin) needAccount() error {
	list, err := a.api.Accounts(a.ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(list, func(acc v1.Account) bool { return acc.User == a.user }) {
		return fail(msgNoAccount)
	}
	return nil
}

func (a *admin) rebind(incoming *[]string, outgoing *string) error {
	bind := a.op == opBind
	if a.outgoing {
		switch {
		case bind && *outgoing != "":
			return fail(msgOutgoingExists)
		case bind:
			*outgoing = a.user
		case *outgoing != a.user:
			return fail(msgNoAccount)
		default:
			*outgoing = ""
		}
		return nil
	}
	i := slices.Index(*incoming, a.user)
	switch {
	case bind && i >= 0:
		return fail(msgAccountExists)
	case bind:
		*incoming = append(*incoming, a.user)
	case i < 0:
		return fail(msgNoAccount)
	default:
		*incoming = slices.Delete(*incoming, i, i+1)
	}
	return nil
}
