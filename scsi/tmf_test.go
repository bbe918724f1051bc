package scsi_test

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/scsi"
	"blockgate/scsi/sense"
)

// manage runs a function in the background; the channel gets the result.
func (h *host) manage(f scsi.TMF, tag uint64) chan scsi.TMFResult {
	done := make(chan scsi.TMFResult, 1) // a second answer would block for ever
	h.nx.Manage(f, h.lun, tag, func(r scsi.TMFResult) { done <- r })
	return done
}

func TestAbortTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		n := r.login("a")
		release := r.store.hold(0)
		running := n.start(scsi.Simple, read10(0, 1), nil)
		blocked := n.start(scsi.Ordered, read10(1, 1), nil)
		waiting, _ := n.admit(scsi.Simple, write10(2, 1), block(1))
		synctest.Wait()

		if res := <-n.manage(scsi.AbortTask, 4711); res != scsi.TaskDoesNotExist {
			t.Errorf("unknown task: %d", res)
		}
		if res := <-n.manage(scsi.QueryTask, blocked.Tag); res != scsi.FunctionSucceeded {
			t.Errorf("QUERY TASK: %d", res)
		}
		if res := <-n.manage(scsi.AbortTask, blocked.Tag); res != scsi.FunctionComplete || !blocked.finished() {
			t.Errorf("a task that waits for others: %d, done %v", res, blocked.finished())
		}
		n.expect("", blocked, "aborted")
		if res := <-n.manage(scsi.AbortTask, waiting.Tag); res != scsi.FunctionComplete || !waiting.Aborted() || waiting.finished() {
			t.Errorf("a task that waits for data: %d, aborted %v, done %v", res, waiting.Aborted(), waiting.finished())
		}
		waiting.run()
		if !waiting.finished() {
			t.Error("Run does not end an aborted task")
		}
		if b := r.store.data[2*512]; b != 0 {
			t.Error("an aborted write was run")
		}
		if res := <-n.manage(scsi.QueryTask, waiting.Tag); res != scsi.FunctionComplete {
			t.Errorf("QUERY TASK of an aborted one: %d", res)
		}

		answer := n.manage(scsi.AbortTask, running.Tag)
		synctest.Wait()
		if len(answer) != 0 {
			t.Error("answered while the store holds the task")
		}
		release()
		if res := <-answer; res != scsi.FunctionComplete || !running.finished() {
			t.Errorf("running task: %d, done %v", res, running.finished())
		}
		n.expect("", running, "aborted")
	})
}

// A store that hangs delays the answer to the deadline and no longer, and what
// it does later does not overwrite what was written meanwhile.
func TestHungStore(t *testing.T) {
	for _, f := range []scsi.TMF{scsi.AbortTask, scsi.AbortTaskSet, scsi.ClearTaskSet, scsi.LUNReset, scsi.TargetWarmReset, scsi.NexusReset} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil)
			n := r.login("a")
			release := r.store.hold(100 * 512)
			old := n.start(scsi.Simple, write10(100, 4), bytes.Repeat(block(0xaa), 4))
			synctest.Wait()
			begin := time.Now()
			if res := <-n.manage(f, old.Tag); res != scsi.FunctionComplete {
				t.Fatalf("TMF %d: %d", f, res)
			}
			if d := time.Since(begin); d != 5*time.Second {
				t.Errorf("TMF %d answered after %v", f, d)
			}
			if s := r.unit.Stats(); s.Stuck != 1 {
				t.Errorf("TMF %d: stats %+v", f, s)
			}
			for n.do(tur).Status != scsi.Good { // attentions of the reset
			}
			newer := n.start(scsi.Simple, write10(103, 1), block(0xbb))
			n.good(write10(104, 1), block(0xcc)...)
			n.good(read10(99, 1))
			synctest.Wait()
			if newer.finished() {
				t.Errorf("TMF %d: a write passed an aborted one that the store still holds", f)
			}
			abandoned := n.start(scsi.Simple, read10(100, 1), nil)
			if res := <-n.manage(scsi.AbortTask, abandoned.Tag); res != scsi.FunctionComplete || !abandoned.finished() {
				t.Errorf("TMF %d: a task that waits for the range cannot be aborted", f)
			}
			release()
			<-newer.done
			n.expect("newer write", newer, "good")
			n.expect("old write", old, "aborted")
			if b := n.good(read10(103, 1)); b[0] != 0xbb {
				t.Errorf("TMF %d: block 103 is %#x: the aborted write won", f, b[0])
			}
		})
	}
}

func TestLUNResetReachesEveryNexus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		a, b := r.login("a"), r.login("b")
		a.good([]byte{0x16, 0, 0, 0, 0, 0}) // RESERVE(6)
		b.expect("reserved", b.do(read10(0, 1)), "conflict")
		b.expect("RELEASE(6) of another's", b.do([]byte{0x17, 0, 0, 0, 0, 0}), "good")
		b.expect("still reserved", b.do(tur), "conflict")
		if res := <-b.manage(scsi.LUNReset, 0); res != scsi.FunctionComplete {
			t.Fatalf("LUN reset: %d", res)
		}
		a.expect("other nexus", a.do(tur), "6/29/03")
		b.expect("own nexus", b.do(tur), "6/29/03")
		b.good(read10(0, 1))
		if res := <-a.manage(scsi.TargetWarmReset, 0); res != scsi.FunctionComplete {
			t.Fatalf("warm reset: %d", res)
		}
		b.expect("warm reset", b.do(tur), "6/29/02")
		b.expect("once", b.do(tur), "good")
	})
}

