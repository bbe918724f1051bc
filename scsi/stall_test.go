package scsi_test

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/backing"
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

// A transport that cannot answer early gets its answer when the store gives up,
// and one command after the other goes to see whether the store is back.
func TestStallFailGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cancelStore{gatedStore: newGatedStore(1 << 20)}
		r, a := stallRig(t, "fail=8s", func(c *scsi.UnitConfig) { c.Store = s })
		s.hang(true)
		for range 2 {
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
		}
		probe := a.start(scsi.Simple, read10(0, 1), nil)
		synctest.Wait()
		a.expect("beside the one that asks", a.do(read10(0, 1)), "b/08/01")
		<-probe.done
		s.hang(false)
		a.good(read10(0, 1))
		r.health(scsi.HealthOK)
		a.good(read10(0, 1))
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
		time.Sleep(4 * time.Second)
		a.good(read10(8, 1))
		time.Sleep(8 * time.Second)
		synctest.Wait()
		r.health(scsi.HealthStalled)
		a.expect("", a.do(read10(8, 1)), "status 08")
		b.expect("of another host", b.do(write10(8, 1), block(1)...), "status 08")
		a.expect("", a.do(tur), "good")
		time.Sleep(time.Hour)
		if p.finished() || p.got() != "" {
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
		r, a := stallRig(t, "fail=2s", func(c *scsi.UnitConfig) { c.Workers = 8 })
		release := r.store.hold(0)
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
		release()
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

// tellingStore knows how it is.
type tellingStore struct {
	*gatedStore
	mu sync.Mutex
	h  backing.Health
}

func (s *tellingStore) Health() backing.Health { s.mu.Lock(); defer s.mu.Unlock(); return s.h }
func (s *tellingStore) set(st backing.State, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.h = backing.Health{State: st, Since: time.Now(), Reason: why}
}

// What an engine says of itself counts at once.
func TestStallByEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tellingStore{gatedStore: newGatedStore(1 << 20)}
		r, a := stallRig(t, "busy=5s", func(c *scsi.UnitConfig) { c.Store = s })
		a.good(read10(0, 1))
		s.set(backing.Stalled, "10.0.0.1:10809 is gone")
		r.unit.StoreHealthChanged()
		a.expect("", a.do(read10(0, 1)), "status 08")
		if h := r.health(scsi.HealthStalled); h.Reason != "10.0.0.1:10809 is gone" {
			t.Errorf("reason %q", h.Reason)
		}
		s.set(backing.Healthy, "")
		r.unit.StoreHealthChanged()
		a.good(read10(0, 1))
		r.health(scsi.HealthOK)

		// One that tells nobody is asked.
		if err := r.unit.Update(func(c *scsi.UnitConfig) {
			c.Stall = scsi.StallPolicy{Action: scsi.StallFail, After: 20 * time.Second}
		}); err != nil {
			t.Fatal(err)
		}
		s.set(backing.Stalled, "gone again")
		r.unit.StoreHealthChanged()
		a.good(read10(0, 1)) // it has its time yet
		time.Sleep(25 * time.Second)
		synctest.Wait()
		a.expect("", a.do(read10(0, 1)), "b/08/01")
		a.expect("", a.do(tur), "2/04/00")
		s.set(backing.Healthy, "")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		a.good(read10(0, 1))
		s.set(backing.Failed, "fenced off")
		r.health(scsi.HealthFailed)
	})
}

