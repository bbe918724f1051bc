package iscsi_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/backing"
	"blockgate/iscsi"
	"blockgate/scsi"
)

// stuckStore keeps writes to its first block, and looks at what it was given when
// it lets them go.
type stuckStore struct {
	backing.Store
	gate chan struct{}
}

func (s *stuckStore) WriteAt(ctx context.Context, p []byte, off int64) error {
	if off > 0 {
		return s.Store.WriteAt(ctx, p, off)
	}
	was := bytes.Clone(p)
	<-s.gate
	if !bytes.Equal(was, p) {
		return errors.New("the buffer was used again")
	}
	return s.Store.WriteAt(ctx, p, off)
}

func (s *stuckStore) Prompt() bool { return false }

// stalledRig has a unit at LUN 0 whose store keeps writes to block 0 and that fails
// them after 2 s, and a sound one at LUN 1.
func stalledRig(t *testing.T, o rigOptions) (*rig, *stuckStore, *scsi.Unit) {
	s := &stuckStore{openStore(t, "ram:4M"), make(chan struct{})}
	o.stores = map[uint64]backing.Store{0: s, 1: openStore(t, "ram:4M")}
	o.params = func(p *iscsi.Params) { p.MaxRecvDataSegment = 256 << 10 }
	r := newRig(t, o)
	u := r.dev.Units()[0]
	err := u.Update(func(c *scsi.UnitConfig) { c.Stall = scsi.StallPolicy{Action: scsi.StallFail, After: 2 * time.Second} })
	if err != nil {
		t.Fatal(err)
	}
	return r, s, u
}

// TestAnswerBeforeTheStore: a command that the store keeps is answered, its tag and
// its place in the window can be used again, and its buffer cannot.
func TestAnswerBeforeTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 64 << 10
		r, s, u := stalledRig(t, rigOptions{queue: 4, memory: 1 << 20})
		l := r.conns[0]
		sn := uint32(1)
		write := func(itt, lba uint32, lun uint64, seed byte) {
			l.send(cmdPDU(itt, sn, lun<<48, rw10(0x2a, lba, size/512), size, fW), pattern(size, seed))
			sn++
		}
		write(7, 0, 0, 1)
		l.nothing()
		time.Sleep(4 * time.Second)
		synctest.Wait()
		l.flush()
		p := l.next()
		p.want(t, iscsi.OpSCSIResp, 7)
		p.wantSense(t, 0x0b, 0x08, 0x01)
		if p.MaxCmdSN() != p.ExpCmdSN()+3 || p.Flags() != iscsi.FlagFinal {
			t.Errorf("ExpCmdSN %d, MaxCmdSN %d, flags %x", p.ExpCmdSN(), p.MaxCmdSN(), p.Flags())
		}
		if used := r.budget.Used(); used < size {
			t.Errorf("%d bytes of the budget are taken while the store has a buffer of %d", used, size)
		}
		// A flood: answered at once, and nothing is left of it.
		before := r.budget.Used()
		for i := range 100 {
			write(7, 8, 0, byte(i)) // the same tag
			p := l.next()
			p.want(t, iscsi.OpSCSIResp, 7)
			p.wantSense(t, 0x0b, 0x08, 0x01)
		}
		if now := r.budget.Used(); now != before {
			t.Errorf("the flood holds %d bytes", now-before)
		}
		// The neighbour on the same connection.
		write(7, 0, 1, 9)
		l.next().wantStatus(t, scsi.Good)
		// What was answered cannot be aborted any more.
		l.send(tmf(9, sn, byte(scsi.AbortTask), 0, 7, 1), nil)
		if p := l.next(); p.Response() != byte(scsi.TaskDoesNotExist) {
			t.Errorf("ABORT TASK: response %d", p.Response())
		}
		close(s.gate)
		synctest.Wait()
		l.nothing()
		if used := r.budget.Used(); used != 0 {
			t.Errorf("%d bytes of the budget are still taken", used)
		}
		if h := u.Health(); h.State != scsi.HealthOK || h.Errors > 0 {
			t.Errorf("the store ends %v: %s", h.State, h.Reason)
		}
		write(8, 0, 0, 2)
		l.next().wantStatus(t, scsi.Good)
	})
}

// TestAnswerThenGone: the connection may go while the store has what was answered,
// and before it was.
func TestAnswerThenGone(t *testing.T) {
	for _, wait := range []time.Duration{time.Second, 4 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			r, s, u := stalledRig(t, rigOptions{})
			l := r.conns[0]
			l.send(cmdPDU(7, 1, 0, rw10(0x2a, 0, 8), 4096, fW), pattern(4096, 1))
			time.Sleep(wait)
			synctest.Wait()
			l.close()
			if used := r.budget.Used(); used == 0 {
				t.Errorf("after %v the buffer was given back while the store has it", wait)
			}
			time.Sleep(time.Minute)
			close(s.gate)
			synctest.Wait()
			if used := r.budget.Used(); used != 0 {
				t.Errorf("after %v: %d bytes of the budget are still taken", wait, used)
			}
			if st := u.Stats(); st.Tasks != 0 {
				t.Errorf("after %v: %d tasks", wait, st.Tasks)
			}
		})
	}
}