func TestAbortedByAnotherNexus(t *testing.T) {
	for _, tas := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil)
			a, b := r.login("a"), r.login("b")
			if tas {
				sel := []byte{0, 0, 0, 0, 0x0a, 0x0a, 0x02, 0x10, 0, 0x40, 0, 0, 0xff, 0xff, 0, 1}
				a.good([]byte{0x15, 0x10, 0, 0, 16, 0}, sel...)
				b.expect("", b.do(tur), "6/2a/01")
			}
			release := r.store.hold(0)
			mine, theirs := a.start(scsi.Simple, read10(0, 1), nil), b.start(scsi.Simple, read10(0, 1), nil)
			answer := a.manage(scsi.ClearTaskSet, 0)
			synctest.Wait()
			release()
			<-answer
			a.expect("own task", mine, "aborted")
			a.good(tur)
			if tas {
				b.expect("other's task", theirs, "status 40")
			} else {
				b.expect("other's task", theirs, "aborted")
				b.expect("", b.do(tur), "6/2f/00")
			}
			b.good(tur)
		})
	}
}

func TestManageRefusals(t *testing.T) {
	r := newRig(t, nil)
	n := r.login("a")
	for f, want := range map[scsi.TMF]scsi.TMFResult{
		scsi.ClearACA: scsi.NotSupported, 8: scsi.NotSupported, 0: scsi.NotSupported, 77: scsi.NotSupported,
		scsi.AbortTaskSet: scsi.FunctionComplete, scsi.QueryTaskSet: scsi.FunctionComplete,
		scsi.QueryAsyncEvent: scsi.FunctionComplete,
	} {
		if res := <-n.manage(f, 0); res != want {
			t.Errorf("TMF %d: %d, want %d", f, res, want)
		}
	}
	n.lun = scsi.FormatLUN(9)
	for _, f := range []scsi.TMF{scsi.AbortTask, scsi.LUNReset, scsi.QueryTask} {
		if res := <-n.manage(f, 0); res != scsi.LUNDoesNotExist {
			t.Errorf("TMF %d on a LUN that is not there: %d", f, res)
		}
	}
}

func TestDetach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *scsi.UnitConfig) { c.Removable = true })
		a, b := r.login("a"), r.login("b")
		a.good([]byte{0x16, 0, 0, 0, 0, 0})
		a.good([]byte{0x1e, 0, 0, 0, 1, 0})
		if !r.unit.RemovalPrevented() {
			t.Error("PREVENT has no effect")
		}
		release := r.store.hold(0)
		running := a.start(scsi.Simple, read10(0, 1), nil)
		waiting, _ := a.admit(scsi.Simple, write10(2, 1), block(1))
		synctest.Wait()
		gone := make(chan struct{})
		a.nx.Detach(func() { close(gone) })
		synctest.Wait()
		select {
		case <-gone:
			t.Error("gone while the store holds a task")
		default:
		}
		waiting.Abandon(nil)
		a.expect("", waiting, "aborted")
		release()
		<-gone
		a.expect("", running, "aborted")
		b.expect("released", b.do(tur), "good")
		if r.unit.RemovalPrevented() {
			t.Error("PREVENT outlives its nexus")
		}
		a.expect("after Detach", a.do(tur), "5/25/00")
		a.nx.Detach(nil)
		if n := r.dev.Nexuses(); n != 1 {
			t.Errorf("%d nexuses are left", n)
		}
	})
}

// A nexus is gone only when tasks on units that were taken away are, too.
func TestDetachAfterRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		n := r.login("a")
		release := r.store.hold(0)
		running := n.start(scsi.Simple, read10(0, 1), nil)
		synctest.Wait()
		if err := r.dev.RemoveUnit(0); err != nil {
			t.Fatal(err)
		}
		gone := make(chan struct{})
		n.nx.Detach(func() { close(gone) })
		synctest.Wait()
		select {
		case <-gone:
			t.Error("gone while a removed unit holds a task")
		default:
		}
		release()
		<-gone
		n.expect("", running, "aborted")
	})
}

func TestAbandon(t *testing.T) {
	r := newRig(t, nil)
	n := r.login("a")
	p, _ := n.admit(scsi.Simple, write10(0, 1), nil)
	p.Abandon(nil)
	n.expect("silent", p, "aborted")
	p, _ = n.admit(scsi.Simple, write10(0, 1), nil)
	s := sense.DataPhaseError()
	p.Abandon(&s)
	n.expect("with a reason", p, "b/4b/00")
	if r.unit.Busy() {
		t.Error("tasks are left in the set")
	}
}
