package scsi

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// AccessState is an asymmetric access state of a target port group, with the
// values of REPORT TARGET PORT GROUPS (SPC-4 §5.15.2.4).
type AccessState uint8

// Asymmetric access states. Logical block dependent access is not offered.
const (
	ActiveOptimized    AccessState = 0x0
	ActiveNonOptimized AccessState = 0x1
	Standby            AccessState = 0x2
	Unavailable        AccessState = 0x3
	Offline            AccessState = 0xe
	Transitioning      AccessState = 0xf
)

// accessStates are all of them, with their names.
var accessStates = [...]struct {
	state AccessState
	name  string
}{
	{ActiveOptimized, "active/optimized"},
	{ActiveNonOptimized, "active/non-optimized"},
	{Standby, "standby"},
	{Unavailable, "unavailable"},
	{Offline, "offline"},
	{Transitioning, "transitioning"},
}

// ParseAccessState is the inverse of AccessState.String.
func ParseAccessState(name string) (AccessState, error) {
	for _, a := range accessStates {
		if a.name == name {
			return a.state, nil
		}
	}
	return 0, fmt.Errorf("scsi: there is no access state %q", name)
}

func (s AccessState) String() string {
	for _, a := range accessStates {
		if a.state == s {
			return a.name
		}
	}
	return fmt.Sprintf("access state %#x", uint8(s))
}

// valid reports whether a group can have the state.
func (s AccessState) valid() bool { return s <= Unavailable || s == Offline || s == Transitioning }

// AccessStatus is the STATUS CODE of a target port group: by what it came to its
// state (SPC-4 §6.37).
type AccessStatus uint8

// Status codes.
const (
	StatusNone     AccessStatus = 0 // nothing has changed it
	StatusExplicit AccessStatus = 1 // SET TARGET PORT GROUPS
	StatusImplicit AccessStatus = 2 // the device server, an administrator, a cluster
)

// PortGroup is a target port group: the target ports by which logical units are
// reached with one asymmetric access state.
type PortGroup struct {
	Tag       uint16
	State     AccessState
	Preferred bool
	Status    AccessStatus
	// Ports are relative target port identifiers, those without a session and
	// those of other gateways too.
	Ports []uint16
}

// Bounds of a PortGroups.
const (
	maxPortGroups = 256
	maxGroupPorts = 255 // the TARGET PORT COUNT field has one byte
)

// PortGroupsConfig is what a PortGroups is made of.
type PortGroupsConfig struct {
	Groups []PortGroup
	// ImplicitOnly refuses SET TARGET PORT GROUPS (TPGS 01b instead of 11b).
	ImplicitOnly bool
	// TransitionTime is the most seconds an implicit transition takes, as told
	// to initiators; 0: not bounded.
	TransitionTime uint8
	// SaveALUA, if not nil, is asked to make a change durable, or to carry it out
	// in a cluster, before it takes effect: by SetState, and by SET TARGET PORT
	// GROUPS, whose command it then fails. groups is all of them as they shall
	// be. It is called by one goroutine at a time and may take its time: until it
	// returns only other changes of states wait, and those no longer than their
	// context allows. It must not call SetState.
	SaveALUA func(ctx context.Context, groups []PortGroup) error
}

// PortGroups holds the asymmetric access states of the target port groups of
// devices or units, which follow it from Device.SetPortGroups or
// Unit.SetPortGroups on. The states may come from an administrator (SetState),
// an initiator (SET TARGET PORT GROUPS) or from outside, as from a cluster
// (Replace). Safe for concurrent use.
type PortGroups struct {
	implicitOnly   bool
	transitionTime uint8
	save           func(context.Context, []PortGroup) error

	groups atomic.Pointer[[]PortGroup] // by tag, never changed once published

	// changing has a token that a change of states holds from before it is saved
	// until it is published, so that what is saved last is what is published
	// last. mu is never held while something is saved.
	changing chan struct{}

	mu        sync.Mutex // before any Device.mu
	followers map[portGroupsFollower]struct{}
}

// portGroupsFollower is told after each change. by is the I_T_L nexus that caused
// it, or nil.
type portGroupsFollower interface{ portGroupsChanged(by *itl) }

// NewPortGroups makes the groups of cfg.
func NewPortGroups(cfg PortGroupsConfig) (*PortGroups, error) {
	g := &PortGroups{
		implicitOnly: cfg.ImplicitOnly, transitionTime: cfg.TransitionTime, save: cfg.SaveALUA,
		changing: make(chan struct{}, 1), followers: make(map[portGroupsFollower]struct{}),
	}
	groups, err := checkGroups(cfg.Groups)
	if err != nil {
		return nil, err
	}
	g.groups.Store(&groups)
	return g, nil
}

// checkGroups gives a sorted copy.
func checkGroups(in []PortGroup) ([]PortGroup, error) {
	if len(in) > maxPortGroups {
		return nil, fmt.Errorf("scsi: more than %d target port groups", maxPortGroups)
	}
	out := slices.Clone(in)
	slices.SortFunc(out, func(a, b PortGroup) int { return int(a.Tag) - int(b.Tag) })
	for i := range out {
		p := &out[i]
		p.Ports = slices.Clone(p.Ports)
		slices.Sort(p.Ports)
		p.Ports = slices.Compact(p.Ports)
		switch {
		case i > 0 && out[i-1].Tag == p.Tag:
			return nil, fmt.Errorf("scsi: target port group %d is there twice", p.Tag)
		case !p.State.valid():
			return nil, fmt.Errorf("scsi: target port group %d: there is no %v", p.Tag, p.State)
		case len(p.Ports) > maxGroupPorts:
			return nil, fmt.Errorf("scsi: target port group %d has more than %d ports", p.Tag, maxGroupPorts)
		}
	}
	return out, nil
}

