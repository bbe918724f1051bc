package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// ErrCompare is returned by Backend.Txn when a compared key has another
// revision than expected.
var ErrCompare = errors.New("the state has changed meanwhile")

// Item is one key of a backend with its value and the revision at which it was
// last written.
type Item struct {
	Key      string
	Value    []byte
	Revision uint64
}

// Compare is a condition of a transaction: the key must have been last written
// at Revision; 0: it must not exist.
type Compare struct {
	Key      string
	Revision uint64
}

// Txn is a transaction: if every comparison holds, all writes are done as one.
type Txn struct {
	If     []Compare
	Put    []Item // Revision is not looked at
	Delete []string
}

// Event tells of one key that a committed transaction wrote.
type Event struct {
	Item
	Deleted bool
}

// Backend keeps encoded resources: one node's file, or a cluster's store. Keys
// are "kind/name". All methods are safe for concurrent use.
type Backend interface {
	// Get returns one item; ok is false if there is none.
	Get(ctx context.Context, key string) (it Item, ok bool, err error)
	// List returns the items whose keys begin with prefix, by key, and the
	// backend's revision at which that was the truth.
	List(ctx context.Context, prefix string) ([]Item, uint64, error)
	// Txn commits and returns the new revision, which all written items have.
	// When it returns without an error the writes are durable. ErrCompare
	// (wrapped) means that nothing was written.
	Txn(ctx context.Context, t Txn) (uint64, error)
	// Watch sends what is committed from now on until ctx ends, then closes the
	// channel. A receiver that falls behind loses the watch: the channel is
	// closed early, and it has to list and watch anew.
	Watch(ctx context.Context) <-chan []Event
	// Close ends the watches and frees the store.
	Close() error
}

func key(k Kind, name string) string { return string(k) + "/" + name }

// decode builds a snapshot from all items.
func decode(items []Item, revision uint64) (*Snapshot, error) {
	b := emptySnapshot().edit()
	for _, it := range items {
		kind, name, _ := strings.Cut(it.Key, "/")
		var err error
		switch Kind(kind) {
		case KindVolume:
			err = load(b.volumes, name, it)
		case KindTarget:
			var t Target
			if err = json.Unmarshal(it.Value, &t); err == nil {
				b.targets.set(name, Stored[Target]{t, it.Revision})
				b.ids.set(t.ID, name)
				for _, l := range t.LUNs {
					b.users.set(l.Volume, append(b.users.get(l.Volume), LUNRef{name, l.Number}))
				}
				for _, id := range t.PortIDs {
					b.portUses.set(id, b.portUses.get(id)+1)
				}
			}
		case KindAccount:
			err = load(b.accounts, name, it)
		case KindPortal:
			err = load(b.portals, name, it)
		case KindExport:
			err = load(b.exports, name, it)
		case KindNBDPortal:
			err = load(b.nbdPortals, name, it)
		case KindSystem:
			b.system.Revision = it.Revision
			err = json.Unmarshal(it.Value, &b.system.Value)
		}
		if err != nil {
			return nil, &Error{Class: Internal, Code: CodeStateCorrupt, Object: fmt.Sprintf("state key %q", it.Key),
				Reason: "cannot be read: " + err.Error(), Hint: "restore the state file from a backup", Err: err}
		}
	}
	b.revision = revision
	return b.Snapshot, nil
}

func load[T any](m *table[string, Stored[T]], name string, it Item) error {
	var v T
	if err := json.Unmarshal(it.Value, &v); err != nil {
		return err
	}
	m.set(name, Stored[T]{v, it.Revision})
	return nil
}

// encode makes the backend transaction that turns the plan's old state into
// its new one.
func (p *Plan) encode() (Txn, error) {
	var t Txn
	for _, c := range p.Changes {
		k := key(c.Kind, c.Name)
		_, rev := p.Old.resource(c.Kind, c.Name)
		t.If = append(t.If, Compare{k, rev})
		if c.Verb == Delete {
			t.Delete = append(t.Delete, k)
			for _, r := range records[c.Kind] {
				t.Delete = append(t.Delete, key(r, c.Name))
			}
			continue
		}
		v, _ := p.New.resource(c.Kind, c.Name)
		raw, err := json.Marshal(v)
		if err != nil {
			return Txn{}, fmt.Errorf("encode %s: %w", k, err)
		}
		t.Put = append(t.Put, Item{Key: k, Value: raw})
	}
	return t, nil
}

// invert makes the transaction that undoes the plan after its commit at rev.
func (p *Plan) invert(rev uint64) (Txn, error) {
	var t Txn
	for _, c := range p.Changes {
		k := key(c.Kind, c.Name)
		if c.Verb == Delete {
			t.If = append(t.If, Compare{k, 0})
		} else {
			t.If = append(t.If, Compare{k, rev})
		}
		v, old := p.Old.resource(c.Kind, c.Name)
		if c.Verb == Create || c.Kind == KindSystem && old == 0 {
			t.Delete = append(t.Delete, k)
			continue
		}
		raw, err := json.Marshal(v)
		if err != nil {
			return Txn{}, fmt.Errorf("encode %s: %w", k, err)
		}
		t.Put = append(t.Put, Item{Key: k, Value: raw})
	}
	return t, nil
}

func (s *Snapshot) resource(k Kind, name string) (any, uint64) {
	switch k {
	case KindVolume:
		return stored(s.volumes, name)
	case KindTarget:
		return stored(s.targets, name)
	case KindAccount:
		return stored(s.accounts, name)
	case KindPortal:
		return stored(s.portals, name)
	case KindExport:
		return stored(s.exports, name)
	case KindNBDPortal:
		return stored(s.nbdPortals, name)
	}
	return s.system.Value, s.system.Revision
}

func stored[T any](t *table[string, Stored[T]], name string) (any, uint64) {
	v := t.get(name)
	return v.Value, v.Revision
}

// stamp gives the changed resources the revision of their commit.
func (p *Plan) stamp(rev uint64) {
	n := p.New
	n.revision = rev
	for _, c := range p.Changes {
		if c.Verb == Delete {
			continue
		}
		switch c.Kind {
		case KindVolume:
			stamp(n.volumes, c.Name, rev)
		case KindTarget:
			stamp(n.targets, c.Name, rev)
		case KindAccount:
			stamp(n.accounts, c.Name, rev)
		case KindPortal:
			stamp(n.portals, c.Name, rev)
		case KindExport:
			stamp(n.exports, c.Name, rev)
		case KindNBDPortal:
			stamp(n.nbdPortals, c.Name, rev)
		case KindSystem:
			n.system.Revision = rev
		}
	}
}

func stamp[T any](t *table[string, Stored[T]], name string, rev uint64) {
	v := t.get(name)
	v.Revision = rev
	t.set(name, v)
}
