package backing

import (
	"context"
	"errors"
	"time"
)

// ErrExist: a snapshot or clone of this name is already there.
var ErrExist = errors.New("exists already")

// Snapshot is what a store held at one moment, kept by its engine.
type Snapshot struct {
	Name    string    // as given when it was made; unique among the store's
	ID      string    // the engine's own name for it, which some accept in a URL; may be empty
	Created time.Time // as the engine has it
	Size    int64     // bytes
	// Pause is how long writes were held up for it. Only CreateSnapshot tells.
	Pause time.Duration
}

// Snapshotter makes snapshots of a store while it is in use.
//
// Names are those of the engine; one that it cannot have is an error before
// anything is done. The calls may run beside all others.
type Snapshotter interface {
	// CreateSnapshot keeps what the store holds: every write, discard and zeroing
	// that had returned before the call, durably, and of each that is under way
	// all or nothing. It waits for those that are under way and holds up new
	// ones until it is done; reads go on. An error leaves the store as it was,
	// and in service. It is ErrExist if there is one of that name.
	CreateSnapshot(ctx context.Context, name string) (Snapshot, error)
	// Snapshots lists the store's snapshots, oldest first.
	Snapshots(ctx context.Context) ([]Snapshot, error)
	// DeleteSnapshot gives up a snapshot; what the store and clones of it hold
	// stays. It is ErrNotExist if there is none, ErrBusy if the engine
	// cannot delete it because of what depends on it.
	DeleteSnapshot(ctx context.Context, name string) error
	// Clone makes a new store in the same engine that begins with the content of
	// the snapshot and is written independently. It returns the new store's URL
	// without the scheme, as the engine's Opener takes it. It is ErrExist if
	// there is a store of that name.
	Clone(ctx context.Context, snapshot, name string) (location string, err error)
}
