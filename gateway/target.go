package gateway

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"blockgate/iscsi"
	"blockgate/scsi"
)

// TargetConfig says what a target is. Its LUNs come by MapLUN.
type TargetConfig struct {
	Name  string // iSCSI name
	Alias string
	// Offline refuses logins by "target error"; sessions go on.
	Offline bool
	// ACL: whoever matches none of the rules cannot see the target. Without
	// rules nobody can.
	ACL []Rule
	// Auth is how an initiator proves itself; the zero value asks for nothing.
	Auth iscsi.AuthPolicy
	// Groups are the portal groups it is reached by; empty means all.
	Groups []uint16
	// PortIDs are the relative target port identifiers by portal group; a group
	// that is not in it has its own tag as identifier. Keep them for good: they
	// are part of what persistent reservations are bound to.
	PortIDs map[uint16]uint16
	// Offer is what is negotiated; the zero value is iscsi.DefaultOffer.
	Offer iscsi.Offer
	// Controller puts a storage array controller at LUN 0, as tgt does.
	Controller bool
	// PortGroups are the asymmetric access states that its portal groups begin
	// with; those not named are active/optimized. SaveALUA makes a change of
	// them durable before it takes effect (see scsi.PortGroupsConfig); nil: they
	// are forgotten. Both count when the target is added, and not later.
	PortGroups []scsi.PortGroup
	SaveALUA   func(ctx context.Context, groups []scsi.PortGroup) error
	// Redirect, if set, sends every login there: "address:port".
	Redirect          string
	RedirectPermanent bool
	// RedirectTo, if not nil and Redirect is empty, is asked at each login: see
	// iscsi.Access.RedirectTo.
	RedirectTo func(p iscsi.Peer) (addr string, permanent bool, err error)
}

type target struct {
	name   string
	dev    *scsi.Device
	groups *scsi.PortGroups
	cfg    atomic.Pointer[TargetConfig]
	luns   map[uint64]*volume // under Gateway.mu
}

func (c *TargetConfig) check() error {
	if c.Name == "" || len(c.Name) > 223 {
		return fmt.Errorf("target %q: an iSCSI name has 1 to 223 bytes", c.Name)
	}
	for i := range c.ACL {
		if err := c.ACL[i].check(); err != nil {
			return fmt.Errorf("target %q: %w", c.Name, err)
		}
	}
	if c.Redirect != "" {
		if _, err := redirect(c.Redirect); err != nil {
			return fmt.Errorf("target %q: %w", c.Name, err)
		}
	}
	if c.Offer.HeaderDigests == nil {
		c.Offer = iscsi.DefaultOffer()
	}
	return nil
}

func (c *TargetConfig) inGroup(g uint16) bool {
	return len(c.Groups) == 0 || slices.Contains(c.Groups, g)
}

// AddTarget makes a target without LUNs (but the controller's).
func (g *Gateway) AddTarget(cfg TargetConfig) error {
	if err := cfg.check(); err != nil {
		return err
	}
	t := &target{name: cfg.Name, luns: map[uint64]*volume{}}
	t.dev = scsi.NewDevice(scsi.DeviceConfig{Name: cfg.Name, Logger: g.log})
	t.cfg.Store(&cfg)
	var err error
	if t.groups, err = scsi.NewPortGroups(scsi.PortGroupsConfig{Groups: cfg.PortGroups, SaveALUA: cfg.SaveALUA}); err != nil {
		return fmt.Errorf("target %q: %w", cfg.Name, err)
	}
	t.dev.SetPortGroups(t.groups)
	if err := t.setController(cfg.Controller); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return ErrClosed
	}
	if g.targets[cfg.Name] != nil {
		return fmt.Errorf("target %q: %w", cfg.Name, ErrExists)
	}
	if err := g.listPortsLocked(t); err != nil {
		return err
	}
	g.targets[cfg.Name] = t
	return nil
}

