package gateway

import (
	"context"
	"errors"
	"fmt"

	"blockgate/backing"
)

// errChanged: somebody else changed the volume at the same time.
var errChanged = errors.New("was changed meanwhile")

// ReopenVolume closes the store of a volume and opens it again, which is what one
// that has failed needs (scsi.HealthFailed). Meanwhile, and when that does not
// work, the volume is pending (see AddPending): its LUNs are there and are not ready.
// Commands under way are waited for as when a volume is removed; a *LingerError
// says that the store still hangs, and OpenPending will not work before it lets go
// if it is locked. To initiators it is as if the unit had been reset;
// registrations that are not kept over a restart are gone.
func (g *Gateway) ReopenVolume(ctx context.Context, name string) error {
	v, err := g.settled(ctx, name)
	if err != nil {
		g.mu.Unlock()
		return err
	}
	old := *v
	g.mu.Unlock()
	switch {
	case old.pending():
		return g.OpenPending(ctx, name)
	case old.cfg.Store != nil:
		return fmt.Errorf("volume %q: its store was given: %w", name, backing.ErrNotSupported)
	}
	// First of all, so that the old store is ours alone to close.
	if err := g.setAside(v, &old, old.cfg); err != nil {
		return err
	}
	if err := g.retireWithin(ctx, &old); err != nil {
		return err
	}
	return g.OpenPending(ctx, name)
}

// setAside makes v pending, if it is still what it was as old.
func (g *Gateway) setAside(v, old *volume, cfg VolumeConfig) error {
	wait := &volume{cfg: cfg}
	wait.cfg.Create = false
	if err := g.standIn(wait); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.volumes[cfg.Name] != v || v.unit != old.unit {
		return fmt.Errorf("volume %q %w", cfg.Name, errChanged)
	}
	g.swapLocked(v, wait)
	return nil
}
