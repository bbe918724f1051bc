package scsi_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/scsi"
)

// finishedAre says which of the tasks are done, as "ab..".
func finishedAre(ps ...*pending) string {
	var b []byte
	for i, p := range ps {
		c := byte('.')
		if p.finished() {
			c = 'a' + byte(i)
		}
		b = append(b, c)
	}
	return string(b)
}

func TestTaskAttributes(t *testing.T) {
	const s, o, h = scsi.Simple, scsi.Ordered, scsi.HeadOfQueue
	// Each task reads a block of its own; the store lets them go in the given
	// order. want is what has ended when the store holds all, then after each.
	for _, c := range []struct {
		name  string
		attrs []scsi.Attr
		order []int // -1: a task whose read the store never held
		want  []string
	}{
		{"simple tasks pass each other", []scsi.Attr{s, s, s}, []int{2, 0, 1}, []string{"...", "..c", "a.c", "abc"}},
		{"ordered waits for all older", []scsi.Attr{s, s, o}, []int{2, 1, 0}, []string{"...", "...", ".b.", "abc"}},
		{"simple waits for an older ordered", []scsi.Attr{o, s, s}, []int{1, 2, 0}, []string{"...", "...", "...", "abc"}},
		{"ordered tasks in their order", []scsi.Attr{o, o, s}, []int{2, 1, 0}, []string{"...", "...", "...", "abc"}},
		{"head of queue waits for none", []scsi.Attr{o, s, h}, []int{2, 0, 1}, []string{"...", "..c", "a.c", "abc"}},
		{"a blocked task waits for head of queue", []scsi.Attr{o, s, h}, []int{0, 1, 2}, []string{"...", "a..", "a..", "abc"}},
		{"untagged is simple", []scsi.Attr{scsi.Untagged, s, s}, []int{2, 1, 0}, []string{"...", "..c", ".bc", "abc"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, nil)
				n := r.login("a")
				var ps []*pending
				var release []func()
				for i, a := range c.attrs {
					release = append(release, r.store.hold(int64(i)*512))
					ps = append(ps, n.start(a, read10(uint32(i), 1), nil))
				}
				synctest.Wait()
				for step := 0; ; step++ {
					if got := finishedAre(ps...); got != c.want[step] {
						t.Fatalf("step %d: done are %s, want %s", step, got, c.want[step])
					}
					if step == len(c.order) {
						break
					}
					release[c.order[step]]()
					synctest.Wait()
				}
				for _, p := range ps {
					n.expect("", p, "good")
				}
			})
		})
	}
}

func TestOrderedWaitsForDataOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		n := r.login("a")
		w, ok := n.admit(scsi.Simple, write10(0, 1), block(1))
		if !ok {
			t.Fatal("not admitted")
		}
		o := n.start(scsi.Ordered, read10(0, 1), nil)
		inq := n.start(scsi.Simple, []byte{0x12, 0, 0, 0, 36, 0}, nil)
		synctest.Wait()
		if got := finishedAre(o, inq); got != ".b" {
			t.Fatalf("done are %s: only INQUIRY passes an ORDERED task", got)
		}
		w.run()
		<-o.done
		if !bytes.Equal(o.In, block(1)) {
			t.Error("the ordered read does not see the older write")
		}
	})
}

func TestTaskSetPerNexus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		a, b := r.login("a"), r.login("b")
		release := r.store.hold(0)
		older := a.start(scsi.Ordered, read10(0, 1), nil)
		mine := b.start(scsi.Simple, read10(9, 1), nil)
		synctest.Wait()
		if mine.finished() {
			t.Fatal("one task set: the other nexus must wait")
		}
		release()
		<-older.done
		<-mine.done

		sel := make([]byte, 16) // control mode page with TST = 001b
		sel[4], sel[5], sel[6], sel[7], sel[12], sel[13], sel[15] = 0x0a, 0x0a, 0x22, 0x10, 0xff, 0xff, 0x01
		a.good([]byte{0x15, 0x10, 0, 0, 16, 0}, sel...)
		b.expect("changed", b.do(tur), "6/2a/01")
		release = r.store.hold(0)
		older = a.start(scsi.Ordered, read10(0, 1), nil)
		b.good(read10(9, 1))
		release()
		<-older.done
	})
}

