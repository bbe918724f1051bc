package scsi_test

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/scsi"
)

// answered is a pending task of a transport that can answer before the store
// lets go.
type answered struct {
	*pending
	mu     sync.Mutex
	early  string
	when   time.Time
	status scsi.Status
}

func (a *answered) Answer(t *scsi.Task, st scsi.Status, s []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.early != "" {
		panic("answered twice")
	}
	if a.finished() {
		panic("answered after TaskDone")
	}
	a.early, a.when, a.status = senseText(s), time.Now(), st
}

func (a *answered) got() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.early
}

// startAnswered is start for such a transport.
func (h *host) startAnswered(cdb, out []byte) *answered {
	h.tag++
	p := &pending{Task: &scsi.Task{
		LUN: h.lun, Tag: h.tag, Attr: scsi.Simple, CDB: slices.Clone(cdb), MaxIn: 1 << 20, MaxOut: int64(len(out)),
	}, out: out, done: make(chan struct{})}
	a := &answered{pending: p}
	p.Transport = a
	if h.nx.Admit(p.Task) {
		p.run()
	}
	return a
}

func stallRig(t *testing.T, policy string, more func(*scsi.UnitConfig)) (*rig, *host) {
	t.Helper()
	p, err := scsi.ParseStallPolicy(policy)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(c *scsi.UnitConfig) {
		c.Stall = p
		if more != nil {
			more(c)
		}
	})
	return r, r.login("a")
}

func (r *rig) health(want scsi.HealthState) scsi.Health {
	r.t.Helper()
	h := r.unit.Health()
	if h.State != want {
		r.t.Errorf("health is %v (%s), want %v", h.State, h.Reason, want)
	}
	return h
}

// By default commands wait, however long that is; the stall shows.
func TestStallHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, a := stallRig(t, "hold", nil)
		release := r.store.hold(0)
		began := time.Now()
		p := a.startAnswered(read10(0, 1), nil)
		time.Sleep(time.Hour)
		synctest.Wait()
		if p.finished() || p.got() != "" {
			t.Fatal("a command of a unit that holds has ended")
		}
		h := r.health(scsi.HealthStalled)
		if d := h.Since.Sub(began); d < -2*time.Second || d > 2*time.Second || h.Reason == "" || h.Inside != 1 {
			t.Errorf("stalled %v after the first command waits: %+v", d, h)
		}
		a.good(read10(8, 1))
		release()
		synctest.Wait()
		a.expect("let go", p.pending, "good")
		r.health(scsi.HealthOK)
	})
}

// A command that the store keeps is answered in time; its buffers are not given
// back before the store has let go, and its blocks stay as they are.
func TestStallFailAnswersAndKeeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, a := stallRig(t, "fail=8s", nil)
		release := r.store.hold(0)
		began := time.Now()
		w := a.startAnswered(write10(0, 1), block(1))
		time.Sleep(7 * time.Second)
		synctest.Wait()
		if w.got() != "" {
			t.Fatalf("answered %s before its time", w.got())
		}
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if got := w.got(); got != "b/08/01" || w.status != scsi.CheckCondition {
			t.Fatalf("the write was answered %q", got)
		}
		if d := w.when.Sub(began); d < 8*time.Second || d > 10*time.Second {
			t.Errorf("answered after %v", d)
		}
		if w.finished() {
			t.Fatal("its buffer was given back while the store has it")
		}
		if s := r.unit.Stats(); s.Errors != 0 || s.Stuck != 1 {
			t.Errorf("stats %+v", s)
		}
		// What comes now does not wait at all.
		r.health(scsi.HealthStalled)
		a.expect("read elsewhere", a.do(read10(8, 1)), "b/08/01")
		a.expect("write elsewhere", a.do(write10(8, 1), block(2)...), "b/08/01")
		a.expect("", a.do(tur), "2/04/00")
		if got := senseText(a.good([]byte{0x03, 0, 0, 0, 252, 0})); got != "2/04/00" {
			t.Errorf("REQUEST SENSE says %s", got)
		}
		a.good([]byte{0x12, 0, 0, 0, 96, 0})
		release()
		synctest.Wait()
		if !w.finished() || !w.Aborted() {
			t.Error("the write that was answered did not end silently")
		}
		r.health(scsi.HealthOK)
		a.expect("", a.do(tur), "good")
		if !bytes.Equal(a.good(read10(0, 1)), block(1)) {
			t.Error("what the store did at last is not there")
		}
		if s := r.unit.Stats(); s.Errors != 1 || s.Tasks != 0 {
			t.Errorf("stats at the end %+v", s)
		}
	})
}

