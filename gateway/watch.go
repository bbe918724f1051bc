package gateway

import (
	"context"
	"sync/atomic"
	"time"

	"blockgate/backing"
	"blockgate/scsi"
)

// engineLimit is how long an engine may let a call wait before it fails by itself
// (backing.OpenOptions.Stall), so that it is the volume's policy that decides and
// not what an engine thinks of as long.
func engineLimit(p scsi.StallPolicy) time.Duration {
	if p.Action == scsi.StallFail {
		return p.After
	}
	return -1
}

// follow takes over what the store notices by itself: its health goes to the unit,
// and its size becomes the unit's, of which initiators are told. stop ends that;
// what is under way then is among v.calls.
func (g *Gateway) follow(v *volume) (stop func()) {
	health := v.follower(v.unit.StoreHealthChanged)
	size := v.follower(func() { g.takeSize(v) })
	stop = backing.NotifyOf(v.store, func(c backing.Change) {
		if c&backing.HealthChanged != 0 {
			health()
		}
		if c&backing.SizeChanged != 0 {
			size()
		}
	})
	v.unit.StoreHealthChanged() // it may have been like that when it was opened
	return stop
}

// follower gives a function that has f run, on a goroutine of its own, after each
// call; calls during a run make one more.
func (v *volume) follower(f func()) func() {
	var wanted atomic.Int64
	calls := v.calls
	return func() {
		if wanted.Add(1) > 1 {
			return
		}
		calls.Add(1)
		go func() {
			defer calls.Done()
			for {
				n := wanted.Load()
				f()
				if wanted.Add(-n) == 0 {
					return
				}
			}
		}()
	}
}

// takeSize takes over the size of a store that changed by itself.
func (g *Gateway) takeSize(v *volume) {
	ctx, cancel := context.WithTimeout(context.Background(), g.cfg.OpenTimeout)
	defer cancel()
	if r, ok := backing.As[backing.Refresher](v.store); ok {
		if _, err := r.Refresh(ctx); err != nil {
			g.log.Warn("gateway: the new size of a store cannot be had", "volume", v.cfg.Name, "err", err)
			return
		}
	}
	before := v.unit.Blocks()
	v.unit.Resized()
	if now := v.unit.Blocks(); now != before {
		g.log.Info("gateway: a store has changed its size", "volume", v.cfg.Name, "bytes", v.store.Size())
		g.announceSize(v.cfg.Name)
	}
}
