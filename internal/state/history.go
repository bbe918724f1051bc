package state

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Bounds of the history. The oldest changes are forgotten first.
const (
	MaxHistory      = 256      // changes
	MaxHistoryBytes = 32 << 20 // encoded, all together
	maxEntryBytes   = MaxHistoryBytes / 2
)

// kindHistory keys the history: one key for each change, by its number.
const kindHistory Kind = "history"

// Origin is who asked for a change.
type Origin struct {
	UID     int    `json:"uid"`
	PID     int    `json:"pid,omitempty"`
	Comm    string `json:"comm,omitempty"`    // the process's name
	Command string `json:"command,omitempty"` // what it said it does; never with secrets
}

// Image is a resource before and after a change; nil where it did not exist.
type Image struct {
	Kind Kind            `json:"kind"`
	Name string          `json:"name"`
	Old  json.RawMessage `json:"old,omitempty"`
	New  json.RawMessage `json:"new,omitempty"`
}

// Entry is one change in the history. Images have the accounts' secrets in
// them; what is shown is Differences of them.
type Entry struct {
	Revision uint64    `json:"-"`      // of the state after it
	Before   uint64    `json:"before"` // and before it
	Time     time.Time `json:"time"`
	Origin
	Images []Image `json:"images,omitempty"`
	// Incomplete: the change was too large to be kept. It cannot be undone.
	Incomplete bool `json:"incomplete,omitempty"`
}

// kept is what is known in memory of an entry.
type kept struct {
	key  string
	size int
}

// ledger is the history's index. It is guarded by State.change.
type ledger struct {
	kept  []kept // oldest first
	bytes int
	next  uint64 // number of the next entry
}

func (l *ledger) load(items []Item) {
	for _, it := range items {
		if name, ok := strings.CutPrefix(it.Key, string(kindHistory)+"/"); ok {
			var n uint64
			if _, err := fmt.Sscanf(name, "%016x", &n); err != nil {
				continue // nothing of ours
			}
			l.add(kept{it.Key, len(it.Value)})
			l.next = n + 1
		}
	}
}

func (l *ledger) add(k kept) {
	l.kept = append(l.kept, k)
	l.bytes += k.size
}

// record adds a plan's entry to its transaction, and takes out what then is too
// much. commit is to be called when the transaction has been committed.
func (l *ledger) record(p *Plan, by Origin, now time.Time, t *Txn) (commit func(), err error) {
	e := Entry{Before: p.Old.revision, Time: now.UTC(), Origin: by}
	if e.Images, err = p.Images(); err != nil {
		return nil, err
	}
	if len(e.Images) == 0 {
		return func() {}, nil // a volume that was tried again
	}
	raw, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	if len(raw) > maxEntryBytes {
		e.Images, e.Incomplete = nil, true
		if raw, err = json.Marshal(e); err != nil {
			return nil, err
		}
	}
	k := kept{key(kindHistory, fmt.Sprintf("%016x", l.next)), len(raw)}
	t.Put = append(t.Put, Item{Key: k.key, Value: raw})
	drop, size := 0, l.bytes+k.size
	for drop < len(l.kept) && (len(l.kept)-drop >= MaxHistory || size > MaxHistoryBytes) {
		t.Delete = append(t.Delete, l.kept[drop].key)
		size -= l.kept[drop].size
		drop++
	}
	return func() {
		l.kept = slices.Delete(l.kept, 0, drop)
		l.kept = append(l.kept, k)
		l.bytes = size
		l.next++
	}, nil
}

// image encodes a resource; settings that were never written are none.
func (s *Snapshot) image(k Kind, name string) (json.RawMessage, error) {
	v, rev := s.resource(k, name)
	if k == KindSystem && rev == 0 && s.system.Value.zero() {
		return nil, nil
	}
	return json.Marshal(v)
}

func (s *System) zero() bool {
	raw, err := json.Marshal(s)
	return err == nil && string(raw) == "{}"
}

// History reads the kept changes, oldest first.
func (s *State) History(ctx context.Context) ([]Entry, error) {
	items, _, err := s.backend.List(ctx, string(kindHistory)+"/")
	if err != nil {
		return nil, err
	}
	list := make([]Entry, 0, len(items))
	for _, it := range items {
		var e Entry
		if err := json.Unmarshal(it.Value, &e); err != nil {
			return nil, &Error{Class: Internal, Code: CodeStateCorrupt, Object: "state key " + it.Key, Reason: err.Error(), Err: err}
		}
		e.Revision = it.Revision
		list = append(list, e)
	}
	return list, nil
}

