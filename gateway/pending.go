package gateway

import (
	"context"
	"fmt"
	"sync"

	"blockgate/scsi"
)

// opening is the one attempt to open the store of a pending volume.
type opening struct {
	done   chan struct{} // closed at its end
	cancel context.CancelFunc
}

// pendingStore stands in for the store of a pending volume.
type pendingStore struct{ noMedium }

func (v *volume) pending() bool {
	_, is := v.store.(pendingStore)
	return is
}

// AddPending makes a volume whose store cannot be opened yet. Its LUNs are there
// with their identity and are not ready (see scsi.UnitConfig.Pending), until
// OpenPending or UpdateVolume opens the store. Initiators that had the unit before
// wait for it, where they would take it for lost if the LUN were missing.
func (g *Gateway) AddPending(cfg VolumeConfig) error {
	identify(&cfg.Unit)
	v := &volume{cfg: cfg}
	if err := g.standIn(v); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed:
		return ErrClosed
	case g.volumes[cfg.Name] != nil:
		return fmt.Errorf("volume %q: %w", cfg.Name, ErrExists)
	}
	g.volumes[cfg.Name] = v
	return nil
}

// standIn gives the volume a store and unit that say that they are still to come.
func (g *Gateway) standIn(v *volume) error {
	bs := v.cfg.Unit.BlockSize
	if bs == 0 {
		bs = scsi.DefaultBlockSize(v.cfg.Unit.Type)
	}
	store := pendingStore{noMedium{size: int64(bs)}}
	unit, err := g.newUnit(v.cfg, store)
	if err == nil {
		v.store, v.unit, v.calls = store, unit, new(sync.WaitGroup)
	}
	return err
}

// OpenPending opens the store of a pending volume, within OpenTimeout, and puts it
// under the volume's LUNs; initiators are told. If it fails the volume stays
// pending. It is ErrNotFound if the volume is not there, or was removed meanwhile,
// and nil if it is not pending (any more). Of two calls at once one waits for the
// other.
func (g *Gateway) OpenPending(ctx context.Context, name string) error {
	v, err := g.settled(ctx, name)
	if err != nil || !v.pending() {
		g.mu.Unlock()
		return err
	}
	was, next := v.unit, &volume{cfg: v.cfg}
	ctx, o := v.beginOpening(ctx)
	g.mu.Unlock()

	err = g.start(ctx, next)
	g.mu.Lock()
	gone := g.volumes[name] != v
	if err == nil && !gone {
		g.swapLocked(v, next)
	}
	v.opening = nil
	g.mu.Unlock()
	o.end()
	ctx = context.WithoutCancel(ctx)
	switch {
	case gone:
		if err == nil {
			// Nobody is waiting for the store; should it hang the log says so.
			_ = g.retireWithin(ctx, next)
		}
		return fmt.Errorf("volume %q: %w", name, ErrNotFound)
	case err != nil:
		return err
	}
	g.announceUnit(name)
	return was.Close(ctx) // which refuses everything, so nothing is inside
}

// beginOpening says that somebody opens the store of a pending volume. Gateway.mu
// is held, as when it ends.
func (v *volume) beginOpening(ctx context.Context) (context.Context, *opening) {
	ctx, cancel := context.WithCancel(ctx)
	v.opening = &opening{done: make(chan struct{}), cancel: cancel}
	return ctx, v.opening
}

func (o *opening) end() {
	o.cancel()
	close(o.done)
}

// settled waits until nobody opens the store of the volume. It returns with
// Gateway.mu held, also when it fails.
func (g *Gateway) settled(ctx context.Context, name string) (*volume, error) {
	for {
		g.mu.Lock()
		v := g.volumes[name]
		if v == nil || v.unit == nil {
			return nil, fmt.Errorf("volume %q: %w", name, ErrNotFound)
		}
		o := v.opening
		if o == nil {
			return v, nil
		}
		g.mu.Unlock()
		select {
		case <-o.done:
		case <-ctx.Done():
			g.mu.Lock()
			return nil, context.Cause(ctx)
		}
	}
}
