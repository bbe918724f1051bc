package tgt

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

func (a *admin) portal() error {
	if a.op == opShow {
		return a.showPortals()
	}
	text, ok := strings.CutPrefix(a.params, "portal=")
	if !ok {
		return refuse("%q is not portal=ADDRESS[:PORT]", a.params)
	}
	addr, err := state.ParsePortal(text)
	if err != nil {
		return err
	}
	var res v1.Result
	if a.op == opNew {
		res, err = a.api.Apply(a.ctx, state.Op{Verb: state.Create, Kind: state.KindPortal, Portal: &state.Portal{Address: addr, Group: 1}})
	} else {
		res, err = a.api.Apply(a.ctx, state.Op{Verb: state.Delete, Kind: state.KindPortal, Name: addr})
		if e := state.ErrorOf(err); e != nil && e.Code == state.CodePortalNotFound && a.isRuntime(addr) {
			err = a.releasePortal(addr)
		}
	}
	a.warn(res)
	return err
}

// releasePortal stops listening on a portal that tgtd was started with. The next
// start with the same options has it again.
func (a *admin) releasePortal(addr string) error {
	l, ok := a.api.(local)
	if !ok {
		return refuse("portal %s was given to tgtd when it was started, and is listened on until it ends", addr)
	}
	if err := l.releasePortal(a.ctx, addr); err != nil {
		return err
	}
	a.note(fmt.Sprintf("portal %s is listened on again when tgtd is started with the same options", addr))
	return nil
}

func (a *admin) isRuntime(addr string) bool {
	list, err := a.api.Portals(a.ctx)
	return err == nil && slices.ContainsFunc(list, func(p v1.Portal) bool { return p.Runtime && (p.Address == addr || p.Bound == addr) })
}

func (a *admin) showPortals() error {
	list, err := a.api.Portals(a.ctx)
	if err != nil {
		return err
	}
	if sys, err := a.settings(); err != nil || sys.Stopped() {
		return err // none of them takes connections
	}
	a.notes = append(a.notes, writePortals(a.out, list)...)
	return nil
}

// writePortals lists the portals, the newest first; those of tgtd's command line
// are the oldest. Those that do not listen come back as notes.
func writePortals(w io.Writer, list []v1.Portal) (notes []string) {
	list = slices.Clone(list)
	slices.Reverse(list) // without a revision: in the order that the wildcards have in tgt
	slices.SortStableFunc(list, func(x, y v1.Portal) int { return cmp.Compare(y.Revision, x.Revision) })
	for _, p := range list {
		if p.State == v1.Failed {
			notes = append(notes, fmt.Sprintf("portal %s does not listen: %s", p.Address, p.Error))
			continue
		}
		addr := p.Address
		if p.Bound != "" && strings.HasSuffix(addr, ":0") {
			addr = p.Bound
		}
		fmt.Fprintf(w, "Portal: %s,%d\n", addr, p.Group)
	}
	return notes
}