// Between gives what changed from one revision to a later one, in the images of
// the changes in between. It fails where the history does not reach back far
// enough. 0 for from is the state before the last change; 0 for to is now.
func Between(history []Entry, from, to uint64) ([]Image, error) {
	unknown := func(rev uint64, why string) error {
		return &Error{Class: NotFound, Code: CodeNoRevision, Object: fmt.Sprintf("revision %d", rev), Reason: why, Hint: "blockgate history shows those there are"}
	}
	if len(history) == 0 {
		return nil, unknown(from, "nothing has been changed yet that the history knows")
	}
	last := history[len(history)-1]
	if from == 0 {
		from = last.Before
	} else if from < history[0].Before {
		return nil, unknown(from, fmt.Sprintf("the history reaches back to revision %d only", history[0].Before))
	}
	if newest := max(from, to); newest > last.Revision {
		return nil, unknown(newest, fmt.Sprintf("the last change made revision %d", last.Revision))
	}
	if to != 0 && to < from {
		return nil, &Error{Class: Usage, Code: CodeInvalidValue, Object: fmt.Sprintf("revision %d", to), Reason: fmt.Sprintf("comes before %d", from),
			Hint: fmt.Sprintf("blockgate diff %d %d", to, from)}
	}
	type id struct {
		kind Kind
		name string
	}
	at := map[id]int{}
	var list []Image
	for _, e := range history {
		if e.Revision <= from || to != 0 && e.Revision > to {
			continue
		}
		if e.Incomplete {
			return nil, unknown(from, fmt.Sprintf("the change to revision %d was too large to be kept", e.Revision))
		}
		for _, img := range e.Images {
			if i, ok := at[id{img.Kind, img.Name}]; ok {
				list[i].New = img.New
				continue
			}
			at[id{img.Kind, img.Name}] = len(list)
			list = append(list, img)
		}
	}
	return slices.DeleteFunc(list, func(i Image) bool { return bytes.Equal(i.Old, i.New) }), nil
}

// Restore makes the operations that bring back what images were before. Notes
// tell what cannot be brought back: a volume never shrinks.
func (s *Snapshot) Restore(images []Image) (ops []Op, notes []string, err error) {
	for _, img := range images {
		op := Op{Verb: Put, Kind: img.Kind, Name: img.Name, Exact: true}
		into := func(v any) {
			if err == nil && img.Old != nil {
				err = json.Unmarshal(img.Old, v)
			}
		}
		switch img.Kind {
		case KindVolume:
			op.Volume = &Volume{}
			into(op.Volume)
			if now, ok := s.Volume(img.Name); ok && img.Old != nil && op.Volume.URL == now.Value.URL && op.Volume.Size < now.Value.Size {
				notes = append(notes, fmt.Sprintf("volume %q keeps its %d bytes: volumes never shrink", img.Name, now.Value.Size))
				op.Volume.Size = now.Value.Size
			}
		case KindTarget:
			op.Target = &Target{}
			into(op.Target)
		case KindAccount:
			op.Account = &Account{}
			into(op.Account)
		case KindPortal:
			op.Portal = &Portal{}
			into(op.Portal)
		case KindExport:
			op.Export = &Export{}
			into(op.Export)
		case KindNBDPortal:
			op.NBDPortal = &NBDPortal{}
			into(op.NBDPortal)
		case KindSystem:
			op.Verb, op.System = Update, &System{}
			into(op.System)
		}
		if err != nil {
			return nil, nil, &Error{Class: Internal, Code: CodeStateCorrupt, Object: "history", Reason: err.Error(), Err: err}
		}
		if img.Old == nil && img.Kind != KindSystem {
			if !s.has(img.Kind, img.Name) {
				continue
			}
			op = Op{Verb: Delete, Kind: img.Kind, Name: img.Name, Exact: true}
		}
		ops = append(ops, op)
	}
	Arrange(ops)
	return ops, notes, nil
}

// Arrange puts operations of one transaction, at most one for a resource, into
// an order in which they do not get into each other's way: what is deleted
// frees its name and number first, and goes after what used it.
func Arrange(ops []Op) {
	rank := func(o Op) int {
		if o.Verb == Delete {
			return map[Kind]int{KindTarget: 0, KindExport: 0, KindPortal: 1, KindNBDPortal: 1, KindVolume: 7, KindAccount: 8}[o.Kind]
		}
		return map[Kind]int{KindPortal: 2, KindNBDPortal: 2, KindAccount: 3, KindVolume: 4, KindTarget: 5, KindExport: 5, KindSystem: 6}[o.Kind]
	}
	slices.SortStableFunc(ops, func(a, b Op) int { return rank(a) - rank(b) })
}
