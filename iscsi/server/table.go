package server

import (
	"cmp"
	"slices"
	"sync"

	"blockgate/iscsi"
	"blockgate/scsi"
)

// table holds the sessions and decides what a login makes of them (RFC 7143
// §6.3.1: the ISID rule, reinstatement, several connections a session).
type table struct {
	srv *Server

	mu       sync.Mutex
	byTSIH   map[uint16]*iscsi.Session // nil while a login is about to make it
	byNexus  map[nexusKey]*iscsi.Session
	nextTSIH uint16
	nextID   uint64
}

// nexusKey is what the ISID rule holds unique (RFC 7143 §4.4.3).
type nexusKey struct {
	initiator, target string
	isid              [6]byte
	group             uint16
}

func (t *table) init(s *Server) {
	t.srv = s
	t.byTSIH = make(map[uint16]*iscsi.Session)
	t.byNexus = make(map[nexusKey]*iscsi.Session)
}

// admit is the session part of a login. It sets r.TSIH and returns the session
// that the connection belongs to.
func (t *table) admit(r *iscsi.LoginResult) (*iscsi.Session, iscsi.LoginStatus) {
	t.mu.Lock()
	if r.ReqTSIH != 0 {
		s := t.byTSIH[r.ReqTSIH]
		t.mu.Unlock()
		return t.join(s, r)
	}
	var old *iscsi.Session
	var key nexusKey
	if !r.Discovery {
		key = nexusKey{r.Peer.Name, r.Access.Target, r.Peer.ISID, r.Peer.Group}
		if old = t.byNexus[key]; old != nil {
			delete(t.byTSIH, old.TSIH)
			delete(t.byNexus, key)
		}
	}
	if len(t.byTSIH) >= 1<<16-2 {
		t.mu.Unlock()
		return nil, iscsi.LoginOutOfResources
	}
	for t.nextTSIH++; t.nextTSIH == 0 || t.taken(t.nextTSIH); t.nextTSIH++ {
	}
	r.TSIH = t.nextTSIH
	t.nextID++
	id := t.nextID
	t.byTSIH[r.TSIH] = nil // taken
	t.mu.Unlock()

	if old != nil {
		// The nexus is lost before the new session begins, so that nothing of the
		// old one can act on the new one's commands.
		old.End("the initiator logged in again (session reinstatement)")
	}
	var nexus *scsi.Nexus
	if !r.Discovery {
		nexus = r.Access.Device.Attach(scsi.NexusConfig{
			Initiator: scsi.InitiatorPort{Name: r.Peer.Name, ISID: r.Peer.ISID},
			Port:      scsi.TargetPort{Name: r.Access.Target, RelID: r.Access.RelPort, Group: r.Peer.Group},
			Host:      hostOf(r),
			LUNs:      r.Access.LUNs,
		})
	}
	s := iscsi.NewSession(iscsi.SessionConfig{
		ID: id, TSIH: r.TSIH, Result: r, Nexus: nexus, Budget: t.srv.cfg.Budget, Logger: t.srv.log,
		Directory: t.srv.cfg.Directory,
		Reset:     func(target string) { t.srv.CloseSessions(target) },
	})
	t.mu.Lock()
	t.byTSIH[r.TSIH] = s
	var rival *iscsi.Session
	if !r.Discovery {
		if rival = t.byNexus[key]; rival != nil { // the same initiator logging in twice at once
			delete(t.byTSIH, rival.TSIH)
		}
		t.byNexus[key] = s
	}
	t.mu.Unlock()
	if rival != nil {
		rival.End("the initiator logged in again (session reinstatement)")
	}
	if !r.Discovery {
		// Asked again now that the table shows the session: a target that was taken
		// away, or closed to this initiator, during the login would otherwise keep it.
		acc, status := t.srv.cfg.Directory.Target(r.Access.Target, r.Peer)
		if status == iscsi.LoginOK && (acc == nil || acc.Device != r.Access.Device) {
			status = iscsi.LoginTargetRemoved
		}
		if status != iscsi.LoginOK {
			s.End("the target was closed during the login")
			t.remove(s)
			return nil, status
		}
	}
	r.ExpCmdSN, r.MaxCmdSN = s.NextCmdSNs()
	return s, iscsi.LoginOK
}

