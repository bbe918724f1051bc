// Package readonly is a layer that refuses every change of the store below. The
// store itself may be open for writing by others.
package readonly

import (
	"context"

	"blockgate/backing"
	"blockgate/backing/layer/base"
)

// Store is a store that cannot be written to.
type Store struct{ *base.Store }

// New makes lower read-only. Close closes lower.
func New(lower backing.Store) *Store {
	return &Store{base.New(lower, base.Options{Drop: backing.CapsModify, Before: refuse})}
}

const changes = base.Write | base.Discard | base.Zero | base.Copy | base.CompareAndWrite | base.Resize

func refuse(_ context.Context, c base.Call) error {
	if c.Op&changes != 0 {
		return backing.ErrReadOnly
	}
	return nil
}

// Info is that of the store below, marked read-only.
func (s *Store) Info() backing.Info {
	i := s.Store.Info()
	i.ReadOnly = true
	return i
}
