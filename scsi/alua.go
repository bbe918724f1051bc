package scsi

import (
	"encoding/binary"
	"slices"

	"blockgate/scsi/sense"
)

// opMaintenanceOut is the opcode of SET TARGET PORT GROUPS.
const opMaintenanceOut = 0xa4

// maxStateList bounds the parameter list of SET TARGET PORT GROUPS, in bytes.
const maxStateList = 4 + 4*maxPortGroups

// Bits of a target port group descriptor (SPC-4 table 297).
const (
	groupPreferred = 0x80

	supportsActiveOptimized = 0x01
	// supportsAll is T_SUP, O_SUP, U_SUP, S_SUP, AN_SUP and AO_SUP.
	supportsAll = 0xcf
)

// TPGS values in the standard INQUIRY data, byte 5.
const (
	tpgsImplicit = 0x10
	tpgsBoth     = 0x30
)

func aluaCommands() []Command {
	return []Command{{
		Name: "REPORT TARGET PORT GROUPS", Op: opMaintenanceIn, SA: 0x0a,
		Usage: []byte{opMaintenanceIn, 0xea, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0},
		Types: withMedium, Dir: DirIn, Reserve: ResAllowedPR,
		ALUA: InStandby | InUnavailable | InTransition | InOffline, Run: reportTargetPortGroups,
	}, {
		Name: "SET TARGET PORT GROUPS", Op: opMaintenanceOut, SA: 0x0a,
		Usage: []byte{opMaintenanceOut, 0x0a, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0},
		Types: withMedium, Dir: DirOut, Reserve: ResWrite, ALUA: InStandby | InUnavailable, Waits: true,
		Supported: func(u *Unit) bool { return u.flags.Load()&unitExplicitALUA != 0 },
		OutLen:    setTargetPortGroupsLen, Run: setTargetPortGroups,
	}}
}

// tpgs is the TPGS field for a nexus.
func (i *itl) tpgs() byte {
	if i.unit.typeBit&withMedium == 0 {
		return 0
	}
	if g := i.portGroups(); g != nil && !g.implicitOnly {
		return tpgsBoth
	}
	return tpgsImplicit
}

// reportTargetPortGroups is REPORT TARGET PORT GROUPS (SPC-4 §6.37). It lists the
// ports that are known and those by which the unit is reached now.
func reportTargetPortGroups(t *Task) {
	b := make([]byte, 4)
	groups := t.itl.portGroups()
	switch t.CDB[1] >> 5 {
	case 0:
	case 1: // extended header
		b = append(b, 0x10, 0, 0, 0)
		if groups != nil {
			b[5] = groups.transitionTime
		}
	default:
		t.Fail(sense.InvalidFieldInCDB(1, 7))
		return
	}
	for _, p := range t.itl.reachedBy() {
		state, supported := byte(p.State), byte(supportsActiveOptimized)
		if p.Preferred {
			state |= groupPreferred
		}
		if groups != nil {
			supported = supportsAll
		}
		b = append(b, state, supported, byte(p.Tag>>8), byte(p.Tag), 0, byte(p.Status), 0, byte(len(p.Ports)))
		for _, id := range p.Ports {
			b = append(b, 0, 0, byte(id>>8), byte(id))
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	t.Respond(b, int64(binary.BigEndian.Uint32(t.CDB[6:])))
}

// reachedBy lists the groups of the unit that have ports: the configured ones and
// those of the sessions there are.
func (i *itl) reachedBy() []PortGroup {
	var list []PortGroup
	g := i.portGroups()
	if g != nil {
		list = g.List()
	}
	u := i.unit
	u.mu.Lock()
	defer u.mu.Unlock()
	for o := range u.itls {
		p := o.nexus.cfg.Port
		if o.portGroups() != g {
			continue // another device's, whose tags are its own
		}
		at, ok := slices.BinarySearchFunc(list, p.Group, byTag)
		if !ok {
			list = slices.Insert(list, at, PortGroup{Tag: p.Group})
		}
		ids := &list[at].Ports
		if k, ok := slices.BinarySearch(*ids, p.RelID); !ok && len(*ids) < maxGroupPorts {
			*ids = slices.Insert(*ids, k, p.RelID)
		}
	}
	return slices.DeleteFunc(list, func(p PortGroup) bool { return len(p.Ports) == 0 })
}

func setTargetPortGroupsLen(t *Task) (int64, *sense.Sense) {
	n := int64(binary.BigEndian.Uint32(t.CDB[6:]))
	if n > maxStateList {
		s := sense.InvalidFieldInCDB(6, -1)
		return 0, &s
	}
	return n, nil
}

// setTargetPortGroups is SET TARGET PORT GROUPS (SPC-4 §6.45). The states take
// effect, durably if they are kept, before the status.
func setTargetPortGroups(t *Task) {
	g := t.itl.portGroups()
	switch {
	case g == nil || g.implicitOnly:
		t.Fail(sense.InvalidOpcode())
		return
	case t.OutLen == 0:
		return
	case int64(len(t.Out)) < t.OutLen:
		t.Fail(sense.ParameterListLength())
		return
	}
	changes, s := parseStateList(t.Out, t.itl.reachedBy())
	switch {
	case s != nil:
		t.Fail(*s)
	case len(changes) == 0:
	default:
		if err := g.setExplicit(t.Context(), changes, t.itl); err != nil {
			t.unit.warn("SET TARGET PORT GROUPS failed", "unit", t.unit.name(), "err", err)
			t.Fail(sense.SetTargetPortGroupsFailed())
		}
	}
}

// parseStateList reads the parameter list of SET TARGET PORT GROUPS. Offline and
// transitioning cannot be asked for, groups must exist, each may be named once.
func parseStateList(p []byte, groups []PortGroup) ([]stateOf, *sense.Sense) {
	if len(p) < 4 || len(p)%4 != 0 {
		s := sense.ParameterListLength()
		return nil, &s
	}
	var changes []stateOf
	for at := 4; at < len(p); at += 4 {
		c := stateOf{tag: binary.BigEndian.Uint16(p[at+2:]), state: AccessState(p[at] & 0x0f)}
		bad := -1
		switch _, known := slices.BinarySearchFunc(groups, c.tag, byTag); {
		case c.state > Unavailable:
			bad = at
		case !known, slices.ContainsFunc(changes, func(o stateOf) bool { return o.tag == c.tag }):
			bad = at + 2
		}
		if bad >= 0 {
			s := sense.InvalidFieldInParameterList(bad, -1)
			return nil, &s
		}
		changes = append(changes, c)
	}
	return changes, nil
}
