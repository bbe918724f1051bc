package iscsi

import (
	"sync/atomic"

	"blockgate/scsi"
)

// heldTMF is a task management function for immediate delivery that came before
// commands it covers, which are on their way on other connections.
type heldTMF struct {
	conn  *TargetConn
	bhs   BHS
	ticks int
	due   bool // it has waited long enough
}

// maxTMFTicks is how long, in seconds, a function waits for commands of lower
// CmdSN; their connection may have gone with them.
const maxTMFTicks = 2

// taskManagement takes a task management function (RFC 7143 §11.5). The
// response goes out behind the responses of the tasks that it did not reach any
// more. The session's order is locked and is let go of.
func (c *TargetConn) taskManagement(h *BHS) {
	c.mu.Lock()
	if h.Immediate() && c.managing >= maxImmediate {
		c.mu.Unlock()
		c.sess.order.Unlock()
		c.reject(h, RejectTooManyImmediate)
		return
	}
	c.managing++
	c.mu.Unlock()
	switch fn := functionOf(h); {
	case c.sess.nexus == nil:
		c.sess.order.Unlock()
		c.managed(h, scsi.Rejected, nil)
	case fn == taskReassign:
		c.sess.order.Unlock()
		c.managed(h, scsi.FailoverNotSupported, nil) // error recovery level 0
	case h.Immediate() && coversTasks(fn) && c.sess.holdTMF(c, h):
		c.sess.order.Unlock()
	default:
		c.manage(h)
	}
}

func functionOf(h *BHS) scsi.TMF { return scsi.TMF(h.Flags() & 0x7f) }

// coversTasks: the function ends every task of lower CmdSN that it reaches.
func coversTasks(fn scsi.TMF) bool {
	switch fn {
	case scsi.AbortTaskSet, scsi.ClearTaskSet, scsi.LUNReset, scsi.TargetWarmReset, scsi.TargetColdReset, scsi.NexusReset:
		return true
	}
	return false
}

// manage carries the function out. The session's order is locked, so that no
// command comes in between, and is let go of.
func (c *TargetConn) manage(h *BHS) {
	h2 := *h // h is the reader's
	h = &h2
	fn := functionOf(h)
	owner := c.ownerOf(h.RefTag())
	hits := func(from *TargetConn, cmd *command) bool {
		switch fn {
		case scsi.AbortTask:
			return from == owner && cmd.itt == h.RefTag()
		case scsi.AbortTaskSet, scsi.ClearTaskSet, scsi.LUNReset:
			return cmd.lun == h.LUN()
		case scsi.TargetWarmReset, scsi.TargetColdReset, scsi.NexusReset:
			return true
		}
		return false // queries
	}
	conns := c.sess.Conns()
	for _, any := range conns {
		any.markLater(len(conns) > 1 && coversTasks(fn), h.CmdSN(), hits)
	}
	finish := func(r scsi.TMFResult) {
		held := 0
		for _, any := range c.sess.Conns() {
			held += any.forgetUndelivered(func(cmd *command) bool { return hits(any, cmd) })
		}
		if fn == scsi.AbortTask && r == scsi.TaskDoesNotExist && (held > 0 || c.sess.overtake(h.RefCmdSN())) {
			r = scsi.FunctionComplete
		}
		var after func()
		if fn == scsi.TargetColdReset && r == scsi.FunctionComplete && c.sess.reset != nil {
			after = func() { c.sess.reset(c.sess.Target()) }
		}
		for _, other := range c.sess.Conns() {
			if other != c {
				other.forgetAborted()
			}
		}
		c.managed(h, r, after)
	}
	// The answer may come at once, while order is locked; finish is for whoever
	// is the second to arrive.
	var arrived atomic.Int32
	var result scsi.TMFResult
	c.sess.nexus.Manage(fn, h.LUN(), owner.tag(h.RefTag()), func(r scsi.TMFResult) {
		result = r
		if arrived.Add(1) == 2 {
			finish(r)
		}
	})
	c.sess.order.Unlock()
	if arrived.Add(1) == 2 {
		finish(result)
	}
}

