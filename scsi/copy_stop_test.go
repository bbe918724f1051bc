package scsi_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/scsi"
)

// slowCopy is a copy from LUN 0 to LUN 1 by a host on LUN 2, in which the store of
// LUN 0 holds the read of block 8 (the second segment) or that of LUN 1 the write.
type slowCopy struct {
	*copyRig
	src, dst *gatedStore
	h        *host
	p        *pending
	release  func()
}

func startSlowCopy(t *testing.T, inSource bool) *slowCopy {
	t.Helper()
	s := &slowCopy{src: newGatedStore(1 << 20), dst: newGatedStore(1 << 20)}
	copy(s.src.data, bytes.Repeat([]byte{0xaa}, 1<<20))
	s.copyRig = newCopyRig(t, s.src, s.dst, newGatedStore(4096))
	if inSource {
		s.release = s.src.hold(8 * 512)
	} else {
		s.release = s.dst.hold(8 * 512)
	}
	s.h = s.login("a").on(2)
	s.p = s.h.startCopy(copyList(1, [][]byte{cscdNAA(0, 512), cscdNAA(1, 512)},
		[][]byte{b2b(0, 1, 8, 0, 0), b2b(0, 1, 8, 8, 8), b2b(0, 1, 8, 16, 16)}))
	synctest.Wait()
	if s.p.finished() {
		t.Fatal("the copy does not wait for the store")
	}
	return s
}

// ended: the third segment has not been copied, and all is as it was otherwise.
func (s *slowCopy) ended() {
	s.t.Helper()
	if s.dst.data[0] != 0xaa || s.dst.data[16*512] != 0 {
		s.t.Errorf("block 0 %#x, block 16 %#x: want the first segment and not the third", s.dst.data[0], s.dst.data[16*512])
	}
	for _, h := range []*host{s.h, s.h.on(0), s.h.on(1)} {
		for i := 0; h.do(tur).Status != scsi.Good; i++ {
			if i > 3 {
				s.t.Fatal("a unit does not come back")
			}
		}
	}
	s.close()
}

// Whatever ends the command ends the copy between two pieces, and task management
// answers when the store has let go or at its deadline.
func TestCopyAborted(t *testing.T) {
	for _, f := range []scsi.TMF{scsi.AbortTask, scsi.AbortTaskSet, scsi.ClearTaskSet, scsi.LUNReset, scsi.NexusReset} {
		for _, inSource := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				s := startSlowCopy(t, inSource)
				begin := time.Now()
				answer := s.h.manage(f, s.p.Tag)
				synctest.Wait()
				if len(answer) != 0 || s.p.finished() {
					t.Errorf("TMF %d: answered while the store holds the copy", f)
				}
				if res := <-answer; res != scsi.FunctionComplete || time.Since(begin) != 5*time.Second {
					t.Errorf("TMF %d: %d after %v", f, res, time.Since(begin))
				}
				// What the store still holds is quarantined on its unit.
				other := s.login("b").on(1)
				w := other.start(scsi.Simple, write10(15, 1), block(0xbb))
				synctest.Wait()
				if w.finished() == !inSource {
					t.Errorf("TMF %d: a write to the copy's blocks finished: %v", f, w.finished())
				}
				s.release()
				<-w.done
				<-s.p.done
				other.expect("", w, "good")
				s.h.expect("", s.p, "aborted")
				if s.dst.data[15*512] != 0xbb {
					t.Errorf("TMF %d: the aborted copy won", f)
				}
				s.ended()
			})
		}
	}
}

// The copy ends when its nexus does.
func TestCopyEndsWithItsNexus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startSlowCopy(t, false)
		detached := make(chan struct{})
		s.h.nx.Detach(func() { close(detached) })
		synctest.Wait()
		select {
		case <-detached:
			t.Error("detached while the store holds the copy")
		default:
		}
		s.release()
		<-detached
		s.h.expect("", s.p, "aborted")
		s.h = s.login("a").on(2)
		s.ended()
	})
}

// A reset of a unit that is copied from or to ends the copy with COPY ABORTED.
func TestCopyMeetsReset(t *testing.T) {
	for _, lun := range []int{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			s := startSlowCopy(t, lun == 0)
			answer := s.login("b").on(lun).manage(scsi.LUNReset, 0)
			synctest.Wait()
			s.release()
			if res := <-answer; res != scsi.FunctionComplete {
				t.Errorf("LUN reset: %d", res)
			}
			<-s.p.done
			s.h.expect("", s.p, "a/0d/01")
			if got := s.p.forwarded(); got != "status 40" {
				t.Errorf("forwarded %q", got)
			}
			s.ended()
		})
	}
}