// Errors in a row make a store failing, a success mends it; a flush that failed
// is for good.
func TestFailing(t *testing.T) {
	r, a := stallRig(t, "hold", nil)
	r.store.err = backing.ErrNoSpace
	for range 5 {
		a.do(write10(0, 1), block(1)...)
	}
	r.health(scsi.HealthOK)
	r.store.err = context.DeadlineExceeded
	a.do(read10(0, 1))
	a.do(read10(0, 1))
	r.health(scsi.HealthOK)
	a.expect("", a.do(read10(0, 1)), "b/08/01")
	if h := r.health(scsi.HealthFailing); h.Errors != 3 || h.Reason == "" || h.Since.IsZero() {
		t.Errorf("%+v", h)
	}
	r.store.err = nil
	a.good(read10(0, 1))
	r.health(scsi.HealthOK)
	r.store.err = backing.ErrFailed
	a.do(syncCache)
	r.store.err = nil
	a.good(read10(0, 1))
	r.health(scsi.HealthFailed)
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

// Commands that time out at the very moment at which they are aborted and the store
// lets go end once, with one answer or none.
func TestStallEndsOnce(t *testing.T) {
	for round := range 30 {
		synctest.Test(t, func(t *testing.T) {
			r, a := stallRig(t, "fail=1s", nil)
			var all []*answered
			var releases []func()
			for i := range uint32(48) {
				releases = append(releases, r.store.hold(int64(i)*512))
				if i%2 == 0 {
					all = append(all, a.startAnswered(write10(i, 1), block(1)))
				} else {
					all = append(all, a.startAnswered(read10(i, 1), nil))
				}
			}
			synctest.Wait()
			// The looks are at multiples of 125 ms; the times out at about 1.2 s.
			time.Sleep(1125*time.Millisecond + time.Duration(round%2)*125*time.Millisecond)
			var wg sync.WaitGroup
			aborted := make([]scsi.TMFResult, len(all))
			for i, p := range all {
				if (i+round)%3 != 0 {
					wg.Go(func() {
						done := make(chan scsi.TMFResult, 1)
						a.nx.Manage(scsi.AbortTask, 0, p.Tag, func(res scsi.TMFResult) { done <- res })
						aborted[i] = <-done
					})
				}
				if (i+round)%4 != 0 {
					wg.Go(releases[i])
					releases[i] = func() {}
				}
			}
			wg.Wait()
			time.Sleep(3 * time.Second)
			for _, release := range releases {
				release()
			}
			synctest.Wait()
			for i, p := range all {
				early := p.got()
				switch {
				case !p.finished():
					t.Fatalf("command %d has no end", i)
				case early != "" && !p.Aborted():
					t.Errorf("command %d: two answers, %s and %s", i, early, p.outcome())
				case early == "" && p.Aborted() && (i+round)%3 == 0:
					t.Errorf("command %d: no answer, and nobody aborted it", i)
				}
			}
			if s := r.unit.Stats(); s.Tasks != 0 || s.Workers != 0 {
				t.Errorf("left: %+v", s)
			}
			r.health(scsi.HealthOK)
		})
	}
}

// A third-party copy whose store keeps a piece is answered like a command that the
// store keeps, by the policy of the store's unit; one that only takes long is not.
func TestStallOfACopy(t *testing.T) {
	policy := func(u *scsi.Unit) {
		err := u.Update(func(c *scsi.UnitConfig) { c.Stall = scsi.StallPolicy{Action: scsi.StallFail, After: 8 * time.Second} })
		if err != nil {
			panic(err)
		}
	}
	for _, inSource := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			s := &slowCopy{src: newGatedStore(1 << 20), dst: newGatedStore(1 << 20)}
			s.copyRig = newCopyRig(t, s.src, s.dst, newGatedStore(4096))
			for _, u := range s.units[:2] {
				policy(u)
			}
			s.h = s.login("a").on(2)
			stuck, unit := s.src, s.units[0]
			if !inSource {
				stuck, unit = s.dst, s.units[1]
			}
			release := stuck.hold(8 * 512)
			list := copyList(1, [][]byte{cscdNAA(0, 512), cscdNAA(1, 512)},
				[][]byte{b2b(0, 1, 8, 0, 0), b2b(0, 1, 8, 8, 8), b2b(0, 1, 8, 16, 16)})
			p := s.h.startAnswered(copyOut(0x00, 0, len(list)), list)
			time.Sleep(12 * time.Second)
			synctest.Wait()
			if p.got() != "b/08/01" || p.finished() {
				t.Fatalf("answered %q, finished: %v", p.got(), p.finished())
			}
			if h := unit.Health(); h.State != scsi.HealthStalled {
				t.Errorf("the unit of the store is %v", h.State)
			}
			if h := s.units[2].Health(); h.State != scsi.HealthOK {
				t.Errorf("the unit that has the command is %v: %s", h.State, h.Reason)
			}
			release()
			synctest.Wait()
			if !p.finished() || !p.Aborted() {
				t.Error("the copy did not end silently")
			}
			if s.dst.data[16*512] != 0 {
				t.Error("it went on")
			}

			var pieces [][]byte
			for i := range uint64(6) {
				time.AfterFunc(time.Duration(i+1)*5*time.Second, stuck.hold(int64(i)*8*512))
				pieces = append(pieces, b2b(0, 1, 8, i*8, i*8))
			}
			list = copyList(1, [][]byte{cscdNAA(0, 512), cscdNAA(1, 512)}, pieces)
			long := s.h.startAnswered(copyOut(0x00, 0, len(list)), list)
			time.Sleep(time.Minute)
			synctest.Wait()
			if long.got() != "" || !long.finished() {
				t.Fatalf("a long copy was answered %q", long.got())
			}
			s.h.expect("a long copy", long.pending, "good")
			s.close()
		})
	}
}
