package gateway

import (
	"context"
	"fmt"
	"slices"

	"blockgate/scsi"
)

// A portal group is a target port group (SPC-4 §5.15): the paths through it have
// one asymmetric access state for all LUNs of a target. Its tag is the same in
// both worlds.

// PortGroups lists the target port groups of a target, by tag, with their
// asymmetric access states and relative target port identifiers. Groups without
// a portal are not listed.
func (g *Gateway) PortGroups(name string) ([]scsi.PortGroup, error) {
	g.mu.RLock()
	t := g.targets[name]
	g.mu.RUnlock()
	if t == nil {
		return nil, fmt.Errorf("target %q: %w", name, ErrNotFound)
	}
	return t.portGroups(), nil
}

func (t *target) portGroups() []scsi.PortGroup {
	return slices.DeleteFunc(t.groups.List(), func(p scsi.PortGroup) bool { return len(p.Ports) == 0 })
}

// SetPortGroup moves a target port group of a target to a state. Initiators with
// a session are told. It returns when that is durable (see TargetConfig.SaveALUA).
func (g *Gateway) SetPortGroup(ctx context.Context, name string, tag uint16, state scsi.AccessState, preferred bool) error {
	g.mu.RLock()
	t := g.targets[name]
	g.mu.RUnlock()
	if t == nil {
		return fmt.Errorf("target %q: %w", name, ErrNotFound)
	}
	if !slices.ContainsFunc(t.portGroups(), func(p scsi.PortGroup) bool { return p.Tag == tag }) {
		return fmt.Errorf("target %q: portal group %d: %w", name, tag, ErrNotFound)
	}
	if err := t.groups.SetState(ctx, tag, state, preferred); err != nil {
		return fmt.Errorf("target %q: portal group %d: %w", name, tag, err)
	}
	return nil
}

// port is the relative target port identifier of the target's port in a group.
func (c *TargetConfig) port(group uint16) uint16 {
	if id := c.PortIDs[group]; id != 0 {
		return id
	}
	return group
}

// listPortsLocked tells the target's units which ports there are, so that
// initiators find them by REPORT TARGET PORT GROUPS although nobody has logged
// in by them.
func (g *Gateway) listPortsLocked(t *target) error {
	c := t.cfg.Load()
	ports := map[uint16][]uint16{}
	for _, p := range g.portals {
		if c.inGroup(p.cfg.Group) {
			ports[p.cfg.Group] = []uint16{c.port(p.cfg.Group)}
		}
	}
	if err := t.groups.SetPorts(ports); err != nil {
		return fmt.Errorf("target %q: %w", t.name, err)
	}
	return nil
}

func (g *Gateway) listAllPortsLocked() error {
	for _, t := range g.targets {
		if err := g.listPortsLocked(t); err != nil {
			return err
		}
	}
	return nil
}