// COPY OPERATION ABORT ends the copy, which keeps its results.
func TestCopyOperationAbort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startSlowCopy(t, false)
		s.h.expect("unknown", s.h.do(copyOut(0x1c, 2, 0)), "5/24/00")
		s.h.expect("", s.h.do(copyOut(0x1c, 1, 0)), "good")
		synctest.Wait()
		if s.p.finished() {
			t.Error("ended while the store holds it")
		}
		s.release()
		<-s.p.done
		s.h.expect("", s.p, "a/2f/02")
		s.h.wantCopyStatus("aborted", 1, 0x02, 2, 8*512)
		s.h.expect("ended already", s.h.do(copyOut(0x1c, 1, 0)), "good")
		s.ended()
	})
}

// A unit that goes away takes the copy's next piece with it, and is not held up by
// the copy.
func TestCopyFromAUnitThatIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startSlowCopy(t, true)
		closed := make(chan error, 1)
		go func() { closed <- s.units[0].Close(context.Background()) }()
		synctest.Wait()
		if len(closed) != 0 {
			t.Error("closed while the store holds a read")
		}
		s.release()
		if err := <-closed; err != nil {
			t.Error(err)
		}
		<-s.p.done
		s.h.expect("", s.p, "a/0d/02") // the third segment does not find the unit
		if s.dst.data[15*512] != 0xaa || s.dst.data[16*512] != 0 {
			t.Error("the piece that was under way has not been copied, or one more has")
		}
		s.close()
	})
}

// A host that is fenced off a unit by PREEMPT AND ABORT no longer writes there by a
// copy that it began before, whichever of its nexuses the copy owed its access to.
func TestCopyIsFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, dst := newGatedStore(1<<20), newGatedStore(1<<20)
		r := newCopyRig(t, src, dst)
		h, fencer := r.login("a"), r.login("b").on(1)
		second := (&host{t: t, nx: r.dev.Attach(scsi.NexusConfig{
			Initiator: scsi.InitiatorPort{Name: "iqn.2026-01.test:a", ISID: [6]byte{1}},
			Port:      scsi.TargetPort{Name: r.dev.Name(), RelID: 1, Group: 1},
		})}).on(1)
		second.do(tur)
		second.expect("REGISTER", second.prOut(0, 0, 0, 0xa, 0), "good")
		fencer.expect("REGISTER", fencer.prOut(0, 0, 0, 0xb, 0), "good")
		fencer.expect("RESERVE", fencer.prOut(1, 0x05, 0xb, 0, 0), "good") // write exclusive, registrants only
		h.on(1).expect("the first nexus may not write", h.on(1).do(write10(0, 1), block(1)...), "conflict")

		release := dst.hold(0)
		p := h.startCopy(copyList(1, [][]byte{cscdNAA(1, 512)}, [][]byte{b2b(ownUnit, 0, 8, 0, 0), b2b(ownUnit, 0, 8, 8, 8)}))
		synctest.Wait()
		if p.finished() {
			t.Fatalf("the copy ended with %s", p.outcome())
		}
		fencer.expect("PREEMPT AND ABORT", fencer.prOut(5, 0x05, 0xb, 0xa, 0), "good")
		w := fencer.start(scsi.Simple, write10(0, 1), block(0xbb))
		synctest.Wait()
		if w.finished() {
			t.Error("a write passed what the store still holds of the fenced copy")
		}
		release()
		<-w.done
		<-p.done
		h.expect("", p, "a/0d/01")
		if got := p.forwarded(); got != "status 40" || dst.data[0] != 0xbb {
			t.Errorf("forwarded %q, block 0 is %#x", got, dst.data[0])
		}
		r.close()
	})
}

// A copy that has got on to the third segment finds the unit being sanitized.
func TestCopyMeetsSanitize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startSlowCopy(t, false)
		other := s.login("b").on(1)
		sanitizing := s.dst.hold(0)
		list := overwriteList(1, 0x55)
		p := other.start(scsi.Simple, sanitizeCDB(saOverwrite|immed, len(list)), list)
		synctest.Wait()
		if p.finished() {
			t.Error("SANITIZE passed a write that the store holds")
		}
		s.release()
		<-p.done
		other.expect("SANITIZE", p, "good")
		<-s.p.done
		s.h.expect("", s.p, "a/0d/01")
		if got := s.p.forwarded(); got != "2/04/1b" {
			t.Errorf("forwarded %q", got)
		}
		sanitizing()
		s.close()
	})
}

