package scsi_test

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/backing"
	"blockgate/scsi"
)

// startingStore begins reads and writes by itself, depth at a time.
type startingStore struct {
	*gatedStore
	depth  int
	prompt bool  // ends are told before Start returns
	calls  []int // how many were begun by each
}

func (s *startingStore) Starter() backing.Starter { return s }
func (s *startingStore) Depth() int               { return s.depth }

func (s *startingStore) Start(ios []*backing.IO) {
	if s.prompt {
		for _, io := range ios {
			s.carryOut(io)
		}
		return
	}
	s.calls = append(s.calls, len(ios))
	for _, io := range ios {
		go s.carryOut(io)
	}
}

func (s *startingStore) carryOut(io *backing.IO) {
	var err error
	if io.Write {
		err = s.WriteAt(io.Ctx, io.P, io.Off)
	} else {
		err = s.ReadAt(io.Ctx, io.P, io.Off)
	}
	io.Done.IODone(io, err)
}

func startingRig(t testing.TB, depth int) (*rig, *startingStore, *host) {
	s := &startingStore{gatedStore: newGatedStore(1 << 20), depth: depth}
	r := newRig(t, func(c *scsi.UnitConfig) { c.Store = s })
	r.store = s.gatedStore
	return r, s, r.login("a")
}

func TestStoreBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s, n := startingRig(t, 2)
		n.good(write10(3, 1), block(7)...)
		if got := n.good(read10(3, 1)); !bytes.Equal(got, block(7)) {
			t.Error("what was read is not what was written")
		}
		if len(s.calls) != 2 {
			t.Errorf("the store began %v", s.calls)
		}
		// What has to be durable, and what the store has no room for, is for workers.
		n.good([]byte{0x2a, 0x08, 0, 0, 0, 3, 0, 0, 1, 0}, block(8)...)
		if r.store.flushes != 1 {
			t.Errorf("%d flushes after a write with FUA", r.store.flushes)
		}
		release := r.store.hold(0)
		var ps []*pending
		for range 5 {
			ps = append(ps, n.start(scsi.Simple, read10(0, 1), nil))
		}
		synctest.Wait()
		if st := r.unit.Stats(); st.Workers != 3 || st.Tasks != 5 {
			t.Errorf("stats %+v, want 3 workers", st)
		}
		release()
		for _, p := range ps {
			<-p.done
			n.expect("held", p, "good")
		}
		s.err = backing.ErrNoSpace
		n.expect("full", n.do(write10(3, 1), block(9)...), "7/27/07")
		s.err = backing.ErrClosed
		n.expect("closed", n.do(read10(3, 1)), "4/44/00")
		synctest.Wait()
		if st := r.unit.Stats(); st.Tasks != 0 || st.Workers != 0 {
			t.Errorf("left: %+v", st)
		}
	})
}

// An aborted write keeps its blocks until the store has told its end.
func TestStoreBeginsAborted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _, n := startingRig(t, 8)
		release := r.store.hold(0)
		old := n.start(scsi.Simple, write10(0, 1), block(1))
		answer := n.manage(scsi.AbortTask, old.Tag)
		synctest.Wait()
		if len(answer) != 0 || old.finished() {
			t.Fatal("answered while the store has the task")
		}
		later := n.start(scsi.Simple, write10(0, 1), block(2))
		beside := n.start(scsi.Simple, write10(1, 1), block(3))
		synctest.Wait()
		if later.finished() || !beside.finished() {
			t.Errorf("to blocks in quarantine: %v, beside them: %v", later.finished(), beside.finished())
		}
		release()
		if res := <-answer; res != scsi.FunctionComplete {
			t.Errorf("ABORT TASK: %v", res)
		}
		<-later.done
		n.expect("aborted", old, "aborted")
		if got := n.good(read10(0, 1)); !bytes.Equal(got, block(2)) {
			t.Error("the aborted write came last")
		}
	})
}

// A store that stalls is found out, and the answer does not wait for it.
func TestStoreBeginsAndStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &startingStore{gatedStore: newGatedStore(1 << 20), depth: 8}
		r, a := stallRig(t, "fail=2s", func(c *scsi.UnitConfig) { c.Store = s })
		release := s.hold(0)
		p := a.startAnswered(write10(0, 1), block(1))
		for p.got() == "" {
			synctest.Wait()
			time.Sleep(100 * time.Millisecond)
		}
		if p.got() != "b/08/01" || p.finished() {
			t.Errorf("answered %q, finished %v", p.got(), p.finished())
		}
		r.health(scsi.HealthStalled)
		release()
		<-p.done
		a.good(read10(0, 1))
		r.health(scsi.HealthOK)
	})
}

func TestBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s, n := startingRig(t, 100)
		other := &startingStore{gatedStore: newGatedStore(1 << 20), depth: 100}
		if err := r.dev.SetUnit(1, r.newUnit(func(c *scsi.UnitConfig) { c.Store, c.Serial = other, "2" })); err != nil {
			t.Fatal(err)
		}
		m := &host{t: t, nx: n.nx, lun: scsi.FormatLUN(1), tag: 1000}
		m.expect("", m.do(tur), "6/29/00")
		n.expect("", n.do(tur), "6/3f/0e")
		n.good(tur)
		var b scsi.Batch
		var ps []*pending
		give := func(h *host, k int) {
			for range k {
				p, ok := h.admit(scsi.Simple, read10(0, 1), nil)
				if !ok {
					t.Fatal(p.outcome())
				}
				p.Batch = &b
				p.run()
				ps = append(ps, p)
			}
		}
		give(n, 3)
		synctest.Wait()
		if len(s.calls) != 0 || ps[0].finished() {
			t.Fatal("begun before Start")
		}
		give(m, 2)
		aborted := n.manage(scsi.AbortTask, ps[4].Tag) // it is another unit's
		b.Start()
		b.Start()
		for _, p := range ps {
			<-p.done
		}
		<-aborted
		if len(s.calls) != 1 || s.calls[0] != 3 || len(other.calls) != 1 || other.calls[0] != 2 {
			t.Errorf("begun together: %v and %v, want 3 and 2", s.calls, other.calls)
		}
		s.calls = nil
		give(n, 70)
		b.Start()
		sum := 0
		for _, k := range s.calls {
			sum += k
		}
		if sum != 70 || len(s.calls) > 4 {
			t.Errorf("70 commands were begun in %v", s.calls)
		}
		synctest.Wait()
	})
}

func TestBeginningAllocatesNothing(t *testing.T) {
	_, s, h := startingRig(t, 8)
	s.prompt = true
	sl := &slot{}
	data := make([]byte, 4096)
	for name, c := range map[string]struct{ cdb, out []byte }{
		"READ(10)": {read10(8, 8), nil}, "WRITE(10)": {write10(8, 8), data},
	} {
		if n := testing.AllocsPerRun(200, func() { sl.execute(h.nx, c.cdb, c.out) }); n > 0.1 && !raceEnabled {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
