package iscsi

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"blockgate/scsi"
)

// SessionConfig is what a Session is made of, decided at its first login.
type SessionConfig struct {
	ID     uint64 // unique for the life of the server, never reused
	TSIH   uint16
	Result *LoginResult
	// Nexus is the I_T nexus; nil makes a discovery session.
	Nexus  *scsi.Nexus
	Budget *Budget
	Logger *slog.Logger
	// Directory answers SendTargets.
	Directory Directory
	// Reset is called after a TARGET COLD RESET has been answered: every session
	// of the target ends.
	Reset func(target string)
}

// Session is the target's side of an iSCSI session: the command numbering that
// its connections share (RFC 7143 §4.2.2) and the nexus their commands run on.
// Safe for concurrent use.
type Session struct {
	ID        uint64
	TSIH      uint16
	Peer      Peer
	Discovery bool
	Access    *Access // nil for discovery
	Started   time.Time
	User      string

	nexus  *scsi.Nexus
	budget *Budget
	log    *slog.Logger
	dir    Directory
	reset  func(string)

	// params are the session-wide values; a connection has its own digests and
	// segment lengths.
	params Params
	window int // numbered commands that may be outstanding, while there is memory

	expCmdSN atomic.Uint32
	// maxCmdSN is the last number the initiator may use. It moves by none, one or
	// two for each numbered command that was answered, so it never goes back (RFC
	// 7143 §4.2.2.1), whatever other connections do meanwhile. kept is how many
	// places of the window the initiator does not get at present.
	maxCmdSN atomic.Uint32
	kept     atomic.Int32

	// order makes numbering a command and giving it to the device server one
	// step, so that several connections keep the initiator's order. Taken before
	// mu and before any TargetConn.mu; never held while a command runs.
	order sync.Mutex

	mu    sync.Mutex
	conns map[uint16]*TargetConn
	joins uint32              // connections that ever joined
	nheld atomic.Int32        // len(held) + len(tmfs)
	held  map[uint32]*heldPDU // received out of order, by CmdSN (several connections)
	tmfs  []*heldTMF          // functions that came before commands they cover
	skip  map[uint32]struct{} // CmdSNs that an ABORT TASK overtook (RFC 7143 §11.5.1)
	ended bool
}

// NewSession makes a session; connections join by NewTargetConn.
func NewSession(cfg SessionConfig) *Session {
	r := cfg.Result
	s := &Session{
		ID: cfg.ID, TSIH: cfg.TSIH, Peer: r.Peer, Discovery: r.Discovery, Access: r.Access,
		Started: time.Now(), User: r.User, nexus: cfg.Nexus, budget: cfg.Budget, log: cfg.Logger,
		dir: cfg.Directory, reset: cfg.Reset, params: r.Params,
		conns: make(map[uint16]*TargetConn),
	}
	s.window = 16
	if r.Access != nil && r.Access.Offer.MaxQueue > 0 {
		s.window = r.Access.Offer.MaxQueue
	}
	s.expCmdSN.Store(r.CmdSN)
	s.maxCmdSN.Store(r.CmdSN + uint32(s.window) - 1)
	return s
}

// Target is the target's name, empty for a discovery session.
func (s *Session) Target() string {
	if s.Access == nil {
		return ""
	}
	return s.Access.Target
}

// Params are the session-wide negotiated values.
func (s *Session) Params() Params { return s.params }

// Stats is what the session's nexus did with each unit it sees, by LUN; nil of a
// discovery session.
func (s *Session) Stats() []scsi.NexusStats {
	if s.nexus == nil {
		return nil
	}
	return s.nexus.Stats()
}

// Conns lists the connections, in no order.
func (s *Session) Conns() []*TargetConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := make([]*TargetConn, 0, len(s.conns))
	for _, c := range s.conns {
		l = append(l, c)
	}
	return l
}

// Ended reports that the session's last connection has gone or that End was called.
func (s *Session) Ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// NextCmdSNs gives ExpCmdSN and MaxCmdSN for a header.
func (s *Session) NextCmdSNs() (exp, maxSN uint32) {
	exp = s.expCmdSN.Load() // first, so that MaxCmdSN is never below ExpCmdSN-1
	return exp, s.maxCmdSN.Load()
}

// verdict of sequence.
type verdict uint8

const (
	deliver verdict = iota
	hold
	drop
)