func TestACAAttributeIsRefused(t *testing.T) {
	n := newRig(t, nil).login("a")
	p := n.start(scsi.ACA, read10(0, 1), nil)
	<-p.done
	n.expect("ACA", p, "b/49/00")
}

// One hung unit takes neither another's workers nor more than its own.
func TestSlowUnitsKeepToThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *scsi.UnitConfig) { c.Workers = 4 })
		other := newGatedStore(1 << 20)
		if err := r.dev.SetUnit(1, r.newUnit(func(c *scsi.UnitConfig) { c.Store, c.Serial = other, "2" })); err != nil {
			t.Fatal(err)
		}
		n := r.login("a")
		release := r.store.hold(0)
		var ps []*pending
		for range 32 {
			ps = append(ps, n.start(scsi.Simple, read10(0, 1), nil))
		}
		synctest.Wait()
		if s := r.unit.Stats(); s.Workers != 4 || s.Tasks != 32 || !r.unit.Busy() {
			t.Fatalf("stats %+v", s)
		}
		m := &host{t: t, nx: n.nx, lun: scsi.FormatLUN(1)}
		m.expect("", m.do(tur), "6/29/00")
		m.good(read10(0, 1))
		release()
		for _, p := range ps {
			<-p.done
		}
		synctest.Wait()
		if s := r.unit.Stats(); s.Workers != 0 || s.Tasks != 0 || s.Reads != 32 || s.ReadBytes != 32*512 {
			t.Errorf("stats %+v", s)
		}
	})
}

// A host can be fenced while the store hangs with every worker in it.
func TestReservationsWorkWhileTheStoreHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *scsi.UnitConfig) { c.Workers = 2 })
		n := r.login("a")
		release := r.store.hold(0)
		var ps []*pending
		for range 8 {
			ps = append(ps, n.start(scsi.Simple, read10(0, 1), nil))
		}
		n.expect("REGISTER", n.prOut(0, 0, 0, 0xa, 0), "good")
		n.expect("RESERVE", n.prOut(1, 0x05, 0xa, 0, 0), "good")
		release()
		for _, p := range ps {
			<-p.done
		}
		if err := r.unit.PurgeReservations(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := r.unit.Reservations(); len(s.Registrations) != 0 || s.Type != 0 {
			t.Errorf("after the purge: %+v", s)
		}
	})
}

func TestTaskSetFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		n, other := r.login("a"), r.login("b")
		release := r.store.hold(0)
		var full *pending
		for range 5000 {
			if p := n.start(scsi.Simple, read10(0, 1), nil); p.finished() {
				full = p
				break
			}
		}
		if full == nil {
			t.Fatal("the task set has no bound")
		}
		n.expect("", full, "status 28")
		// It has no task whose end it could wait for before it sends again.
		other.expect("another nexus", other.start(scsi.Simple, read10(0, 1), nil), "status 08")
		done := make(chan scsi.TMFResult, 1)
		n.nx.Manage(scsi.AbortTaskSet, 0, 0, func(r scsi.TMFResult) { done <- r })
		release()
		if res := <-done; res != scsi.FunctionComplete {
			t.Errorf("ABORT TASK SET: %d", res)
		}
		n.good(read10(0, 1))
	})
}

func TestCloseWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		n := r.login("a")
		release := r.store.hold(0)
		stuck := n.start(scsi.Simple, read10(0, 1), nil)
		idle, _ := n.admit(scsi.Simple, write10(5, 1), block(1))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		closed := make(chan error, 1)
		go func() { closed <- r.unit.Close(ctx) }()
		synctest.Wait()
		n.expect("new task on a closing unit", n.do(tur), "5/25/00")
		if err := <-closed; !errors.Is(err, scsi.ErrStuck) {
			t.Fatalf("Close with a hung store: %v", err)
		}
		idle.run()
		<-idle.done
		n.expect("a task that had waited for data", idle, "5/25/00")
		release()
		<-stuck.done
		n.expect("", stuck, "aborted")
		if err := r.unit.Close(t.Context()); err != nil {
			t.Errorf("Close again: %v", err)
		}
	})
}
