package scsi_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/scsi"
)

// hungStore keeps calls while it hangs: until their context ends, or for good. It
// tells what was read from it.
type hungStore struct {
	*gatedStore
	cached func(off int64) bool // what TryReadAt has at hand; nil: nothing

	mu     sync.Mutex
	reads  bool          // it hangs for reads
	writes bool          // and for writes
	lost   chan struct{} // closed to let go what does not end with its context; nil: all does
	asked  []int64       // reads, by offset
	inside int
}

func newHungStore() *hungStore { return &hungStore{gatedStore: newGatedStore(1 << 20)} }

func (s *hungStore) hang(reads, writes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads, s.writes = reads, writes
}

// seen gives the offsets of all reads, and how many calls are inside.
func (s *hungStore) seen() ([]int64, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked, s.inside
}

func (s *hungStore) wait(ctx context.Context, hangs *bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !*hangs {
		return nil
	}
	s.inside++
	s.mu.Unlock()
	var err error
	if s.lost != nil {
		<-s.lost
	} else {
		<-ctx.Done()
		err = ctx.Err()
	}
	s.mu.Lock()
	s.inside--
	return err
}

func (s *hungStore) TryReadAt(p []byte, off int64) (bool, error) {
	if s.cached == nil || !s.cached(off) {
		return false, nil
	}
	return true, s.gatedStore.ReadAt(context.Background(), p, off)
}

func (s *hungStore) ReadAt(ctx context.Context, p []byte, off int64) error {
	s.mu.Lock()
	s.asked = append(s.asked, off)
	s.mu.Unlock()
	if err := s.wait(ctx, &s.reads); err != nil {
		return err
	}
	return s.gatedStore.ReadAt(ctx, p, off)
}

func (s *hungStore) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := s.wait(ctx, &s.writes); err != nil {
		return err
	}
	return s.gatedStore.WriteAt(ctx, p, off)
}

func hungRig(t *testing.T, policy string) (*hungStore, *rig, *host) {
	s := newHungStore()
	r, a := stallRig(t, policy, func(c *scsi.UnitConfig) { c.Store = s })
	return s, r, a
}

// close ends the unit, and what it does by itself with it.
func (r *rig) close() {
	r.t.Helper()
	if err := r.unit.Close(context.Background()); err != nil {
		r.t.Error(err)
	}
}

// timed is do, with the time that it took.
func (h *host) timed(cdb []byte, out ...byte) (string, time.Duration) {
	began := time.Now()
	p := h.start(scsi.Simple, cdb, out)
	<-p.done
	return p.outcome(), time.Since(began)
}

// An initiator that sends one command after the other waits for the first one only:
// none of its commands is spent on seeing whether the store is back.
func TestStallFailsOneAfterTheOtherFast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r, a := hungRig(t, "fail=2s")
		defer r.close()
		s.hang(true, true)
		if got, d := a.timed(write10(0, 1), block(1)...); got != "b/08/01" || d < 2*time.Second || d > 3*time.Second {
			t.Fatalf("the first write: %s after %v", got, d)
		}
		for range 200 {
			if got, d := a.timed(write10(0, 1), block(1)...); got != "b/08/01" || d != 0 {
				t.Fatalf("a later one: %s after %v", got, d)
			}
			a.expect("", a.do(tur), "2/04/00")
			time.Sleep(777 * time.Millisecond)
		}
		r.health(scsi.HealthStalled)
		if _, inside := s.seen(); inside > 1 {
			t.Errorf("%d reads ask how the store is", inside)
		}
		s.hang(false, false)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		r.health(scsi.HealthOK)
		a.expect("", a.do(tur), "good")
		a.good(write10(0, 1), block(2)...)
		before, _ := s.seen()
		time.Sleep(time.Hour)
		if after, _ := s.seen(); len(after) != len(before) {
			t.Errorf("a store that is well was read %d times", len(after)-len(before))
		}
	})
}

