package scsi_test

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/scsi"
)

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

// A call that never comes back does not keep a store for ever that is well again.
func TestStallWithALostCall(t *testing.T) {
	for _, policy := range []string{"fail=8s", "busy=8s"} {
		synctest.Test(t, func(t *testing.T) {
			r, a := stallRig(t, policy, nil)
			release := r.store.hold(0)
			lost := a.startAnswered(read10(0, 1), nil)
			time.Sleep(11 * time.Second)
			synctest.Wait()
			refused := a.do(read10(8, 1)).outcome()
			if refused == "good" {
				t.Fatalf("%s: not refused", policy)
			}
			time.Sleep(8 * time.Second)
			a.do(tur) // does not go in
			a.expect("after a while", a.do(read10(8, 1)), "good")
			a.expect("", a.do(tur), "good")
			for range 3 { // and not only as long as there is something to do
				time.Sleep(20 * time.Second)
				a.expect("from then on", a.do(write10(8, 1), block(1)...), "good")
			}
			r.health(scsi.HealthOK)
			release()
			synctest.Wait()
			if !lost.finished() {
				t.Error("it has no end")
			}
		})
	}
}

func FuzzParseStallPolicy(f *testing.F) {
	for _, s := range []string{"", "hold", "fail=30s", "busy", "busy=1h0.5s", "fail=-1s", "fail=9223372036854775807ns"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := scsi.ParseStallPolicy(s)
		if err != nil {
			return
		}
		if again, err := scsi.ParseStallPolicy(p.String()); err != nil || again != p {
			t.Errorf("%q is %v, which is %v (%v)", s, p, again, err)
		}
	})
}