// hostOf tells apart initiators that call themselves the same: by where they
// come from and by whether they had to prove who they are.
func hostOf(r *iscsi.LoginResult) string {
	host := r.Peer.Remote.Addr().Unmap().String()
	if r.User != "" {
		host += " authenticated"
	}
	return host
}

// taken reports whether a session has the handle, or is about to. Caller holds mu.
func (t *table) taken(tsih uint16) bool {
	_, ok := t.byTSIH[tsih]
	return ok
}

// join adds a connection to a session that exists.
func (t *table) join(s *iscsi.Session, r *iscsi.LoginResult) (*iscsi.Session, iscsi.LoginStatus) {
	if s == nil || r.Discovery || s.Discovery || s.Peer.Name != r.Peer.Name || s.Peer.ISID != r.Peer.ISID ||
		s.Target() != r.Access.Target || s.Peer.Group != r.Peer.Group || s.User != r.User {
		return nil, iscsi.LoginSessionNotFound
	}
	conns := s.Conns()
	again := slices.ContainsFunc(conns, func(c *iscsi.TargetConn) bool { return c.CID() == r.CID })
	if !again && len(conns) >= s.Params().MaxConnections {
		return nil, iscsi.LoginTooManyConnections
	}
	r.TSIH = s.TSIH
	// The window is the session's, and other connections may have filled it.
	r.ExpCmdSN, r.MaxCmdSN = s.NextCmdSNs()
	return s, iscsi.LoginOK
}

// remove takes an ended session out.
func (t *table) remove(s *iscsi.Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byTSIH[s.TSIH] == s {
		delete(t.byTSIH, s.TSIH)
	}
	if s.Discovery {
		return
	}
	if key := (nexusKey{s.Peer.Name, s.Target(), s.Peer.ISID, s.Peer.Group}); t.byNexus[key] == s {
		delete(t.byNexus, key)
	}
}

// list is the sessions, oldest first.
func (t *table) list() []*iscsi.Session {
	t.mu.Lock()
	l := make([]*iscsi.Session, 0, len(t.byTSIH))
	for _, s := range t.byTSIH {
		if s != nil && !s.Ended() {
			l = append(l, s)
		}
	}
	t.mu.Unlock()
	slices.SortFunc(l, func(a, b *iscsi.Session) int { return cmp.Compare(a.ID, b.ID) })
	return l
}

func (t *table) conns() []*iscsi.TargetConn {
	var l []*iscsi.TargetConn
	for _, s := range t.list() {
		l = append(l, s.Conns()...)
	}
	return l
}

func (t *table) info() []SessionInfo {
	var out []SessionInfo
	for _, s := range t.list() {
		i := SessionInfo{
			ID: s.ID, TSIH: s.TSIH, Target: s.Target(), Initiator: s.Peer.Name, Alias: s.Peer.Alias,
			User: s.User, ISID: s.Peer.ISID, Discovery: s.Discovery, Params: s.Params(), Started: s.Started,
		}
		for _, c := range s.Conns() {
			p := c.Params()
			i.Conns = append(i.Conns, ConnInfo{
				CID: c.CID(), Remote: c.Peer().Remote, Local: c.Peer().Local,
				HeaderDigest: p.HeaderDigest, DataDigest: p.DataDigest,
				MaxRecvDataSegment: p.MaxRecvDataSegment, MaxXmitDataSegment: p.MaxXmitDataSegment,
				RxBytes: c.RxBytes.Load(), TxBytes: c.TxBytes.Load(), RxPDUs: c.RxPDUs.Load(), TxPDUs: c.TxPDUs.Load(),
				Commands: c.Commands.Load(), DataOutPDUs: c.DataOutPDUs.Load(),
				DataInPDUs: c.DataInPDUs.Load(), Responses: c.Responses.Load(),
			})
		}
		if len(i.Conns) == 0 {
			continue // its login is not finished
		}
		slices.SortFunc(i.Conns, func(a, b ConnInfo) int { return cmp.Compare(a.CID, b.CID) })
		out = append(out, i)
	}
	return out
}
