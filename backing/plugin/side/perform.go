package side

import (
	"context"
	"encoding/json"
	"fmt"

	"blockgate/backing"
	"blockgate/backing/plugin/internal/control"
)

// perform carries out a request for which NBD has no words.
func perform(ctx context.Context, store backing.Store, m control.Message) (any, error) {
	switch m.Op {
	case control.OpResize:
		in, err := decode[control.Resize](m)
		if err != nil {
			return nil, err
		}
		r, ok := backing.As[backing.Resizer](store)
		if !ok {
			return nil, backing.ErrNotSupported
		}
		if err := r.Resize(ctx, in.Size); err != nil {
			return nil, err
		}
		return status(store), nil
	case control.OpRefresh:
		r, ok := backing.As[backing.Refresher](store)
		if !ok {
			return nil, backing.ErrNotSupported
		}
		if _, err := r.Refresh(ctx); err != nil {
			return nil, err
		}
		return status(store), nil
	case control.OpUsage:
		u, ok := backing.As[backing.Usager](store)
		if !ok {
			return nil, backing.ErrNotSupported
		}
		return pass(u.Usage(ctx))
	case control.OpCompareWrite:
		in, err := decode[control.CompareWrite](m)
		if err != nil {
			return nil, err
		}
		c, ok := backing.As[backing.CompareAndWriter](store)
		if !ok || len(in.Old) != len(in.New) {
			return nil, backing.ErrNotSupported
		}
		if n := int64(len(in.Old)); in.Off < 0 || in.Off > store.Size()-n {
			return nil, backing.ErrOutOfRange
		}
		at, err := c.CompareAndWrite(ctx, in.Old, in.New, in.Off)
		return pass(control.CompareWriteAnswer{Miscompare: at}, err)
	}
	return performSnapshot(ctx, store, m)
}

func performSnapshot(ctx context.Context, store backing.Store, m control.Message) (any, error) {
	s, ok := backing.As[backing.Snapshotter](store)
	if m.Op == control.OpSnapshots {
		if !ok {
			return nil, backing.ErrNotSupported
		}
		return pass(s.Snapshots(ctx))
	}
	switch m.Op {
	case control.OpSnapshotCreate, control.OpSnapshotDelete, control.OpClone:
	default:
		return nil, fmt.Errorf("request %q: %w", m.Op, backing.ErrNotSupported)
	}
	in, err := decode[control.Snapshot](m)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, backing.ErrNotSupported
	}
	switch m.Op {
	case control.OpSnapshotCreate:
		return pass(s.CreateSnapshot(ctx, in.Name))
	case control.OpSnapshotDelete:
		return nil, s.DeleteSnapshot(ctx, in.Name)
	}
	location, err := s.Clone(ctx, in.Name, in.Clone)
	return pass(control.CloneAnswer{Location: location}, err)
}

func decode[T any](m control.Message) (T, error) {
	var in T
	err := json.Unmarshal(m.Body, &in)
	return in, err
}

func pass[T any](out T, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return out, nil
}
