package initiator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"blockgate/iscsi"
)

// Session is a normal session with a target. Its methods are safe for
// concurrent use; Close, Logout and Execute must not be called from a
// completion.
type Session struct {
	cfg    Config
	log    *slog.Logger
	conns  []*conn
	params iscsi.Params // of the leading connection
	tsih   uint16

	running sync.WaitGroup // the connections' readers
	texts   sync.Mutex     // one text exchange at a time

	mu        sync.Mutex
	err       error // why the session ended; nothing is sent any more
	closing   bool  // a logout is under way: no more commands
	loggedOut bool  // the target has answered it: what follows is no failure
	cmdSN     uint32
	expCmdSN  uint32
	maxCmdSN  uint32
	seq       uint64
	turn      int // connection for the next command
	slots     []slot
	free      []uint16
	managed   bool // a task management function may have crossed a response
	waiting   *Command
	lastWaits *Command
}

// slot is one entry of the task table. An initiator task tag is the slot's
// index (low half) and generation (high half); the index is never ffffh, so that
// no tag is the reserved one.
type slot struct {
	gen  uint16
	cmd  *Command
	ctrl *control
}

const maxSlots = 0xffff

// Params are what the leading connection negotiated.
func (s *Session) Params() iscsi.Params { return s.params }

// TSIH is the session's target session identifying handle.
func (s *Session) TSIH() uint16 { return s.tsih }

// Connections is how many connections the session has.
func (s *Session) Connections() int { return len(s.conns) }

// Target is the name of the target.
func (s *Session) Target() string { return s.cfg.TargetName }

// Err is why the session ended, nil while it is up.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Window tells how many more commands the target would take now.
func (s *Session) Window() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(0, int(int32(s.maxCmdSN-s.cmdSN))+1)
}

// Submit sends the command, or queues it until the command window has room;
// commands of a session are sent in the order of their Submit. Done is called
// when it is done. An error means that the command was not taken: Done will not
// be called.
func (s *Session) Submit(c *Command) error {
	c.sync = false
	return s.submit(c)
}

func (s *Session) submit(c *Command) error {
	if err := c.check(s); err != nil {
		return err
	}
	s.mu.Lock()
	if s.err != nil || s.closing {
		err := s.err
		if err == nil {
			err = ErrClosed
		}
		s.mu.Unlock()
		return err
	}
	c.reset()
	if !c.Immediate && (s.waiting != nil || !s.openLocked()) || !s.slotLocked() {
		c.queued = true
		if s.waiting == nil {
			s.waiting = c
		} else {
			s.lastWaits.next = c
		}
		s.lastWaits = c
		s.mu.Unlock()
		return nil
	}
	conn := s.sendLocked(c)
	flush := (!conn.inBatch || s.cfg.Unbatched) && !conn.writing
	s.mu.Unlock()
	if flush {
		conn.flush()
	}
	return nil
}

// openLocked reports whether the command window has room.
func (s *Session) openLocked() bool { return !iscsi.SNLess(s.maxCmdSN, s.cmdSN) }

// slotLocked makes sure that there is a free tag.
func (s *Session) slotLocked() bool {
	if len(s.free) > 0 {
		return true
	}
	if len(s.slots) >= maxSlots {
		return false
	}
	s.free = append(s.free, uint16(len(s.slots)))
	s.slots = append(s.slots, slot{})
	return true
}

// takeSlotLocked takes a free tag, which slotLocked has made sure of.
func (s *Session) takeSlotLocked() (*slot, uint32) {
	i := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	sl := &s.slots[i]
	return sl, uint32(sl.gen)<<16 | uint32(i)
}

func (s *Session) freeSlotLocked(itt uint32) {
	i := uint16(itt)
	s.slots[i] = slot{gen: s.slots[i].gen + 1}
	s.free = append(s.free, i)
}

// findLocked gives the slot of a tag, nil if there is no such task. What a
// target sends for a task that was aborted in the meantime is not its fault.
func (s *Session) findLocked(c *conn, itt uint32) (*slot, error) {
	if i := int(itt & 0xffff); i < len(s.slots) {
		sl := &s.slots[i]
		if sl.gen == uint16(itt>>16) {
			if sl.cmd != nil && sl.cmd.conn == c || sl.ctrl != nil && sl.ctrl.conn == c {
				return sl, nil
			}
		}
	}
	if s.managed {
		return nil, nil
	}
	return nil, protocolErrorf("opcode %02xh for initiator task tag %08xh, which names no task of this connection",
		uint8(c.h.Opcode()), itt)
}

// commandLocked is findLocked for commands.
func (s *Session) commandLocked(c *conn, itt uint32) (*Command, error) {
	sl, err := s.findLocked(c, itt)
	if sl == nil {
		return nil, err
	}
	if sl.cmd == nil {
		return nil, protocolErrorf("opcode %02xh for a task that is not a command", uint8(c.h.Opcode()))
	}
	return sl.cmd, nil
}

