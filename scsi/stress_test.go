package scsi_test

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"blockgate/scsi"
)

// Hosts that send everything at once while units come and go: each task ends
// exactly once (a second TaskDone panics), each function is answered once, and
// in the end nothing is left.
func TestEverythingAtOnce(t *testing.T) {
	for _, prompt := range []bool{false, true} {
		r := newRig(t, func(c *scsi.UnitConfig) { c.Store.(*gatedStore).prompt, c.Workers = prompt, 3 })
		var wg sync.WaitGroup
		var managed, answered atomic.Int64
		for id := range 4 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(1, uint64(id)))
				h := r.attach(string(rune('a' + id)))
				var ps []*pending
				for range 300 {
					lba := rnd.Uint32N(16)
					cdb, out := read10(lba, 2), []byte(nil)
					switch rnd.IntN(8) {
					case 0, 1:
						cdb, out = write10(lba, 2), bytes.Repeat(block(byte(id)), 2)
					case 2: // COMPARE AND WRITE
						cdb = []byte{0x89, 0, 0, 0, 0, 0, 0, 0, 0, byte(lba), 0, 0, 0, 1, 0, 0}
						out = append(block(byte(id)), block(byte(id+1))...)
					case 3:
						cdb = make10(0x35)
					case 4:
						cdb = []byte{0x12, 0, 0, 0, 96, 0}
					case 5:
						managed.Add(1)
						f := []scsi.TMF{scsi.AbortTask, scsi.AbortTaskSet, scsi.ClearTaskSet, scsi.LUNReset, scsi.QueryTask, scsi.NexusReset}[rnd.IntN(6)]
						h.nx.Manage(f, h.lun, h.tag-uint64(rnd.IntN(3)), func(scsi.TMFResult) { answered.Add(1) })
						continue
					}
					p, ok := h.admit([]scsi.Attr{scsi.Simple, scsi.Simple, scsi.Simple, scsi.Ordered, scsi.HeadOfQueue}[rnd.IntN(5)], cdb, out)
					if ok {
						if rnd.IntN(16) == 0 {
							p.Abandon(nil)
						} else {
							p.run()
						}
					}
					ps = append(ps, p)
				}
				detached := make(chan struct{})
				if id%2 == 0 {
					h.nx.Detach(func() { close(detached) })
					<-detached
				}
				for _, p := range ps {
					<-p.done
				}
			})
		}
		wg.Go(func() {
			other := r.newUnit(func(c *scsi.UnitConfig) { c.Store = newGatedStore(4096) })
			for range 50 {
				if err := r.dev.SetUnit(1, other); err != nil {
					t.Error(err)
				}
				if err := r.dev.RemoveUnit(1); err != nil {
					t.Error(err)
				}
				r.unit.Resized()
			}
		})
		wg.Wait()
		if managed.Load() != answered.Load() {
			t.Errorf("%d functions, %d answers", managed.Load(), answered.Load())
		}
		if err := r.unit.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if s := r.unit.Stats(); s.Tasks != 0 {
			t.Errorf("left: %+v", s)
		}
	}
}
