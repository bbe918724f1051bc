package state

import (
	"slices"
	"strings"
)

// Stored is a resource with the revision of the store at which it was last
// written.
type Stored[T any] struct {
	Value    T
	Revision uint64
}

// Snapshot is the whole state at one revision. It never changes; whatever it
// returns is shared and must not be modified.
type Snapshot struct {
	revision uint64
	volumes  *table[string, Stored[Volume]]
	targets  *table[string, Stored[Target]]
	accounts *table[string, Stored[Account]]
	portals  *table[string, Stored[Portal]]
	system   Stored[System]

	exports    *table[string, Stored[Export]]
	nbdPortals *table[string, Stored[NBDPortal]]

	// Indexes, kept with the resources.
	ids      *table[int, string]      // target by ID
	users    *table[string, []LUNRef] // volume → where it is mapped
	portUses *table[uint16, int]      // relative target port id → number of uses
	idFloor  int                      // every target ID below it is taken
}

func emptySnapshot() *Snapshot {
	return &Snapshot{
		volumes: newTable[string, Stored[Volume]](), targets: newTable[string, Stored[Target]](),
		accounts: newTable[string, Stored[Account]](), portals: newTable[string, Stored[Portal]](),
		exports: newTable[string, Stored[Export]](), nbdPortals: newTable[string, Stored[NBDPortal]](),
		ids: newTable[int, string](), users: newTable[string, []LUNRef](), portUses: newTable[uint16, int](),
	}
}

// Revision counts the transactions so far.
func (s *Snapshot) Revision() uint64 { return s.revision }

// Volume finds a volume by name.
func (s *Snapshot) Volume(name string) (Stored[Volume], bool) {
	v, ok := s.volumes.find(name)
	return v, ok
}

// Target finds a target by its iSCSI name.
func (s *Snapshot) Target(name string) (Stored[Target], bool) {
	v, ok := s.targets.find(name)
	return v, ok
}

// TargetByID finds a target by tgt's tid.
func (s *Snapshot) TargetByID(id int) (Stored[Target], bool) { return s.Target(s.ids.get(id)) }

// Account finds a CHAP account with its secret.
func (s *Snapshot) Account(user string) (Stored[Account], bool) {
	v, ok := s.accounts.find(user)
	return v, ok
}

// Portal finds a portal by its canonical address.
func (s *Snapshot) Portal(addr string) (Stored[Portal], bool) {
	v, ok := s.portals.find(addr)
	return v, ok
}

// System is the gateway's own settings.
func (s *Snapshot) System() Stored[System] { return s.system }

// Volumes lists the volumes by name.
func (s *Snapshot) Volumes() []Stored[Volume] { return sorted(s.volumes) }

// Targets lists the targets by ID.
func (s *Snapshot) Targets() []Stored[Target] {
	l := make([]Stored[Target], 0, s.targets.len())
	for _, t := range s.targets.all() {
		l = append(l, t)
	}
	slices.SortFunc(l, func(a, b Stored[Target]) int { return a.Value.ID - b.Value.ID })
	return l
}

// Accounts lists the accounts by user name, with their secrets.
func (s *Snapshot) Accounts() []Stored[Account] { return sorted(s.accounts) }

// Portals lists the portals by address.
func (s *Snapshot) Portals() []Stored[Portal] { return sorted(s.portals) }

// UsersOf lists where a volume is mapped.
func (s *Snapshot) UsersOf(volume string) []LUNRef { return s.users.get(volume) }

func sorted[T any](t *table[string, Stored[T]]) []Stored[T] {
	l := make([]Stored[T], 0, t.len())
	for _, k := range sortedNames(t) {
		l = append(l, t.get(k))
	}
	return l
}

// LUN finds a LUN of the target.
func (t *Target) LUN(number uint64) (LUN, bool) {
	if i, ok := t.findLUN(number); ok {
		return t.LUNs[i], true
	}
	return LUN{}, false
}

func (t *Target) findLUN(number uint64) (int, bool) {
	return slices.BinarySearchFunc(t.LUNs, number, func(l LUN, n uint64) int {
		switch {
		case l.Number < n:
			return -1
		case l.Number > n:
			return 1
		}
		return 0
	})
}

// Equal tells whether two rules are the same.
func (r ACLRule) Equal(o ACLRule) bool {
	return r.All == o.All && r.Address == o.Address && r.Name == o.Name && slices.Equal(r.LUNs, o.LUNs)
}

// same tells whether two rules match the same initiators, whatever LUNs they show.
func (r ACLRule) same(o ACLRule) bool {
	return r.All == o.All && r.Address == o.Address && r.Name == o.Name
}

// String is the rule as tgt prints it.
func (r ACLRule) String() string {
	switch {
	case r.All:
		return "ALL"
	case r.Address != "":
		return r.Address
	}
	return r.Name
}

func lunRefCompare(a, b LUNRef) int {
	if c := strings.Compare(a.Target, b.Target); c != 0 {
		return c
	}
	switch {
	case a.Number < b.Number:
		return -1
	case a.Number > b.Number:
		return 1
	}
	return 0
}