// COMPARE AND WRITE and a copy of the same blocks keep apart, whichever comes
// first, and other blocks are not held up.
func TestCopyAndCompareAndWrite(t *testing.T) {
	for _, copyFirst := range []bool{true, false} {
		for _, asSource := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				a, b := newGatedStore(1<<20), newGatedStore(1<<20)
				r := newCopyRig(t, a, b)
				h := r.login("a")
				copy(a.data[:8*512], bytes.Repeat(block(1), 8))
				store, lun := b, 1
				if asSource {
					store, lun = a, 0
				}
				caw := func() *pending {
					p := append(bytes.Clone(store.data[4*512:][:512]), block(9)...)
					return h.on(lun).start(scsi.Simple, cawCDB(0, 4, 1), p)
				}
				list := copyList(1, [][]byte{cscdNAA(1, 512)}, [][]byte{b2b(ownUnit, 0, 8, 0, 0)})
				var first, second *pending
				var release func()
				if copyFirst {
					release = store.hold(0)
					first = h.startCopy(list)
					synctest.Wait()
					second = caw()
				} else {
					release = store.hold(4 * 512)
					first = caw()
					synctest.Wait()
					second = h.startCopy(list)
				}
				elsewhere := h.on(lun).start(scsi.Simple, cawCDB(0, 100, 1), append(block(0), block(7)...))
				synctest.Wait()
				if got := finishedAre(first, second, elsewhere); got != "..c" {
					t.Errorf("copy first %v, source %v: done are %s", copyFirst, asSource, got)
				}
				release()
				<-first.done
				<-second.done
				// Comparing, the second sees what the first has left.
				want, result := byte(9), "good"
				switch {
				case copyFirst && !asSource: // compared with what was there before the copy
					want, result = 1, "e/1d/00"
				case copyFirst, !asSource:
					want = 1
				}
				caws, copied := second, first
				if !copyFirst {
					caws, copied = first, second
				}
				h.expect("copy", copied, "good")
				h.expect("COMPARE AND WRITE", caws, result)
				if got := b.data[4*512]; got != want {
					t.Errorf("copy first %v, source %v: block 4 is %d, want %d", copyFirst, asSource, got, want)
				}
				r.close()
			})
		}
	}
}

// Copies in both directions, behind ORDERED tasks on both units, do not wait for
// each other.
func TestCopiesDoNotBlockEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newGatedStore(1<<20), newGatedStore(1<<20)
		r := newCopyRig(t, a, b)
		h := r.login("a")
		releaseA, releaseB := a.hold(512), b.hold(512)
		there := h.startCopy(copyList(1, [][]byte{cscdNAA(1, 512)}, [][]byte{b2b(ownUnit, 0, 8, 1, 1), b2b(ownUnit, 0, 8, 9, 9)}))
		back := h.on(1).startCopy(copyList(1, [][]byte{cscdNAA(0, 512)}, [][]byte{b2b(ownUnit, 0, 8, 1, 1), b2b(ownUnit, 0, 8, 9, 9)}))
		synctest.Wait()
		ordered := []*pending{
			h.start(scsi.Ordered, write10(0, 20), make([]byte, 20*512)),
			h.on(1).start(scsi.Ordered, write10(0, 20), make([]byte, 20*512)),
		}
		synctest.Wait()
		if got := finishedAre(there, back, ordered[0], ordered[1]); got != "...." {
			t.Errorf("done are %s", got)
		}
		releaseA()
		releaseB()
		for _, p := range append(ordered, there, back) {
			<-p.done
			h.expect("", p, "good")
		}
		r.close()
	})
}

// A copy that writes a part of a block has the block for itself: what lies below
// may have to read the rest of it and to write it again.
func TestCopyOfAPartOfABlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newGatedStore(1 << 20)
		r := newCopyRig(t, a)
		h := r.login("a")
		release := a.hold(100 * 512)
		reading := h.start(scsi.Simple, read10(100, 1), nil)
		whole := h.startCopy(copyList(1, nil, [][]byte{b2b(ownUnit, ownUnit, 1, 0, 100)}))
		part := h.startCopy(copyList(2, nil, [][]byte{b2bOffset(ownUnit, ownUnit, 100, 0, 100, 0, 412)}))
		synctest.Wait()
		if got := finishedAre(reading, part); got != ".." {
			t.Errorf("done are %s", got)
		}
		release()
		for _, p := range []*pending{reading, whole, part} {
			<-p.done
			h.expect("", p, "good")
		}
		r.close()
	})
}