// sequence decides what to do with a numbered PDU (RFC 7143 §4.2.2.1). On
// deliver the number counts as received; for an immediate PDU nothing moves.
// Caller holds s.order.
func (s *Session) sequence(h *BHS) verdict {
	if h.Immediate() {
		return deliver
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sn, exp := h.CmdSN(), s.expCmdSN.Load()
	switch {
	case SNLess(sn, exp) || SNLess(s.maxCmdSN.Load(), sn):
		return drop
	case sn == exp:
		s.advance()
		return deliver
	}
	if _, dup := s.held[sn]; dup {
		return drop
	}
	if _, overtaken := s.skip[sn]; overtaken {
		return drop
	}
	return hold
}

// advance moves ExpCmdSN by one and over numbers that an abort consumed. Caller
// holds s.mu.
func (s *Session) advance() {
	next := s.expCmdSN.Load() + 1
	for len(s.skip) > 0 {
		if _, ok := s.skip[next]; !ok {
			break
		}
		delete(s.skip, next)
		next++
		s.maxCmdSN.Add(1)
	}
	s.expCmdSN.Store(next)
}

// hold stores a PDU that came too early, at most as many as the command window
// has places.
func (s *Session) hold(p *heldPDU) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held == nil {
		s.held = make(map[uint32]*heldPDU)
	}
	s.held[p.bhs.CmdSN()] = p
	s.nheld.Add(1)
}

// release runs held PDUs whose turn has come: a function before the command of
// its CmdSN. It is called without locks after every delivery.
func (s *Session) release() {
	for s.nheld.Load() > 0 {
		s.order.Lock()
		s.mu.Lock()
		if f := s.takeTMF(); f != nil {
			s.mu.Unlock()
			f.conn.manage(&f.bhs)
			continue
		}
		p := s.takeHeld(s.expCmdSN.Load())
		if p == nil {
			s.mu.Unlock()
			s.order.Unlock()
			return
		}
		s.advance()
		s.mu.Unlock()
		p.conn.runHeld(p)
	}
}

// takeHeld removes a held PDU, nil if there is none. Caller holds s.mu.
func (s *Session) takeHeld(sn uint32) *heldPDU {
	p, ok := s.held[sn]
	if ok {
		delete(s.held, sn)
		s.nheld.Add(-1)
	}
	return p
}

// overtake handles an ABORT TASK whose task has not arrived: when its CmdSN is
// inside the window it counts as received and the command, should it still
// come, is ignored. It reports whether that was so.
func (s *Session) overtake(refCmdSN uint32) bool {
	s.mu.Lock()
	exp := s.expCmdSN.Load()
	if SNLess(refCmdSN, exp) || SNLess(s.maxCmdSN.Load(), refCmdSN) {
		s.mu.Unlock()
		return false
	}
	p := s.takeHeld(refCmdSN)
	if refCmdSN == exp {
		s.maxCmdSN.Add(1)
		s.advance()
	} else {
		if s.skip == nil {
			s.skip = make(map[uint32]struct{})
		}
		s.skip[refCmdSN] = struct{}{}
	}
	s.mu.Unlock()
	if p != nil {
		p.conn.dropHeld(p)
	}
	s.release() // it may have been all that others waited for
	return true
}

// answered gives a numbered command's place in the window back, unless the
// window is to shrink since memory runs short. When there is memory again each
// answer gives back one more. No locks are needed or taken.
func (s *Session) answered() {
	goal := windowOf(s.budget, s.window)
	for {
		kept := s.kept.Load()
		switch open := s.window - int(kept); {
		case open > goal:
			if s.kept.CompareAndSwap(kept, kept+1) {
				return
			}
		case open < goal:
			if s.kept.CompareAndSwap(kept, kept-1) {
				s.maxCmdSN.Add(2)
				return
			}
		default:
			s.maxCmdSN.Add(1)
			return
		}
	}
}

// join adds a connection; the one it replaces, if any, is returned and must be
// closed (connection reinstatement, RFC 7143 §6.3.4).
func (s *Session) join(c *TargetConn) (old *TargetConn, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil, fmt.Errorf("session %d ended during login", s.ID)
	}
	old = s.conns[c.cid]
	if old == nil && len(s.conns) >= max(s.params.MaxConnections, 1) {
		return nil, fmt.Errorf("session %d has %d connections", s.ID, len(s.conns))
	}
	s.conns[c.cid] = c
	s.joins++
	c.tagBase = uint64(s.joins) << 32
	return old, nil
}

// leave removes a connection. The last one ends the session.
func (s *Session) leave(c *TargetConn) (last bool) {
	s.mu.Lock()
	if s.conns[c.cid] == c {
		delete(s.conns, c.cid)
	}
	var gone []*heldPDU
	for sn, p := range s.held {
		if p.conn == c {
			gone = append(gone, s.takeHeld(sn))
		}
	}
	s.leaveTMFs(c)
	if len(s.conns) == 0 && !s.ended {
		s.ended = true
		last = true
	}
	s.mu.Unlock()
	for _, p := range gone {
		c.dropHeld(p)
	}
	s.release()
	return last
}

// End closes every connection and the nexus. reason goes to the log.
func (s *Session) End(reason string) {
	s.mu.Lock()
	first := !s.ended
	s.ended = true
	s.mu.Unlock()
	for _, c := range s.Conns() { // what they hold goes when they leave
		c.Drop(reason)
	}
	if first {
		s.detach()
	}
}

func (s *Session) detach() {
	if s.nexus != nil {
		s.nexus.Detach(nil)
	}
}

// connection finds another connection of the session by CID.
func (s *Session) connection(cid uint16) *TargetConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns[cid]
}