// The blocks of a write that was answered while the store has it are nobody
// else's until it lets go: what was written later is never overwritten by it.
func TestStallFailQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, a := stallRig(t, "fail=8s", nil)
		release := r.store.hold(0)
		w := a.startAnswered(write10(0, 1), block(1))
		// The store goes on elsewhere, so that this is one bad block and no stall.
		var again *answered
		for i := range 40 {
			time.Sleep(time.Second)
			a.good(read10(8, 1))
			if i == 20 {
				if w.got() == "" {
					t.Fatal("not answered")
				}
				r.health(scsi.HealthOK)
				again = a.startAnswered(write10(0, 1), block(2))
			}
		}
		synctest.Wait()
		if !again.finished() {
			t.Fatal("a write to blocks in quarantine still waits")
		}
		a.expect("to blocks in quarantine", again.pending, "b/08/01")
		last := a.startAnswered(write10(0, 1), block(3))
		release()
		synctest.Wait()
		a.expect("after it", last.pending, "good")
		if got := a.good(read10(0, 1)); !bytes.Equal(got, block(3)) {
			t.Errorf("the late write won: %x", got[0])
		}
	})
}

// cancelStore gives up when its context ends, as network engines do.
type cancelStore struct {
	*gatedStore
	mu   sync.Mutex
	hung bool
}

func (s *cancelStore) hang(on bool) { s.mu.Lock(); defer s.mu.Unlock(); s.hung = on }

func (s *cancelStore) wait(ctx context.Context) error {
	s.mu.Lock()
	hung := s.hung
	s.mu.Unlock()
	if hung {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (s *cancelStore) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.gatedStore.ReadAt(ctx, p, off)
}

func (s *cancelStore) Flush(ctx context.Context) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.gatedStore.Flush(ctx)
}

// A transport that cannot answer early gets its answer when the store gives up.
func TestStallFailGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cancelStore{gatedStore: newGatedStore(1 << 20)}
		r, a := stallRig(t, "fail=8s", func(c *scsi.UnitConfig) { c.Store = s })
		defer r.close()
		s.hang(true)
		began := time.Now()
		p, f := a.start(scsi.Simple, read10(0, 1), nil), a.start(scsi.Simple, syncCache, nil)
		<-p.done
		<-f.done
		if d := time.Since(began); d < 8*time.Second || d > 11*time.Second {
			t.Errorf("answered after %v", d)
		}
		a.expect("read", p, "b/08/01")
		a.expect("flush", f, "b/08/01")
		r.health(scsi.HealthStalled)
	})
}

var syncCache = []byte{0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// What waits for a worker ends as well; on a store that is only slow it does not.
func TestStallFailQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, a := stallRig(t, "fail=8s", func(c *scsi.UnitConfig) { c.Workers = 1 })
		release := r.store.hold(0)
		first, second := a.startAnswered(read10(0, 1), nil), a.startAnswered(read10(8, 1), nil)
		time.Sleep(15 * time.Second)
		synctest.Wait()
		if first.got() != "b/08/01" || !second.finished() {
			t.Fatalf("first answered %q, second finished: %v", first.got(), second.finished())
		}
		a.expect("queued", second.pending, "b/08/01")
		release()
		synctest.Wait()

		// 5 s each, so that the last of six waits for 30 s.
		var all []*answered
		for i := range uint32(6) {
			off := int64(i) * 8 * 512
			release := r.store.hold(off)
			time.AfterFunc(time.Duration(i+1)*5*time.Second, release)
			all = append(all, a.startAnswered(read10(i*8, 1), nil))
		}
		time.Sleep(40 * time.Second)
		synctest.Wait()
		for i, p := range all {
			if p.got() != "" || !p.finished() {
				t.Errorf("command %d answered %q", i, p.got())
				continue
			}
			a.expect("slow", p.pending, "good")
		}
	})
}

// While the store is stalled new commands get BUSY at once, and those inside wait.
func TestStallBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, a := stallRig(t, "busy=5s", nil)
		b := r.login("b")
		release := r.store.hold(0)
		p := a.startAnswered(read10(0, 1), nil)
		time.Sleep(4 * time.Second)
		a.good(read10(8, 1)) // the store answers: no stall
		time.Sleep(8 * time.Second)
		a.good(read10(8, 1))
		r.health(scsi.HealthOK)
		defer r.store.hold(16 * 512)()
		next := a.startAnswered(read10(16, 1), nil)
		time.Sleep(8 * time.Second)
		synctest.Wait()
		r.health(scsi.HealthStalled)
		a.expect("", a.do(read10(8, 1)), "status 08")
		b.expect("of another host", b.do(write10(8, 1), block(1)...), "status 08")
		a.expect("", a.do(tur), "good")
		time.Sleep(time.Hour)
		if p.finished() || p.got() != "" || next.finished() {
			t.Fatal("what was inside has ended")
		}
		release()
		synctest.Wait()
		a.expect("inside", p.pending, "good")
		a.good(read10(8, 1))
		r.health(scsi.HealthOK)
	})
}

