package state

import (
	"maps"
	"slices"
)

// builder is a snapshot in the making. Tables are copied at their first change,
// so that a failed transaction leaves nothing behind.
type builder struct {
	*Snapshot
	base   *Snapshot
	owned  map[Kind]bool
	dirty  []Change
	marked map[Change]bool
}

func (s *Snapshot) edit() *builder {
	next := *s
	return &builder{Snapshot: &next, base: s, owned: map[Kind]bool{}, marked: map[Change]bool{}}
}

func (b *builder) own(k Kind) {
	if b.owned[k] {
		return
	}
	b.owned[k] = true
	switch k {
	case KindVolume:
		b.volumes = b.volumes.edit()
	case KindTarget:
		b.targets, b.ids = b.targets.edit(), b.ids.edit()
		b.users, b.portUses = b.users.edit(), b.portUses.edit()
	case KindAccount:
		b.accounts = b.accounts.edit()
	case KindPortal:
		b.portals = b.portals.edit()
	case KindExport:
		b.exports = b.exports.edit()
	case KindNBDPortal:
		b.nbdPortals = b.nbdPortals.edit()
	}
}

// touch notes that a resource differs from the base.
func (b *builder) touch(k Kind, name string) {
	c := Change{Kind: k, Name: name}
	if !b.marked[c] {
		b.marked[c] = true
		b.dirty = append(b.dirty, c)
	}
}

// changes gives the dirty resources the verb that leads from base to the result.
func (b *builder) changes() []Change {
	var l []Change
	for _, c := range b.dirty {
		was, is := b.base.has(c.Kind, c.Name), b.has(c.Kind, c.Name)
		switch {
		case !was && is:
			c.Verb = Create
		case was && !is:
			c.Verb = Delete
		case was && is:
			c.Verb = Update
		default:
			continue
		}
		l = append(l, c)
	}
	return l
}

func (s *Snapshot) has(k Kind, name string) (ok bool) {
	switch k {
	case KindVolume:
		_, ok = s.volumes.find(name)
	case KindTarget:
		_, ok = s.targets.find(name)
	case KindAccount:
		_, ok = s.accounts.find(name)
	case KindPortal:
		_, ok = s.portals.find(name)
	case KindExport:
		_, ok = s.exports.find(name)
	case KindNBDPortal:
		_, ok = s.nbdPortals.find(name)
	case KindSystem:
		ok = true
	}
	return ok
}

func (b *builder) setVolume(v Volume) {
	b.own(KindVolume)
	b.volumes.set(v.Name, Stored[Volume]{Value: v, Revision: b.volumes.get(v.Name).Revision})
	b.touch(KindVolume, v.Name)
}

func (b *builder) setTarget(t Target) {
	b.own(KindTarget)
	old, had := b.targets.find(t.Name)
	if had {
		b.dropIndex(&old.Value)
	}
	b.ids.set(t.ID, t.Name)
	for _, l := range t.LUNs {
		b.use(l.Volume, LUNRef{t.Name, l.Number})
	}
	b.givePorts(&t)
	for _, id := range t.PortIDs {
		b.portUses.set(id, b.portUses.get(id)+1)
	}
	b.targets.set(t.Name, Stored[Target]{Value: t, Revision: old.Revision})
	b.touch(KindTarget, t.Name)
}

func (b *builder) deleteTarget(name string) {
	b.own(KindTarget)
	t := b.targets.get(name).Value
	b.dropIndex(&t)
	b.targets.delete(name)
	b.touch(KindTarget, name)
}

func (b *builder) dropIndex(t *Target) {
	b.ids.delete(t.ID)
	b.idFloor = min(b.idFloor, t.ID)
	for _, l := range t.LUNs {
		ref := LUNRef{t.Name, l.Number}
		refs := slices.DeleteFunc(slices.Clone(b.users.get(l.Volume)), func(r LUNRef) bool { return r == ref })
		if len(refs) == 0 {
			b.users.delete(l.Volume)
		} else {
			b.users.set(l.Volume, refs)
		}
	}
	for _, id := range t.PortIDs {
		if n := b.portUses.get(id); n > 1 {
			b.portUses.set(id, n-1)
		} else {
			b.portUses.delete(id)
		}
	}
}

func (b *builder) use(volume string, ref LUNRef) {
	refs := append(slices.Clone(b.users.get(volume)), ref)
	slices.SortFunc(refs, lunRefCompare)
	b.users.set(volume, refs)
}

// freeID is the lowest target ID that is free.
func (b *builder) freeID() int {
	for b.ids.get(b.idFloor) != "" || b.idFloor < 1 {
		b.idFloor++
	}
	return b.idFloor
}

// givePorts completes the relative target port ids: one for each portal group
// the target is in, group 1 always, unique among all targets as long as there
// are free ones (a volume may be a LUN of several targets, and its persistent
// reservations tell their ports apart by this number), always unique within
// the target. What the target has it keeps.
func (b *builder) givePorts(t *Target) {
	groups := t.PortalGroups
	if len(groups) == 0 {
		groups = []int{1}
		for _, p := range b.portals.all() {
			groups = append(groups, p.Value.Group)
		}
	}
	missing := false
	for _, g := range groups {
		if t.PortIDs[g] == 0 {
			missing = true
		}
	}
	if !missing {
		return
	}
	ids := maps.Clone(t.PortIDs)
	if ids == nil {
		ids = map[int]uint16{}
	}
	slices.Sort(groups)
	for _, g := range slices.Compact(groups) {
		if ids[g] == 0 {
			ids[g] = b.freePort(ids)
		}
	}
	t.PortIDs = ids
}

func (b *builder) freePort(own map[int]uint16) uint16 {
	taken := map[uint16]bool{}
	for _, id := range own {
		taken[id] = true
	}
	// The ids in use are mostly 1…n: begin behind them and wrap once.
	start := min(b.portUses.len(), 65534)
	for i := range 65535 {
		id := uint16((start+i)%65535 + 1)
		if b.portUses.get(id) == 0 && !taken[id] {
			return id
		}
	}
	for id := uint16(1); ; id++ {
		if !taken[id] {
			return id
		}
	}
}
