package gateway

import (
	"context"
	"fmt"
	"time"

	"blockgate/backing"
)

// DefaultSnapshotTimeout is longer than Curve needs to take a snapshot.
const DefaultSnapshotTimeout = 100 * time.Second

// snapshotGrace is how long a call whose time is over may take to put back what it
// began.
const snapshotGrace = 3 * time.Second

// HangError says that a store did not return in time from a call that changes
// something: nobody knows yet whether it was done.
type HangError struct {
	Volume, Doing string
	After         time.Duration
}

func (e *HangError) Error() string {
	return fmt.Sprintf("volume %q: the store has not answered for %v: %s may still be carried out", e.Volume, e.After, e.Doing)
}

// CreateSnapshot makes a snapshot of a volume in its engine, as
// backing.Snapshotter says: what is under way is waited for, and new writes until it
// is done. Like the calls below it returns within SnapshotTimeout (and a little
// more), is backing.ErrNotSupported if the store has no snapshots, and a
// *HangError if the store does not return.
func (g *Gateway) CreateSnapshot(ctx context.Context, volume, name string) (snap backing.Snapshot, err error) {
	return onSnapshots(ctx, g, volume, fmt.Sprintf("the snapshot %q", name),
		func(ctx context.Context, s backing.Snapshotter) (backing.Snapshot, error) {
			return s.CreateSnapshot(ctx, name)
		})
}

// Snapshots lists the snapshots of a volume, oldest first.
func (g *Gateway) Snapshots(ctx context.Context, volume string) ([]backing.Snapshot, error) {
	return onSnapshots(ctx, g, volume, "nothing",
		func(ctx context.Context, s backing.Snapshotter) ([]backing.Snapshot, error) { return s.Snapshots(ctx) })
}

// DeleteSnapshot deletes a snapshot of a volume by its name.
func (g *Gateway) DeleteSnapshot(ctx context.Context, volume, name string) error {
	_, err := onSnapshots(ctx, g, volume, fmt.Sprintf("the deletion of snapshot %q", name),
		func(ctx context.Context, s backing.Snapshotter) (struct{}, error) {
			return struct{}{}, s.DeleteSnapshot(ctx, name)
		})
	return err
}

// Clone makes a new store named name in the engine of a volume, with the content
// of one of its snapshots, and gives its URL. It is no volume yet.
func (g *Gateway) Clone(ctx context.Context, volume, snapshot, name string) (url string, err error) {
	i, err := g.Volume(volume)
	if err != nil {
		return "", err
	}
	location, err := onSnapshots(ctx, g, volume, fmt.Sprintf("the clone %q", name),
		func(ctx context.Context, s backing.Snapshotter) (string, error) { return s.Clone(ctx, snapshot, name) })
	if err != nil {
		return "", err
	}
	scheme, _ := backing.SplitURL(i.URL)
	return scheme + ":" + location, nil
}

// onSnapshots calls a running volume's store, within the time limit.
func onSnapshots[T any](ctx context.Context, g *Gateway, name, doing string, call func(context.Context, backing.Snapshotter) (T, error)) (none T, err error) {
	g.mu.RLock()
	v := g.volumes[name]
	if v == nil || v.unit == nil || v.pending() {
		g.mu.RUnlock()
		return none, fmt.Errorf("volume %q: %w", name, ErrNotFound)
	}
	store, calls := v.store, v.calls
	calls.Add(1)
	g.mu.RUnlock()
	s, ok := backing.As[backing.Snapshotter](store)
	if !ok {
		calls.Done()
		return none, fmt.Errorf("volume %q: snapshots: %w", name, backing.ErrNotSupported)
	}
	type answer struct {
		v   T
		err error
	}
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, g.cfg.SnapshotTimeout)
	defer cancel()
	done := make(chan answer, 1)
	go func() {
		defer calls.Done()
		v, err := call(ctx, s)
		done <- answer{v, err}
	}()
	result := func(a answer) (T, error) {
		if a.err != nil {
			a.err = fmt.Errorf("volume %q: %w", name, a.err)
		}
		return a.v, a.err
	}
	select {
	case a := <-done:
		return result(a)
	case <-ctx.Done():
	}
	grace := time.NewTimer(snapshotGrace)
	defer grace.Stop()
	select {
	case a := <-done:
		return result(a)
	case <-grace.C:
	}
	go func() {
		if a := <-done; a.err != nil {
			g.log.Warn("gateway: a store answered after all", "volume", name, "doing", doing, "err", a.err)
		} else {
			g.log.Warn("gateway: a store did after all", "volume", name, "doing", doing)
		}
	}()
	return none, &HangError{Volume: name, Doing: doing, After: time.Since(begin).Round(time.Second)}
}