// managed answers a task management function.
func (c *TargetConn) managed(h *BHS, r scsi.TMFResult, after func()) {
	c.forgetAborted()
	c.mu.Lock()
	c.managing--
	c.mu.Unlock()
	p := &reply{numbered: !h.Immediate(), after: after}
	p.bhs.SetOpcode(OpTaskResp, false)
	p.bhs.SetFlags(FlagFinal)
	p.bhs.SetITT(h.ITT())
	p.bhs.SetResponse(byte(r))
	c.queue(outItem{kind: outPDU, pdu: p})
}

// markLater notes which of the tasks that a function reaches have a CmdSN behind
// the function's, which overtook it on another connection. The function does not
// cover them (RFC 7143 §4.2.3.2), so the initiator waits for an answer: should
// they be aborted all the same, as a reset of a unit must, they get TASK ABORTED.
func (c *TargetConn) markLater(several bool, cmdSN uint32, hits func(*TargetConn, *command) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cmd := range c.tasks {
		if hits(c, cmd) {
			cmd.later = several && !cmd.immediate && !SNLess(cmd.sn, cmdSN)
		}
	}
}

// holdTMF keeps an immediate function until the commands before it are there; it
// reports false when none can be missing. With one connection that is always so.
// Caller holds s.order.
func (s *Session) holdTMF(c *TargetConn, h *BHS) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	exp, sn := s.expCmdSN.Load(), h.CmdSN()
	if len(s.conns) < 2 || !SNLess(exp, sn) || SNLess(s.maxCmdSN.Load()+1, sn) {
		return false
	}
	s.tmfs = append(s.tmfs, &heldTMF{conn: c, bhs: *h})
	s.nheld.Add(1)
	return true
}

// takeTMF removes a held function whose turn has come, nil if there is none.
// Caller holds s.mu.
func (s *Session) takeTMF() *heldTMF {
	for i, f := range s.tmfs {
		if f.due || !SNLess(s.expCmdSN.Load(), f.bhs.CmdSN()) {
			s.tmfs = append(s.tmfs[:i], s.tmfs[i+1:]...)
			s.nheld.Add(-1)
			return f
		}
	}
	return nil
}

// leaveTMFs drops the held functions of a connection that goes; others no longer
// wait, since commands may have gone with it. Caller holds s.mu.
func (s *Session) leaveTMFs(c *TargetConn) {
	keep := s.tmfs[:0]
	for _, f := range s.tmfs {
		if f.conn == c {
			s.nheld.Add(-1)
			continue
		}
		f.due = true
		keep = append(keep, f)
	}
	clear(s.tmfs[len(keep):])
	s.tmfs = keep
}

// tickTMFs lets functions of a connection go on that have waited too long.
func (s *Session) tickTMFs(c *TargetConn) {
	if s.nheld.Load() == 0 {
		return
	}
	s.mu.Lock()
	for _, f := range s.tmfs {
		if f.conn == c {
			f.ticks++
			f.due = f.due || f.ticks >= maxTMFTicks
		}
	}
	s.mu.Unlock()
	s.release()
}

// ownerOf finds the connection that has the task. It should be this one, as task
// management that names a task is bound to its connection (RFC 7143 §11.5.1).
func (c *TargetConn) ownerOf(itt uint32) *TargetConn {
	if !c.has(itt) {
		for _, other := range c.sess.Conns() {
			if other.has(itt) {
				return other
			}
		}
	}
	return c
}

func (c *TargetConn) has(itt uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tasks[itt] != nil
}

// tag is the task's name for the device server. A connection that takes the
// place of another may use its initiator task tags again while those tasks are
// still on their way out, so they count for each connection by itself.
func (c *TargetConn) tag(itt uint32) uint64 { return c.tagBase | uint64(itt) }

// maxImmediate bounds the task management functions, and, beyond the command
// window, the commands that a connection may have outstanding for immediate
// delivery, which no window bounds (RFC 7143 §4.2.2.1).
const maxImmediate = 64

// taskReassign is TASK REASSIGN, which needs error recovery level 2.
const taskReassign = scsi.TMF(8)