// UpdateTarget changes a target. Sessions go on: rules and parameters count for
// logins from now on, LUN masks when the LUN changes next.
func (g *Gateway) UpdateTarget(cfg TargetConfig) error {
	if err := cfg.check(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.targets[cfg.Name]
	if t == nil {
		return fmt.Errorf("target %q: %w", cfg.Name, ErrNotFound)
	}
	was := t.cfg.Load().Controller
	if cfg.Controller && !was && t.luns[0] != nil {
		return fmt.Errorf("target %q: LUN 0: %w", cfg.Name, ErrInUse)
	}
	if was != cfg.Controller {
		if err := t.setController(cfg.Controller); err != nil {
			return err
		}
	}
	t.cfg.Store(&cfg)
	return g.listPortsLocked(t)
}

func (t *target) setController(on bool) error {
	if !on {
		if t.dev.Units()[0] != nil {
			return t.dev.RemoveUnit(0)
		}
		return nil
	}
	u, err := scsi.NewUnit(scsi.UnitConfig{
		Type: scsi.TypeStorageController, Vendor: "IET", Product: "Controller", Revision: "0001",
	})
	if err != nil {
		return fmt.Errorf("target %q: controller: %w", t.name, err)
	}
	return t.dev.SetUnit(0, u)
}

// RemoveTarget ends the target's sessions and forgets it; its volumes stay. It
// does not wait for commands inside stores.
func (g *Gateway) RemoveTarget(_ context.Context, name string) error {
	g.mu.Lock()
	t := g.targets[name]
	if t == nil {
		g.mu.Unlock()
		return fmt.Errorf("target %q: %w", name, ErrNotFound)
	}
	delete(g.targets, name)
	for n, v := range t.luns {
		v.unmap(t, n)
	}
	g.mu.Unlock()
	g.srv.CloseSessions(name)
	return nil
}

// MapLUN makes a volume a LUN of a target; initiators with a session are told.
func (g *Gateway) MapLUN(name string, lun uint64, volumeName string) error {
	if err := g.mapLUN(name, lun, volumeName); err != nil {
		return err
	}
	g.announceLUNs(name)
	return nil
}

func (g *Gateway) mapLUN(name string, lun uint64, volumeName string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	t, v := g.targets[name], g.volumes[volumeName]
	switch {
	case t == nil:
		return fmt.Errorf("target %q: %w", name, ErrNotFound)
	case v == nil || v.unit == nil:
		return fmt.Errorf("volume %q: %w", volumeName, ErrNotFound)
	case t.luns[lun] != nil || lun == 0 && t.cfg.Load().Controller:
		return fmt.Errorf("target %q: LUN %d: %w", name, lun, ErrExists)
	}
	if err := t.dev.SetUnit(lun, v.unit); err != nil {
		return fmt.Errorf("target %q: %w", name, err)
	}
	t.luns[lun] = v
	v.maps = append(v.maps, mapping{t, lun})
	return nil
}

// UnmapLUN takes a LUN away; the volume stays, and so do the commands that are
// running: they end by themselves. Initiators with a session are told.
func (g *Gateway) UnmapLUN(name string, lun uint64) error {
	if err := g.unmapLUN(name, lun); err != nil {
		return err
	}
	g.announceLUNs(name)
	return nil
}

func (g *Gateway) unmapLUN(name string, lun uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.targets[name]
	if t == nil {
		return fmt.Errorf("target %q: %w", name, ErrNotFound)
	}
	v := t.luns[lun]
	if v == nil {
		return fmt.Errorf("target %q: LUN %d: %w", name, lun, ErrNotFound)
	}
	delete(t.luns, lun)
	v.unmap(t, lun)
	return t.dev.RemoveUnit(lun)
}

func (v *volume) unmap(t *target, lun uint64) {
	v.maps = slices.DeleteFunc(v.maps, func(m mapping) bool { return m == mapping{t, lun} })
}
