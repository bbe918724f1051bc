package scsi

import "blockgate/scsi/sense"

// How a unit follows the asymmetric access state of the port group it is asked
// through: each I_T_L nexus holds the state, which Admit looks at.

// SetPortGroups makes the device's units, but for those with groups of their own,
// follow g; nil lets every group be active/optimized again. A change of state
// that comes with it is told to the initiators.
func (d *Device) SetPortGroups(g *PortGroups) {
	if old := d.groups.Swap(g); old != nil {
		old.unfollow(d)
	}
	if g != nil {
		g.follow(d)
	}
	d.portGroupsChanged(nil)
}

// PortGroups is what SetPortGroups has set.
func (d *Device) PortGroups() *PortGroups { return d.groups.Load() }

// SetPortGroups gives the unit port groups of its own in place of its devices',
// for clusters in which each unit has an owner; nil lets it follow the devices.
func (u *Unit) SetPortGroups(g *PortGroups) {
	if old := u.groups.Swap(g); old != nil {
		old.unfollow(u)
	}
	if g != nil {
		g.follow(u)
	}
	u.portGroupsChanged(nil)
}

func (d *Device) portGroupsChanged(by *itl) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n := range d.nexuses {
		n.luns.Load().all(func(i *itl) {
			if i.unit.groups.Load() == nil {
				i.unit.accessChanged(i, by)
			}
		})
	}
}

func (u *Unit) portGroupsChanged(by *itl) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range u.itls {
		u.accessChangedLocked(i, by)
	}
}

func (u *Unit) accessChanged(i, by *itl) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.accessChangedLocked(i, by)
}

// accessChangedLocked takes over the state of the group and tells the initiator,
// unless it is the one that asked for it (SPC-4 §5.15.2.7). All nexuses are told,
// whatever group they came in by.
func (u *Unit) accessChangedLocked(i, by *itl) {
	u.takeAccessLocked(i)
	if i != by && u.typeBit&withMedium != 0 {
		i.attn.raise(attnALUAState)
	}
}

// takeAccessLocked reads the state of the nexus's group.
func (u *Unit) takeAccessLocked(i *itl) {
	g := i.portGroups()
	state := ActiveOptimized
	if g != nil && u.typeBit&withMedium != 0 {
		state = g.find(i.nexus.cfg.Port.Group).State
	}
	i.access.Store(uint32(state))
	// REPORT SUPPORTED OPERATION CODES speaks for the unit. Units that are in
	// several devices with different policies are beyond what it can tell.
	u.setFlag(unitExplicitALUA, g != nil && !g.implicitOnly)
}

// portGroups are the groups that count for the nexus; nil if there are none.
func (i *itl) portGroups() *PortGroups {
	if g := i.unit.groups.Load(); g != nil {
		return g
	}
	return i.nexus.dev.groups.Load()
}

// accessState is the state of the group through which the nexus came.
func (i *itl) accessState() AccessState { return AccessState(i.access.Load()) }

// runsIn reports whether the command is carried out in a state other than the
// active ones (SPC-4 §5.15.2.4 to §5.15.2.6).
func (c *Command) runsIn(s AccessState) bool {
	switch s {
	case Standby:
		return c.ALUA&InStandby != 0
	case Unavailable:
		return c.ALUA&InUnavailable != 0
	case Offline:
		return c.ALUA&InOffline != 0
	case Transitioning:
		return c.ALUA&InTransition != 0
	}
	return true
}

// sense says why a command does not run in the state.
func (s AccessState) sense() sense.Sense {
	switch s {
	case Standby:
		return sense.NotReadyStandby()
	case Unavailable:
		return sense.NotReadyUnavailable()
	case Offline:
		return sense.NotReadyOffline()
	}
	return sense.NotReadyTransition()
}
