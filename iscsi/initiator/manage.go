package initiator

import (
	"context"
	"fmt"

	"blockgate/iscsi"
)

// Function is a task management function (RFC 7143 §11.5.1).
type Function byte

// Task management functions.
const (
	AbortTask        Function = 1
	AbortTaskSet     Function = 2
	ClearACA         Function = 3
	ClearTaskSet     Function = 4
	LogicalUnitReset Function = 5
	TargetWarmReset  Function = 6
	TargetColdReset  Function = 7
	TaskReassign     Function = 8
)

// Responses to task management functions (RFC 7143 §11.6.1).
const (
	FunctionComplete     = 0
	TaskDoesNotExist     = 1
	LUNDoesNotExist      = 2
	TaskStillAllegiant   = 3
	ReassignNotSupported = 4
	FunctionNotSupported = 5
	AuthorizationFailed  = 6
	FunctionRejected     = 255
)

// Manage runs a task management function and returns the target's response. lun
// is the eight bytes of the LUN field; c, for AbortTask, is a command that was
// submitted. Commands that the function ended are done with ErrAborted before
// Manage returns, except those whose data is on its way.
func (s *Session) Manage(ctx context.Context, fn Function, lun uint64, c *Command) (response byte, err error) {
	k := &control{conn: s.conns[0], want: iscsi.OpTaskResp, fn: fn, lun: lun, cmd: c}
	ref, refSN := uint32(iscsi.ReservedTag), uint32(0)
	s.mu.Lock()
	if fn == AbortTask {
		if c == nil || !s.outLocked(c) {
			s.mu.Unlock()
			return TaskDoesNotExist, nil
		}
		// Connection allegiance: the request goes where the command went.
		k.conn, ref, refSN = c.conn, c.itt, c.cmdSN
	}
	s.managed = true
	s.mu.Unlock()
	err = s.ask(ctx, k, nil, func(h *iscsi.BHS) {
		h.SetOpcode(iscsi.OpTaskReq, true)
		h.SetFlags(iscsi.FlagFinal | byte(fn))
		h.SetLUN(lun)
		h.SetRefTag(ref)
		h.SetRefCmdSN(refSN)
	})
	if err != nil {
		return 0, fmt.Errorf("task management function %d: %w", fn, err)
	}
	return k.h.Response(), nil
}

// outLocked reports whether the command is at the target.
func (s *Session) outLocked(c *Command) bool {
	i := int(c.itt & 0xffff)
	return c.conn != nil && i < len(s.slots) && s.slots[i].cmd == c
}

// managedLocked ends the commands that a function which was answered has ended
// at the target, and returns those that are done.
func (s *Session) managedLocked(k *control) (done *Command) {
	r := k.h.Response()
	if k.fn == AbortTask {
		// "Does not exist" comes when the answer was lost to us, too: nothing
		// will follow in either case.
		if (r == FunctionComplete || r == TaskDoesNotExist) && s.outLocked(k.cmd) {
			done = s.abortLocked(k.cmd, done)
		}
		return done
	}
	if r != FunctionComplete {
		return nil
	}
	for i := range s.slots {
		c := s.slots[i].cmd
		if c == nil || c.seq > k.seq {
			continue
		}
		switch k.fn {
		case AbortTaskSet, ClearTaskSet, LogicalUnitReset:
			if c.LUN == k.lun {
				done = s.abortLocked(c, done)
			}
		case TargetWarmReset, TargetColdReset:
			done = s.abortLocked(c, done)
		}
	}
	return done
}

func (s *Session) abortLocked(c *Command, done *Command) *Command {
	c.Err = c.cause
	if c.Err == nil {
		c.Err = ErrAborted
	}
	s.finishLocked(c)
	if c.settle() {
		c.next, done = done, c
	}
	return done
}
