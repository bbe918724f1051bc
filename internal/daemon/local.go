package daemon

import (
	"context"
	"fmt"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

// What is here is asked for within the daemon's own process, beside the API.

// TargetByID gives the target with a number, however many there are.
func (d *Daemon) TargetByID(_ context.Context, id int) (v1.Target, error) {
	t, ok := d.st.Snapshot().TargetByID(id)
	if !ok {
		return v1.Target{}, notFound(state.CodeTargetNotFound, "target", fmt.Sprint(id))
	}
	return d.target(t, d.sessionsOf(t.Value.Name)), nil
}

// Settings are the gateway's own, which must not be changed.
func (d *Daemon) Settings(context.Context) state.System { return d.st.Snapshot().System().Value }

// ReleasePortal stops listening on a portal of Config.Portals, by its address or
// the one it is bound to. Sessions that came in there go on; the next start has
// the portal again, since it is not part of the state.
func (d *Daemon) ReleasePortal(_ context.Context, address string) error {
	for _, p := range d.gw.Portals() {
		bound := p.Bound.String()
		if p.Address != address && bound != address {
			continue
		}
		d.mu.RLock()
		given := d.runtime[bound]
		d.mu.RUnlock()
		if !given {
			continue
		}
		if err := d.gw.RemovePortal(bound); err != nil {
			return portalError(address, err)
		}
		d.mu.Lock()
		delete(d.runtime, bound)
		d.mu.Unlock()
		d.log.Info("no longer listening", "portal", bound)
		return nil
	}
	return &state.Error{Class: state.NotFound, Code: state.CodePortalNotFound, Object: fmt.Sprintf("portal %q", address), Reason: "does not exist"}
}