// sendLocked numbers the command and queues it on a connection.
func (s *Session) sendLocked(cmd *Command) *conn {
	var c *conn
	if cmd.Connection > 0 {
		c = s.conns[cmd.Connection-1]
	} else {
		c = s.conns[s.turn]
		if s.turn++; s.turn == len(s.conns) {
			s.turn = 0
		}
	}
	sl, itt := s.takeSlotLocked()
	sl.cmd = cmd
	cmd.conn, cmd.itt, cmd.cmdSN, cmd.queued = c, itt, s.cmdSN, false
	if !cmd.Immediate {
		s.cmdSN++
	}
	s.seq++
	cmd.seq = s.seq
	c.commandLocked(cmd)
	return c
}

// drainLocked sends commands that waited for the window. It is called by a
// reader, which flushes its own connection; the others' writers flush theirs.
func (s *Session) drainLocked() {
	for s.waiting != nil && s.openLocked() && s.slotLocked() {
		c := s.waiting
		s.waiting = c.next
		c.next = nil
		if s.waiting == nil {
			s.lastWaits = nil
		}
		if conn := s.sendLocked(c); !conn.inBatch && !conn.writing {
			conn.kickLocked()
		}
	}
}

// kickLocked leaves the queue to the writer.
func (c *conn) kickLocked() {
	c.writing, c.handed = true, true
	c.out, c.sent = c.sent, c.out
	c.sent.vectors()
	c.wake <- struct{}{}
}

// finishLocked takes an answered command out of the table. The caller settles it.
func (s *Session) finishLocked(cmd *Command) {
	s.freeSlotLocked(cmd.itt)
	cmd.finished = true
	if s.waiting != nil {
		s.drainLocked()
	}
}

// takeLocked ends every command of a connection that has failed.
func (s *Session) takeLocked(c *conn) (done *Command) {
	for i := range s.slots {
		cmd := s.slots[i].cmd
		if cmd == nil || cmd.conn != c {
			continue
		}
		s.freeSlotLocked(cmd.itt)
		cmd.Err = s.err
		if cmd.cause != nil {
			cmd.Err = fmt.Errorf("%w: %w", cmd.cause, s.err)
		}
		cmd.next, done = done, cmd
	}
	return done
}

// fail ends the session; the first error stays. Commands that wait for the
// window end here, those of a connection end with its reader.
func (s *Session) fail(err error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	if s.loggedOut {
		err = ErrClosed
	}
	s.err = err
	waiting := s.waiting
	s.waiting, s.lastWaits = nil, nil
	for c := waiting; c != nil; c = c.next {
		c.queued = false
		c.Err = err
	}
	for i := range s.slots {
		if ctrl := s.slots[i].ctrl; ctrl != nil {
			ctrl.err = err
			close(ctrl.done)
			s.freeSlotLocked(ctrl.itt)
		}
	}
	conns := s.conns
	s.mu.Unlock()
	if err != ErrClosed {
		s.log.Warn("iSCSI session ended", "target", s.cfg.TargetName, "err", err)
	}
	for _, c := range conns {
		close(c.dead)
		c.nc.Close()
	}
	completeAll(waiting)
}

// Execute sends the command and waits for its answer, which may be any status:
// see Command.Failure. The error is non-nil only if there is no answer.
//
// When ctx ends first, the command is aborted (ABORT TASK); if the target does
// not answer that within Config.AbortTimeout, the session is given up. In each
// case the buffers are free when Execute returns.
func (s *Session) Execute(ctx context.Context, c *Command) error {
	if err := ctx.Err(); err != nil {
		c.reset()
		c.Err = context.Cause(ctx)
		return c.Err
	}
	if c.wait == nil {
		c.wait = make(chan struct{}, 1)
	}
	c.sync = true
	if err := s.submit(c); err != nil {
		c.reset()
		c.Err = err
		return err
	}
	select {
	case <-c.wait:
		return c.Err
	case <-ctx.Done():
	}
	s.cancel(c, context.Cause(ctx))
	return c.Err
}

// cancel brings a command of Execute to its end and waits for that, at most
// AbortTimeout: a target may have answered, and yet not take the data.
func (s *Session) cancel(c *Command, cause error) {
	s.mu.Lock()
	if c.queued {
		s.unqueueLocked(c)
		c.Err = fmt.Errorf("%w: %w", ErrAborted, cause)
		s.mu.Unlock()
		return
	}
	c.cause = fmt.Errorf("%w: %w", ErrAborted, cause)
	s.mu.Unlock()
	ctx, stop := context.WithTimeout(context.Background(), s.cfg.AbortTimeout)
	defer stop()
	resp, err := s.Manage(ctx, AbortTask, c.LUN, c)
	if err == nil && resp <= TaskDoesNotExist {
		select {
		case <-c.wait:
			return
		case <-ctx.Done():
			err = errors.New("the target does not take the data")
		}
	} else if err == nil {
		err = fmt.Errorf("response %d", resp)
	}
	s.fail(fmt.Errorf("%w: ABORT TASK failed: %w", ErrConnectionLost, err))
	<-c.wait
}

func (s *Session) unqueueLocked(c *Command) {
	var before *Command
	for p := s.waiting; p != c; p = p.next {
		before = p
	}
	if before == nil {
		s.waiting = c.next
	} else {
		before.next = c.next
	}
	if s.lastWaits == c {
		s.lastWaits = before
	}
	c.next, c.queued = nil, false
}

// Close ends the session without a logout and waits until every command is
// done. It returns nil also when the session had ended before.
func (s *Session) Close() error {
	s.fail(ErrClosed)
	s.running.Wait()
	return nil
}
