package tgt

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"

	v1 "blockgate/internal/api/v1"
)

// sessions of a target in order of their numbers; discovery sessions of nobody's
// are left out. An empty name asks for all.
func (a *admin) sessions(target string) ([]v1.Session, error) {
	list, err := a.api.Sessions(a.ctx, target)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(s v1.Session) bool { return s.Discovery || s.Target == "" })
	slices.SortFunc(list, func(x, y v1.Session) int { return cmp.Compare(x.ID, y.ID) })
	return list, nil
}

func (a *admin) session() error {
	if a.op != opStat {
		return a.invalid()
	}
	s, err := a.findSession("")
	if err != nil {
		return err
	}
	t, err := a.stats(s.Target)
	if err != nil {
		return err
	}
	rows := t.rows(func(r statRow) bool { return r.sid == s.ID })
	slices.Reverse(rows) // as tgt lists them
	writeStats(a.out, rows)
	fmt.Fprintln(a.out)
	writeConnStats(a.out, s.ID, s.Conns)
	return nil
}

// invalid refuses an operation that a mode does not have, once the daemon has
// answered at all.
func (a *admin) invalid() error {
	if _, err := a.api.System(a.ctx); err != nil {
		return err
	}
	return refuse("%s", a.unsupported())
}

func (a *admin) connection() error {
	switch a.op {
	case opShow:
		return a.showConnections()
	case opStat:
		s, c, err := a.findConnection("")
		if err != nil {
			return err
		}
		writeConnStats(a.out, s.ID, []v1.Connection{*c})
		return nil
	case opDelete:
		t, err := a.findTarget()
		if err != nil {
			return err
		}
		s, c, err := a.findConnection(t.Name)
		if err != nil {
			return err
		}
		res, err := a.api.CloseConnection(a.ctx, s.ID, c.CID)
		a.warn(res)
		return err
	}
	return a.invalid()
}

// findSession finds the session of --sid, of one target unless target is empty.
func (a *admin) findSession(target string) (*v1.Session, error) {
	list, err := a.sessions(target)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].ID == a.sid {
			return &list[i], nil
		}
	}
	return nil, fail(msgNoSession)
}

func (a *admin) findConnection(target string) (*v1.Session, *v1.Connection, error) {
	s, err := a.findSession(target)
	if err != nil {
		return nil, nil, err
	}
	for i := range s.Conns {
		if uint32(s.Conns[i].CID) == a.cid {
			return s, &s.Conns[i], nil
		}
	}
	return nil, nil, fail(msgNoConnection)
}

func (a *admin) showConnections() error {
	t, err := a.findTarget()
	if err != nil {
		return err
	}
	list, err := a.sessions(t.Name)
	if err != nil {
		return err
	}
	writeConnections(a.out, list)
	return nil
}

// writeConnections lists one block for each connection.
func writeConnections(w io.Writer, list []v1.Session) {
	for _, s := range list {
		for _, c := range s.Conns {
			fmt.Fprintf(w, "Session: %d\n    Connection: %d\n        Initiator: %s\n        IP Address: %s\n", s.ID, c.CID, s.Initiator, host(c.Remote))
		}
	}
}

// host is the address without the port, as tgt prints it.
func host(addr string) string {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return addr
	}
	return ap.Addr().Unmap().String()
}
