package scsi_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/backing"
	"blockgate/scsi"
)

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