// List gives the groups by tag. They are the caller's.
func (g *PortGroups) List() []PortGroup {
	out := slices.Clone(*g.groups.Load())
	for i := range out {
		out[i].Ports = slices.Clone(out[i].Ports)
	}
	return out
}

// find gives a group; one that is not known is active/optimized.
func (g *PortGroups) find(tag uint16) PortGroup {
	list := *g.groups.Load()
	if i, ok := slices.BinarySearchFunc(list, tag, byTag); ok {
		return list[i]
	}
	return PortGroup{Tag: tag}
}

func byTag(p PortGroup, tag uint16) int { return int(p.Tag) - int(tag) }

// Replace sets the groups to what somebody else has decided, such as a cluster
// that owns them. SaveALUA is not called. Initiators are told.
func (g *PortGroups) Replace(groups []PortGroup) error {
	next, err := checkGroups(groups)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.publishLocked(next, nil)
	return nil
}

// SetPorts says which target ports there are, by group. Groups that are new begin
// active/optimized; those that lose their ports keep their state, so that a
// portal that comes back finds it.
func (g *PortGroups) SetPorts(ports map[uint16][]uint16) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	next := slices.Clone(*g.groups.Load())
	for i := range next {
		next[i].Ports = nil
	}
	for tag, ids := range ports {
		if i := slices.IndexFunc(next, func(p PortGroup) bool { return p.Tag == tag }); i >= 0 {
			next[i].Ports = ids
		} else {
			next = append(next, PortGroup{Tag: tag, Ports: ids})
		}
	}
	next = slices.DeleteFunc(next, func(p PortGroup) bool { return len(p.Ports) == 0 && p.unchanged() && p.Status == StatusNone })
	next, err := checkGroups(next)
	if err != nil {
		return err
	}
	g.publishLocked(next, nil)
	return nil
}

// SetState moves a group to a state, as an administrator does, once SaveALUA has
// made that durable. A group that is not known is made. ctx ends the wait for
// another change, and is handed to SaveALUA.
func (g *PortGroups) SetState(ctx context.Context, tag uint16, state AccessState, preferred bool) error {
	return g.change(ctx, nil, func(p *PortGroup) {
		if p.State != state {
			p.Status = StatusImplicit
		}
		p.State, p.Preferred = state, preferred
	}, tag)
}

// stateOf is one descriptor of SET TARGET PORT GROUPS.
type stateOf struct {
	tag   uint16
	state AccessState
}

// setExplicit carries out SET TARGET PORT GROUPS: every change or none.
func (g *PortGroups) setExplicit(ctx context.Context, changes []stateOf, by *itl) error {
	tags := make([]uint16, len(changes))
	states := make(map[uint16]AccessState, len(changes))
	for i, c := range changes {
		tags[i], states[c.tag] = c.tag, c.state
	}
	return g.change(ctx, by, func(p *PortGroup) { p.State, p.Status = states[p.Tag], StatusExplicit }, tags...)
}

// change edits the groups with the tags, which are made if they are not known,
// and publishes that after SaveALUA has agreed. The edit is made anew on what is
// there by then: ports may have come and gone meanwhile.
func (g *PortGroups) change(ctx context.Context, by *itl, edit func(*PortGroup), tags ...uint16) error {
	select {
	case g.changing <- struct{}{}:
		defer func() { <-g.changing }()
	case <-ctx.Done():
		return fmt.Errorf("scsi: another change of access states is being saved: %w", ctx.Err())
	}
	edited := func() ([]PortGroup, error) {
		next := slices.Clone(*g.groups.Load())
		for _, tag := range tags {
			i, ok := slices.BinarySearchFunc(next, tag, byTag)
			if !ok {
				next = slices.Insert(next, i, PortGroup{Tag: tag})
			}
			edit(&next[i])
		}
		return checkGroups(next)
	}
	next, err := edited()
	if err != nil {
		return err
	}
	if g.save != nil {
		if err := g.save(ctx, next); err != nil {
			return fmt.Errorf("scsi: the states of the target port groups could not be saved: %w", err)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if next, err = edited(); err != nil {
		return err
	}
	g.publishLocked(next, by)
	return nil
}

// publishLocked makes next visible, and tells the followers if initiators would
// see a difference in more than status codes and ports.
func (g *PortGroups) publishLocked(next []PortGroup, by *itl) {
	old := g.groups.Swap(&next)
	same := func(a, b PortGroup) bool {
		return a.Tag == b.Tag && a.State == b.State && a.Preferred == b.Preferred
	}
	if slices.EqualFunc(withState(*old), withState(next), same) {
		return
	}
	for f := range g.followers {
		f.portGroupsChanged(by)
	}
}

// withState leaves out groups that are as a group nobody has heard of.
func withState(l []PortGroup) []PortGroup {
	return slices.DeleteFunc(slices.Clone(l), PortGroup.unchanged)
}

// unchanged: the group's state is that of one that nobody has heard of.
func (p PortGroup) unchanged() bool { return p.State == ActiveOptimized && !p.Preferred }

// follow and unfollow must not be called with a Device's or a Unit's mutex held.

func (g *PortGroups) follow(f portGroupsFollower) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.followers[f] = struct{}{}
}

func (g *PortGroups) unfollow(f portGroupsFollower) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.followers, f)
}
