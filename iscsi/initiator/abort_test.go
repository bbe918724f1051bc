package initiator

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/iscsi"
	"blockgate/scsi"
)

// TestExecuteAborts: when the caller gives up, the task is aborted at the target
// and the session lives on.
func TestExecuteAborts(t *testing.T) {
	s, ps := open(t, testParams(), 1, 8, Config{})
	p := ps[0]
	ctx, cancel := context.WithCancel(background(t))
	result := make(chan error, 1)
	c := read(8)
	go func() { result <- s.Execute(ctx, &c) }()
	d := p.expect(iscsi.OpSCSICmd)
	cancel()
	m := p.expect(iscsi.OpTaskReq)
	if m.Flags() != iscsi.FlagFinal|byte(AbortTask) || m.RefTag() != d.ITT() || m.RefCmdSN() != d.CmdSN() || !m.Immediate() {
		t.Errorf("task management request %x", m.BHS[:])
	}
	p.send(p.answer(iscsi.OpTaskResp, m.ITT(), true), nil)
	if err := <-result; !errors.Is(err, ErrAborted) || !errors.Is(err, context.Canceled) {
		t.Errorf("Execute: %v", err)
	}
	// A response that crossed the abort is no fault of the target.
	p.status(d.ITT(), scsi.Good, nil)
	x := submit(t, s, read(0))
	p.status(p.expect(iscsi.OpSCSICmd).ITT(), scsi.Good, nil)
	x.wait(t)
	if err := x.Failure(); err != nil {
		t.Errorf("after the abort: %v", err)
	}
}

// TestExecuteAbortUnanswered: a target that does not answer the abort either
// loses the session; Execute returns in bounded time.
func TestExecuteAbortUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ps := open(t, testParams(), 1, 8, Config{AbortTimeout: 3 * time.Second})
		go func() {
			for {
				if _, err := ps[0].Recv(); err != nil {
					return
				}
			}
		}()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		c := read(8)
		err := s.Execute(ctx, &c)
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrConnectionLost) {
			t.Errorf("Execute: %v", err)
		}
		if d := time.Since(begin); d != 4*time.Second {
			t.Errorf("it took %v", d)
		}
		s.Close()
	})
}

// TestExecuteUnreadData: a target that answers, but never takes the data, does
// not hold the caller either.
func TestExecuteUnreadData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pa := testParams()
		pa.ImmediateData, pa.MaxXmitDataSegment = false, 32<<10
		s, ps := open(t, pa, 1, 8, Config{AbortTimeout: 3 * time.Second})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		done := make(chan error, 1)
		c := write(sequence(64 << 10))
		begin := time.Now()
		go func() { done <- s.Execute(ctx, &c) }()
		ps[0].status(ps[0].expect(iscsi.OpSCSICmd).ITT(), scsi.Busy, nil)
		if err := <-done; err != nil || c.Status != scsi.Busy {
			t.Errorf("%v, status %x", err, c.Status)
		}
		if d := time.Since(begin); d != 4*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

// TestExecuteWhileWaiting: a command that waits for the window is taken back
// without a word to the target.
func TestExecuteWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ps := open(t, testParams(), 1, 0, Config{})
		first, last := submit(t, s, read(1)), submit(t, s, read(2))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c := read(8)
		if err := s.Execute(ctx, &c); !errors.Is(err, ErrAborted) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Execute: %v", err)
		}
		third := submit(t, s, read(3))
		p := ps[0]
		p.maxCmd = 20
		p.send(p.answer(iscsi.OpNopIn, iscsi.ReservedTag, false), nil)
		for _, x := range []*submitted{first, last, third} {
			d := p.expect(iscsi.OpSCSICmd)
			if d.EDTL() != uint32(len(x.In)) {
				t.Errorf("a command for %d bytes in place of %d", d.EDTL(), len(x.In))
			}
			p.dataIn(d.ITT(), 0, 0, x.In, true)
			<-x.done
		}
		s.Close()
	})
}

func TestResetEndsCommandsOfTheUnit(t *testing.T) {
	s, ps := open(t, testParams(), 2, 8, Config{})
	a, b, other := read(8), read(8), read(8)
	a.LUN, b.LUN, other.LUN = LUN(1), LUN(1), LUN(2)
	a.Connection, b.Connection, other.Connection = 1, 2, 1
	xa, xb, xo := submit(t, s, a), submit(t, s, b), submit(t, s, other)
	ps[0].expect(iscsi.OpSCSICmd)
	ps[1].expect(iscsi.OpSCSICmd)
	itt := ps[0].expect(iscsi.OpSCSICmd).ITT()
	answer := make(chan byte, 1)
	go func() {
		r, err := s.Manage(background(t), LogicalUnitReset, LUN(1), nil)
		if err != nil {
			t.Error(err)
		}
		answer <- r
	}()
	m := ps[0].expect(iscsi.OpTaskReq)
	if m.LUN() != LUN(1) || m.RefTag() != iscsi.ReservedTag {
		t.Errorf("task management request %x", m.BHS[:])
	}
	ps[0].send(ps[0].answer(iscsi.OpTaskResp, m.ITT(), true), nil)
	if r := <-answer; r != FunctionComplete {
		t.Errorf("response %d", r)
	}
	xa.wait(t)
	xb.wait(t)
	if !errors.Is(xa.Err, ErrAborted) || !errors.Is(xb.Err, ErrAborted) {
		t.Errorf("commands of the unit: %v, %v", xa.Err, xb.Err)
	}
	ps[0].dataIn(itt, 0, 0, make([]byte, 8), true)
	xo.wait(t)
	if err := xo.Failure(); err != nil {
		t.Errorf("command of another unit: %v", err)
	}
}

func TestManageOfAFinishedCommand(t *testing.T) {
	s, _ := open(t, testParams(), 1, 8, Config{})
	if r, err := s.Manage(background(t), AbortTask, 0, new(Command)); r != TaskDoesNotExist || err != nil {
		t.Errorf("response %d, %v", r, err)
	}
}