// Task management during a stall reaches what is inside, not what has been
// answered, whose tag may be another command's by now.
func TestStallTaskManagement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, a := stallRig(t, "fail=8s", nil)
		release := r.store.hold(0)
		w := a.startAnswered(write10(0, 1), block(1))
		time.Sleep(12 * time.Second)
		synctest.Wait()
		if w.got() == "" {
			t.Fatal("not answered")
		}
		results := make(chan scsi.TMFResult, 4)
		done := func(r scsi.TMFResult) { results <- r }
		a.nx.Manage(scsi.AbortTask, 0, w.Tag, done)
		if res := <-results; res != scsi.TaskDoesNotExist {
			t.Errorf("ABORT TASK of an answered task: %v", res)
		}
		began := time.Now()
		a.nx.Manage(scsi.LUNReset, 0, 0, done)
		if res := <-results; res != scsi.FunctionComplete {
			t.Errorf("LUN RESET: %v", res)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("LUN RESET of a unit that is known to be stalled took %v", d)
		}
		gone := make(chan struct{})
		a.nx.Detach(func() { close(gone) })
		synctest.Wait()
		select {
		case <-gone:
			t.Fatal("the nexus is gone while the store has a buffer of its")
		default:
		}
		release()
		<-gone
		if !w.finished() {
			t.Error("no TaskDone")
		}
	})
}

// Many commands against a store that hangs leave a bounded number inside.
func TestStallFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newHungStore()
		s.lost = make(chan struct{})
		s.hang(true, true)
		r, a := stallRig(t, "fail=2s", func(c *scsi.UnitConfig) { c.Store, c.Workers = s, 8 })
		kept := 0
		var all []*answered
		for range 2000 {
			p := a.startAnswered(write10(0, 1), block(1))
			all = append(all, p)
			if len(all)%50 == 0 {
				time.Sleep(time.Second)
			}
		}
		synctest.Wait()
		for _, p := range all {
			if !p.finished() {
				kept++
			}
		}
		if kept == 0 || kept > 58 {
			t.Errorf("%d commands are inside", kept)
		}
		close(s.lost)
		synctest.Wait()
		for _, p := range all {
			if !p.finished() {
				t.Fatal("a command has no end")
			}
		}
		if s := r.unit.Stats(); s.Tasks != 0 || s.Workers != 0 {
			t.Errorf("left: %+v", s)
		}
	})
}

// A policy is changed while commands wait.
func TestStallPolicyChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, a := stallRig(t, "hold", nil)
		defer r.store.hold(0)()
		p := a.startAnswered(read10(0, 1), nil)
		time.Sleep(time.Minute)
		set := func(pol scsi.StallPolicy) error {
			return r.unit.Update(func(c *scsi.UnitConfig) { c.Stall = pol })
		}
		if err := set(scsi.StallPolicy{Action: scsi.StallFail, After: time.Millisecond}); err == nil {
			t.Error("a millisecond is taken")
		}
		if err := set(scsi.StallPolicy{Action: scsi.StallFail, After: 2 * time.Minute}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Second)
		if p.got() != "" {
			t.Error("answered too early")
		}
		time.Sleep(15 * time.Second)
		synctest.Wait()
		if p.got() != "b/08/01" {
			t.Errorf("answered %q", p.got())
		}
		a.expect("", a.do(read10(8, 1)), "b/08/01")
		if err := set(scsi.StallPolicy{}); err != nil {
			t.Fatal(err)
		}
		a.good(read10(8, 1))
	})
}

func TestParseStallPolicy(t *testing.T) {
	for s, want := range map[string]string{
		"": "hold", "hold": "hold", "fail=30s": "fail=30s", "fail=1m30s": "fail=1m30s", "busy": "busy=10s", "busy=500ms": "busy=500ms",
	} {
		if p, err := scsi.ParseStallPolicy(s); err != nil || p.String() != want {
			t.Errorf("%q: %v, %v; want %s", s, p, err, want)
		}
	}
	for _, s := range []string{"fail", "hold=1s", "fail=", "fail=0s", "fail=-1s", "fail=1ms", "busy=25h", "fail=soon", "drop", "busy="} {
		if p, err := scsi.ParseStallPolicy(s); err == nil {
			t.Errorf("%q is taken as %v", s, p)
		}
	}
}