// However many copies hang, the units go on with other commands, and there is an
// end to how many there are.
func TestManyCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newGatedStore(1 << 20)
		r := newCopyRig(t)
		r.add(a, func(c *scsi.UnitConfig) { c.Workers = 1 })
		h := r.login("a")
		release := a.hold(0)
		var ps []*pending
		for id := range 64 {
			ps = append(ps, h.startCopy(copyList(byte(id), nil, [][]byte{b2b(ownUnit, ownUnit, 1, 0, 100)})))
		}
		synctest.Wait()
		p := h.copy(copyList(99, nil, nil))
		h.expect("one too many", p, "status 08")
		h.good(read10(50, 1))
		h.good(make10(0x35))
		release()
		for _, p := range ps {
			<-p.done
			h.expect("", p, "good")
		}
		h.expect("", h.copy(copyList(99, nil, nil)), "good")
		r.close()
	})
}

// Copies and tokens among units while everything is aborted, reset and closed:
// each task ends once, and nothing is left.
func TestCopiesAndEverythingElse(t *testing.T) {
	for _, prompt := range []bool{false, true} {
		a, b := newGatedStore(64<<10), newGatedStore(64<<10)
		a.prompt, b.prompt = prompt, prompt
		r := newCopyRig(t, a, b)
		var all []*host
		for id := range 4 {
			all = append(all, r.login(string(rune('a'+id))))
		}
		var wg sync.WaitGroup
		for id, h := range all {
			hosts := []*host{h, h.on(1)}
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(2, uint64(id)))
				var ps []*pending
				token := zeroToken()
				for range 300 {
					h := hosts[rnd.IntN(2)]
					lba, n := rnd.Uint64N(100), rnd.IntN(20)
					cdb, out := read10(uint32(lba), 2), []byte(nil)
					switch rnd.IntN(10) {
					case 0, 1, 2:
						out = copyList(byte(rnd.IntN(8)), [][]byte{cscdNAA(0, 512), cscdNAA(1, 512)}, [][]byte{
							b2b(rnd.IntN(2), rnd.IntN(2), uint16(n), lba, rnd.Uint64N(100)),
							b2bOffset(rnd.IntN(2), rnd.IntN(2), uint32(n*300), rnd.Uint64N(100), lba, 7, 9),
						})
						cdb = copyOut(0x00, 0, len(out))
					case 3:
						out = populateList(0, ranges(lba, uint64(n)))
						cdb = copyOut(0x10, uint32(rnd.IntN(8)), len(out))
					case 4:
						out = useList(token, 0, ranges(lba, uint64(n)))
						cdb = copyOut(0x11, uint32(rnd.IntN(8)), len(out))
					case 5:
						cdb = copyIn([]byte{0, 4, 5, 7, 7, 7}[rnd.IntN(6)], uint32(rnd.IntN(8)), 4096)
						p := h.do(cdb)
						if p.outcome() == "good" && cdb[1] == 7 {
							if k := tokenOf(p.In); k != nil {
								token = bytes.Clone(k)
							}
						}
						continue
					case 6:
						cdb = copyOut(0x1c, uint32(rnd.IntN(8)), 0)
					case 7:
						cdb, out = write10(uint32(lba), 2), bytes.Repeat(block(byte(id)), 2)
					case 8:
						f := []scsi.TMF{scsi.AbortTask, scsi.AbortTaskSet, scsi.ClearTaskSet, scsi.LUNReset, scsi.NexusReset}[rnd.IntN(5)]
						h.nx.Manage(f, h.lun, h.tag-uint64(rnd.IntN(3)), func(scsi.TMFResult) {})
						continue
					case 9:
						cdb, out = cawCDB(0, lba, 1), append(block(byte(id)), block(byte(id+1))...)
					}
					ps = append(ps, h.start([]scsi.Attr{scsi.Simple, scsi.Simple, scsi.Ordered, scsi.HeadOfQueue}[rnd.IntN(4)], cdb, out))
				}
				if id%2 == 0 {
					hosts[0].nx.Detach(nil)
				}
				for _, p := range ps {
					<-p.done
				}
			})
		}
		wg.Wait()
		r.close()
	}
}
