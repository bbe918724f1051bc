package sheepdog

import (
	"context"
	"fmt"
	"time"

	"blockgate/backing/sheepdog/internal/wire"
)

// poll lets go of the VDI when another gateway has asked for it.
func (o *owner) poll(ctx context.Context) {
	tick := time.NewTicker(o.s.cl.cfg.Poll)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if !o.holds.Load() {
			continue
		}
		vid := o.s.vol.Load().VID
		do := o.s.cl.via(ctx)
		b := make([]byte, 2*recordSize)
		if _, _, err := do(&wire.Request{Op: wire.OpRead, OID: wire.InodeOID(vid), Offset: offMark}, nil, b); err != nil {
			continue
		}
		if m, ok := parseRecord(b); !ok || m.token != o.token {
			if o.s.vol.Load().VID == vid {
				o.lose()
			}
			continue
		}
		if m, ok := parseRecord(b[recordSize:]); ok && m.token != o.token {
			_ = o.yield(ctx, false)
		}
	}
}

// Yield gives the VDI up, after what is under way, so that another gateway can
// have it. A later call on this store asks for it again.
func (s *Store) Yield(ctx context.Context) error { return s.own.yield(ctx, true) }

// TakeOver makes this gateway the owner, as the first call after another one had
// it would. It waits for the owner as Location says.
func (s *Store) TakeOver(ctx context.Context) error {
	if err := s.own.enter(ctx); err != nil {
		return fmt.Errorf("sheepdog %s: take over: %w", s.loc, storeError(err))
	}
	return nil
}

func (o *owner) yield(ctx context.Context, now bool) error {
	if !o.locked {
		return nil
	}
	select {
	case o.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-o.turn }()
	if !o.holds.Load() || !now && o.used.Load() && time.Since(o.since) < o.s.cl.cfg.Hold {
		return nil
	}
	if err := o.s.gate.lock(ctx); err != nil {
		return err
	}
	o.holds.Store(false)
	o.who.Store(nil)
	vid := o.s.vol.Load().VID
	o.s.gate.unlock()
	return o.letGo(ctx, vid)
}

// letGo takes the mark away and releases the lock, in this order: what is written
// after the release may hit the next owner's mark.
func (o *owner) letGo(ctx context.Context, vid uint32) error {
	do := o.s.cl.via(ctx)
	if m, err := readMark(do, vid); err != nil || m.token != o.token {
		return err
	}
	if err := o.s.cl.writeInode(ctx, vid, make([]byte, recordSize), offMark); err != nil {
		return err
	}
	return release(do, vid)
}

// closeTime is how long Close waits for a cluster that does not answer.
const closeTime = 3 * time.Second

// close lets go if that can be done in time, and is false the second time.
func (o *owner) close() bool {
	if o.closing.Swap(true) {
		return false
	}
	if o.stop != nil {
		o.stop()
	}
	if o.locked && o.holds.Swap(false) {
		ctx, cancel := context.WithTimeout(context.Background(), min(closeTime, o.s.cl.cfg.AnswerTimeout))
		defer cancel()
		vid := o.s.vol.Load().VID
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = o.letGo(ctx, vid)
		}()
		select {
		case <-done:
		case <-ctx.Done():
			// It ends with the connections.
			o.s.cl.once.Do(func() { close(o.s.cl.closed) })
			o.s.cl.interrupt()
			<-done
		}
	} else if o.stop != nil {
		o.s.cl.once.Do(func() { close(o.s.cl.closed) })
		o.s.cl.interrupt()
	}
	o.poller.Wait()
	o.unguard()
	return true
}

func (o *owner) unguard() {
	if o.guard != nil {
		o.guard.Close()
		o.guard = nil
	}
}
