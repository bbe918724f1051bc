package plugin

import (
	"context"
	"errors"
	"fmt"

	"blockgate/backing"
	"blockgate/backing/plugin/internal/control"
)

// call carries out a request by the control channel. One that may be repeated
// is sent again if the process ends meanwhile.
func (s *Store) call(ctx context.Context, repeat bool, op string, in, out any) error {
	if stall := s.limit(); stall >= 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, stall+s.cfg.Grace, fmt.Errorf("the plugin has not answered for %v", stall))
		defer cancel()
	}
	select {
	case s.calls <- struct{}{}:
		defer func() { <-s.calls }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		p, err := s.ready(ctx)
		if err != nil {
			return err
		}
		err = p.client.Call(ctx, op, in, out)
		switch {
		case errors.Is(err, control.ErrFrame):
			p.askRestart(err.Error())
			return err
		case errors.Is(err, control.ErrGone):
			if repeat {
				s.await(ctx, p)
				continue
			}
			return fmt.Errorf("%s: %w; nobody knows whether it was done", op, err)
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		}
		return err
	}
}

// await waits until p is not the process in use any more.
func (s *Store) await(ctx context.Context, p *process) {
	for {
		s.mu.Lock()
		same, changed := s.proc == p && s.refusal() == nil, s.changed
		s.mu.Unlock()
		if !same {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// Resize changes the size in the engine.
func (s *Store) Resize(ctx context.Context, size int64) error {
	var st control.Status
	if err := s.call(ctx, true, control.OpResize, control.Resize{Size: size}, &st); err != nil {
		return s.explain(err)
	}
	_, err := s.takeSize(ctx)
	return s.explain(err)
}

// Refresh asks the engine for the size.
func (s *Store) Refresh(ctx context.Context) (int64, error) {
	var st control.Status
	if err := s.call(ctx, true, control.OpRefresh, nil, &st); err != nil {
		return s.Size(), s.explain(err)
	}
	size, err := s.takeSize(ctx)
	return size, s.explain(err)
}

// Usage asks the engine for the space behind the store.
func (s *Store) Usage(ctx context.Context) (backing.Usage, error) {
	var u backing.Usage
	err := s.call(ctx, true, control.OpUsage, nil, &u)
	return u, s.explain(err)
}

// CompareAndWrite is the engine's own. If the process ends meanwhile it is an
// error, and the range may have been written or not.
func (s *Store) CompareAndWrite(ctx context.Context, old, new []byte, off int64) (int, error) {
	if s.info.ReadOnly {
		return -1, backing.ErrReadOnly
	}
	if len(old) != len(new) || len(old) > control.MaxCompare {
		return -1, fmt.Errorf("compare and write of %d bytes: %w", len(old), backing.ErrNotSupported)
	}
	if n := int64(len(old)); off < 0 || off > s.Size()-n {
		return -1, backing.ErrOutOfRange
	}
	if len(old) == 0 {
		return -1, nil
	}
	var a control.CompareWriteAnswer
	if err := s.call(ctx, false, control.OpCompareWrite, control.CompareWrite{Off: off, Old: old, New: new}, &a); err != nil {
		return -1, s.explain(err)
	}
	if a.Miscompare < -1 || a.Miscompare >= len(old) {
		return -1, fmt.Errorf("the plugin's answer to %s makes no sense: %d", control.OpCompareWrite, a.Miscompare)
	}
	return a.Miscompare, nil
}

// CreateSnapshot has the engine make a snapshot.
func (s *Store) CreateSnapshot(ctx context.Context, name string) (backing.Snapshot, error) {
	var a backing.Snapshot
	err := s.call(ctx, false, control.OpSnapshotCreate, control.Snapshot{Name: name}, &a)
	return a, s.explain(err)
}

// Snapshots lists the engine's snapshots of the store.
func (s *Store) Snapshots(ctx context.Context) ([]backing.Snapshot, error) {
	var a []backing.Snapshot
	err := s.call(ctx, true, control.OpSnapshots, nil, &a)
	return a, s.explain(err)
}

// DeleteSnapshot has the engine delete a snapshot.
func (s *Store) DeleteSnapshot(ctx context.Context, name string) error {
	return s.explain(s.call(ctx, false, control.OpSnapshotDelete, control.Snapshot{Name: name}, nil))
}

// Clone has the engine make a store of a snapshot.
func (s *Store) Clone(ctx context.Context, snapshot, name string) (string, error) {
	var a control.CloneAnswer
	err := s.call(ctx, false, control.OpClone, control.Snapshot{Name: snapshot, Clone: name}, &a)
	return a.Location, s.explain(err)
}
