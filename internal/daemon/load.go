package daemon

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"blockgate/internal/state"
)

// loaders is how many stores are opened at the same time at the start: enough
// that a few slow ones do not hold up the rest.
const loaders = 32

// startPatience is how long the start waits for one store, and startLimit for all
// together: what answers later is opened while the rest is served already.
const (
	startPatience = 5 * time.Second
	startLimit    = 30 * time.Second
)

// load starts what the state says. What cannot start is noted as failed.
func (d *Daemon) load(ctx context.Context) {
	s := d.st.Snapshot()
	sys := s.System().Value
	d.gw.SetOffline(sys.Offline || sys.Stopped())
	d.gw.SetDiscoveryAuth(discoveryPolicy(s))

	limited, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	work := make(chan state.Volume)
	var wg sync.WaitGroup
	for range loaders {
		wg.Go(func() {
			for v := range work {
				ctx, cancel := context.WithTimeout(limited, startPatience)
				e := d.startVolume(ctx, v, false)
				cancel()
				if e != nil {
					d.log.Error("volume failed", "volume", v.Name, "err", e.Reason, "code", e.Code)
					d.pend(v, e)
				}
			}
		})
	}
	for _, v := range s.Volumes() {
		work <- v.Value
	}
	close(work)
	wg.Wait()

	for _, t := range s.Targets() {
		if err := d.gw.AddTarget(d.addTargetConfig(ctx, s, t.Value)); err != nil {
			d.log.Error("target failed", "target", t.Value.Name, "err", err)
			continue
		}
		for _, l := range t.Value.LUNs {
			if err := d.mapLUN(t.Value.Name, l); err != nil {
				d.log.Error("LUN failed", "target", t.Value.Name, "lun", l.Number, "err", err)
			}
		}
	}
	for _, p := range s.Portals() {
		if err := d.startPortal(ctx, p.Value); err != nil {
			d.log.Error("portal failed", "portal", p.Value.Address, "err", err.Reason, "code", err.Code)
			continue
		}
		d.log.Info("listening", "portal", p.Value.Address)
	}
	d.loadNBD(ctx)
}

// startVolume opens a volume and keeps account of whether it runs.
func (d *Daemon) startVolume(ctx context.Context, v state.Volume, create bool) *state.Error {
	cfg, err := d.volumeConfig(v, create)
	if err == nil {
		err = d.gw.AddVolume(ctx, cfg)
	}
	if err == nil && !create {
		d.checkSize(ctx, v)
	}
	var e *state.Error
	if err != nil {
		e = volumeError(v, err)
	}
	d.note(d.volumes, v.Name, e)
	return e
}

// checkSize looks at a store that is smaller than the state says. Memory begins
// again with the size in its name and is grown; of anything else something was
// cut off while we were away, which nobody may paper over with zeroes.
func (d *Daemon) checkSize(ctx context.Context, v state.Volume) {
	i, err := d.gw.Volume(v.Name)
	if err != nil || i.Size == 0 || i.Size >= v.Size {
		return
	}
	if i.Store.Engine == "ram" {
		if err := d.gw.ResizeVolume(ctx, v.Name, v.Size); err == nil {
			return
		}
	}
	d.log.Warn("volume is smaller than it was", "volume", v.Name, "bytes", i.Size, "was", v.Size)
}

func (d *Daemon) startPortal(ctx context.Context, p state.Portal) *state.Error {
	var e *state.Error
	if _, err := d.gw.AddPortal(ctx, portalConfig(p)); err != nil {
		e = portalError(p.Address, err)
		if ours := d.samePort(p.Address); ours != "" && errors.Is(err, syscall.EADDRINUSE) {
			e.Reason, e.Hint = "portal "+ours+" has that port already", "blockgate portal remove "+ours+", or choose another port"
		}
	}
	d.note(d.portals, p.Address, e)
	return e
}

// samePort is a portal of ours that keeps addr from being listened on: one of
// the two stands for all addresses.
func (d *Daemon) samePort(addr string) string {
	want, err := netip.ParseAddrPort(addr)
	if err != nil {
		return ""
	}
	for _, p := range d.gw.Portals() {
		has := p.Bound
		if has.Port() == want.Port() && (has.Addr().IsUnspecified() || want.Addr().IsUnspecified()) {
			return has.String()
		}
	}
	return ""
}

// note keeps or clears why an object does not run.
func (d *Daemon) note(m map[string]*state.Error, name string, e *state.Error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e == nil {
		delete(m, name)
		return
	}
	m[name] = e
	d.wakeRetries()
}

func (d *Daemon) failure(m map[string]*state.Error, name string) *state.Error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return m[name]
}

// mapLUN maps a volume, also one that is pending. One that the gateway does not
// have is mapped when it runs.
func (d *Daemon) mapLUN(target string, l state.LUN) error {
	if d.failure(d.volumes, l.Volume) != nil && !d.known(l.Volume) {
		return nil
	}
	return d.gw.MapLUN(target, l.Number, l.Volume)
}

// known tells whether the gateway has the volume, be it pending.
func (d *Daemon) known(name string) bool {
	_, err := d.gw.Volume(name)
	return err == nil
}

// restart starts a failed volume and maps it wherever the state says.
func (d *Daemon) restart(ctx context.Context, s *state.Snapshot, v state.Volume) *state.Error {
	if e := d.startVolume(ctx, v, false); e != nil {
		return e
	}
	for _, ref := range s.UsersOf(v.Name) {
		if err := d.gw.MapLUN(ref.Target, ref.Number, v.Name); err != nil {
			d.log.Error("LUN failed", "target", ref.Target, "lun", ref.Number, "err", err)
		}
	}
	d.addExports(s, v.Name)
	return nil
}