// Where the store has stalled is read first, and then all over the medium: one
// call that is lost for good keeps nobody out.
func TestStallProbesElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r, a := hungRig(t, "fail=2s")
		s.lost = make(chan struct{})
		s.hang(true, true)
		w := a.startAnswered(write10(77, 1), block(1))
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if asked, _ := s.seen(); w.got() != "b/08/01" || len(asked) != 1 || asked[0] != 77*512 {
			t.Fatalf("answered %q, read at %v", w.got(), asked)
		}
		// Three hours later there are still few of them.
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		asked, inside := s.seen()
		if len(asked) < 20 || len(asked) > 100 || inside != len(asked)+1 {
			t.Errorf("%d reads in three hours, %d calls inside", len(asked), inside)
		}
		places := map[int64]bool{}
		for _, off := range asked {
			if off%512 != 0 || off < 0 || off >= 1<<20 || places[off] {
				t.Errorf("read at %d, again or not a block", off)
			}
			places[off] = true
		}
		// It is back, but what it has is lost.
		s.hang(false, false)
		time.Sleep(3 * time.Hour / 7)
		synctest.Wait()
		r.health(scsi.HealthOK)
		a.good(write10(8, 1), block(2)...)
		close(s.lost)
		synctest.Wait()
		r.close()
	})
}

// A store that answers reads and keeps writes costs a writer its time now and
// then, not each time.
func TestStallOfWritesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r, a := hungRig(t, "fail=2s")
		defer r.close()
		s.hang(false, true)
		began, waited := time.Now(), time.Duration(0)
		for time.Since(began) < time.Hour/2 {
			got, d := a.timed(write10(0, 1), block(1)...)
			if waited += d; got != "b/08/01" || d > 3*time.Second {
				t.Fatalf("%s after %v", got, d)
			}
			time.Sleep(time.Second)
		}
		if waited < time.Minute/2 || waited > 4*time.Minute {
			t.Errorf("waited for %v in half an hour", waited)
		}
		s.hang(false, false)
		time.Sleep(20 * time.Second)
		a.good(write10(0, 1), block(2)...)
		// It is forgotten once a write has come back.
		s.hang(true, true)
		a.expect("", a.do(write10(0, 1), block(3)...), "b/08/01")
		s.hang(false, false)
		time.Sleep(3 * time.Second)
		a.good(write10(0, 1), block(4)...)
	})
}

// What a store has at hand says nothing of it.
func TestStallProbesPastCaches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r, a := hungRig(t, "fail=2s")
		defer r.close()
		s.cached = func(off int64) bool { return off%1024 != 0 } // every other block
		s.hang(true, true)
		a.expect("", a.do(write10(1, 1), block(1)...), "b/08/01")
		time.Sleep(time.Minute)
		r.health(scsi.HealthStalled)
		asked, _ := s.seen()
		for _, off := range asked {
			if s.cached(off) {
				t.Errorf("asked for a block at %d, which is in the cache", off)
			}
		}
		if len(asked) < 10 {
			t.Errorf("%d reads", len(asked))
		}
	})
}

// A read that the store answers with an error is an answer.
func TestStallProbeGetsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r, a := hungRig(t, "busy=2s")
		defer r.close()
		s.lost = make(chan struct{})
		s.hang(true, true)
		p := a.start(scsi.Simple, read10(0, 1), nil)
		time.Sleep(4 * time.Second)
		a.expect("", a.do(read10(8, 1)), "status 08")
		s.gatedStore.mu.Lock()
		s.err = errors.New("a bad block")
		s.gatedStore.mu.Unlock()
		s.hang(false, false)
		time.Sleep(4 * time.Second)
		a.expect("", a.do(read10(8, 1)), "3/11/00")
		close(s.lost)
		<-p.done
	})
}

// Close waits for what the unit asks of the store like for any command, and has
// nothing asked afterwards.
func TestStallProbeEndsWithUnit(t *testing.T) {
	for _, lost := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s, r, a := hungRig(t, "fail=2s")
			if lost {
				s.lost = make(chan struct{})
			}
			s.hang(true, true)
			a.startAnswered(read10(0, 1), nil)
			time.Sleep(5 * time.Second)
			if !lost {
				r.close()
				before, inside := s.seen()
				time.Sleep(time.Minute)
				if after, _ := s.seen(); inside != 0 || len(after) != len(before) {
					t.Errorf("%d calls inside a closed unit's store, %d more since", inside, len(after)-len(before))
				}
				return
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			err := r.unit.Close(ctx)
			if _, inside := s.seen(); inside < 2 || !errors.Is(err, scsi.ErrStuck) || !strings.HasSuffix(err.Error(), fmt.Sprint(": ", inside)) {
				t.Errorf("closed with %d calls inside: %v", inside, err)
			}
			close(s.lost)
			r.close()
		})
	}
}
