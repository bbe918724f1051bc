package state

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A Reconciler makes the running system follow the state.
type Reconciler interface {
	// Check may veto a plan for what is running (a target with sessions). It
	// changes nothing.
	Check(ctx context.Context, p *Plan) error
	// Reconcile carries the plan out. If it fails it has undone what it did, so
	// that the running system is at p.Old again. Warnings are for the user:
	// things done that did not go as smoothly as they could.
	Reconcile(ctx context.Context, p *Plan) (warnings []string, err error)
}

// A Preparer is a Reconciler that has to do things before a plan is committed:
// what a state that survives a crash must not be without, such as the files of
// its new volumes.
type Preparer interface {
	// Prepare is called after Check. abandon undoes it when the commit fails;
	// after a failed Reconcile it is not called.
	Prepare(ctx context.Context, p *Plan) (abandon func(), err error)
}

// State is the state with its backend: reads are from memory, changes go
// through plan, commit and reconcile, one at a time.
type State struct {
	backend Backend
	change  sync.Mutex // held over a whole change
	past    ledger
	current atomic.Pointer[Snapshot]
}

// Open loads the state from the backend. The backend belongs to the State from
// then on; when Open fails it is left open.
func Open(ctx context.Context, b Backend) (*State, error) {
	items, rev, err := b.List(ctx, "")
	if err != nil {
		return nil, err
	}
	snap, err := decode(items, rev)
	if err != nil {
		return nil, err
	}
	s := &State{backend: b}
	s.past.load(items)
	s.current.Store(snap)
	return s, nil
}

// Snapshot is the state now: all that has been committed and reconciled.
func (s *State) Snapshot() *Snapshot { return s.current.Load() }

// Apply changes the state by a transaction: it is validated, planned, checked
// against what runs, committed, and carried out. On an error nothing has
// changed: a commit that cannot be carried out is taken back. When it returns
// without an error the change is durable and in effect.
func (s *State) Apply(ctx context.Context, r Reconciler, ops ...Op) (p *Plan, warnings []string, err error) {
	return s.Change(ctx, r, Origin{}, func(*Snapshot) ([]Op, error) { return ops, nil })
}

// Change is Apply of operations that are worked out from the state they then
// apply to. The history names by as who asked for it.
func (s *State) Change(ctx context.Context, r Reconciler, by Origin, ops func(*Snapshot) ([]Op, error)) (p *Plan, warnings []string, err error) {
	s.change.Lock()
	defer s.change.Unlock()
	list, err := ops(s.Snapshot())
	if err != nil {
		return nil, nil, err
	}
	p, err = s.Snapshot().Plan(list)
	if err != nil {
		return nil, nil, err
	}
	if len(p.Changes) == 0 {
		return p, nil, nil
	}
	if err := r.Check(ctx, p); err != nil {
		return nil, nil, err
	}
	txn, err := p.encode()
	if err != nil {
		return nil, nil, err
	}
	undo, err := s.lost(ctx, txn)
	if err != nil {
		return nil, nil, err
	}
	commit, err := s.past.record(p, by, time.Now(), &txn)
	if err != nil {
		return nil, nil, err
	}
	for _, it := range txn.Put {
		if strings.HasPrefix(it.Key, string(kindHistory)+"/") {
			undo.Delete = append(undo.Delete, it.Key)
		}
	}
	abandon := func() {}
	if prep, ok := r.(Preparer); ok {
		if abandon, err = prep.Prepare(ctx, p); err != nil {
			return nil, nil, err
		}
	}
	rev, err := s.backend.Txn(ctx, txn)
	if err != nil {
		abandon()
		if errors.Is(err, ErrCompare) {
			return nil, nil, &Error{Class: Conflict, Code: CodeRevision, Reason: err.Error(), Hint: "repeat the command", Err: err}
		}
		return nil, nil, err
	}
	p.stamp(rev)
	warnings, err = r.Reconcile(ctx, p)
	if err != nil {
		return nil, nil, s.rollback(p, rev, undo, err)
	}
	commit()
	s.current.Store(p.New)
	return p, warnings, nil
}

// lost finds the records that a transaction deletes with their resources, for
// putting them back.
func (s *State) lost(ctx context.Context, t Txn) (restore Txn, err error) {
	for _, k := range t.Delete {
		if kind, _, _ := strings.Cut(k, "/"); !isRecord(Kind(kind)) {
			continue
		}
		it, ok, err := s.backend.Get(ctx, k)
		if err != nil {
			return Txn{}, err
		}
		if ok {
			restore.Put = append(restore.Put, it)
		}
	}
	return restore, nil
}

// rollback takes a commit back, with its entry in the history. restore is what
// goes with that beside the resources. ctx of the request may be over by now, so it
// has its own.
func (s *State) rollback(p *Plan, rev uint64, restore Txn, cause error) error {
	undo, err := p.invert(rev)
	undo.Delete, undo.Put = append(undo.Delete, restore.Delete...), append(undo.Put, restore.Put...)
	var at uint64
	if err == nil {
		at, err = s.backend.Txn(context.Background(), undo)
	}
	if err != nil {
		return &Error{Class: Internal, Code: CodeStateFailed, Object: "state", Err: errors.Join(cause, err),
			Reason: fmt.Sprintf("%v; and the change could not be taken back: %v", cause, err),
			Hint:   "the object is kept and reported as failed after a restart; delete it then"}
	}
	// The resources are as before, with the revision of the rollback.
	back := p.Old.edit()
	for _, c := range p.Changes {
		back.own(c.Kind)
		back.touch(c.Kind, c.Name)
	}
	restored := &Plan{Old: p.New, New: back.Snapshot, Changes: nil}
	for _, c := range p.Changes {
		if back.has(c.Kind, c.Name) {
			restored.Changes = append(restored.Changes, Change{Verb: Update, Kind: c.Kind, Name: c.Name})
		}
	}
	restored.stamp(at)
	s.current.Store(back.Snapshot)
	return cause
}

// Watch tells of committed changes; see Backend.Watch.
func (s *State) Watch(ctx context.Context) <-chan []Event { return s.backend.Watch(ctx) }

// Close waits for a change under way and closes the backend.
func (s *State) Close() error {
	s.change.Lock()
	defer s.change.Unlock()
	return s.backend.Close()
}
