package tgt

import (
	"context"
	"encoding/json"
	"errors"

	"blockgate/internal/api"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

// apiClient is as much of the API as the tools need: over a socket it is a
// *client.Client, in the daemon itself a local.
type apiClient interface {
	Apply(ctx context.Context, ops ...state.Op) (v1.Result, error)
	Targets(ctx context.Context) ([]v1.Target, error)
	Target(ctx context.Context, name string) (v1.Target, error)
	LUNs(ctx context.Context, target string) ([]v1.LUN, error)
	Volumes(ctx context.Context) ([]v1.Volume, error)
	Volume(ctx context.Context, name string) (v1.Volume, error)
	ResizeVolume(ctx context.Context, name string, size int64) (v1.Volume, error)
	Accounts(ctx context.Context) ([]v1.Account, error)
	Portals(ctx context.Context) ([]v1.Portal, error)
	Sessions(ctx context.Context, target string) ([]v1.Session, error)
	CloseConnection(ctx context.Context, id uint64, cid uint16) (v1.Result, error)
	System(ctx context.Context) (v1.System, error)
	Shutdown(ctx context.Context) (v1.Result, error)
	Stats(ctx context.Context, target string) ([]v1.NexusStat, error)
	Engines(ctx context.Context) ([]v1.Engine, error)
}

// local is the API without a socket in between. What is asked for by itself is a
// copy, as it is from a socket: it is changed and written back. Lists are not.
type local struct{ svc api.Service }

// inside is what a daemon offers to its own process beside the API, so that a
// command's time does not grow with what there is.
type inside interface {
	TargetByID(ctx context.Context, id int) (v1.Target, error)
	Settings(ctx context.Context) state.System
	ReleasePortal(ctx context.Context, address string) error
}

func (l local) inside() (inside, bool) {
	i, ok := l.svc.(inside)
	return i, ok
}

func (l local) Apply(ctx context.Context, ops ...state.Op) (v1.Result, error) {
	return l.svc.Apply(ctx, ops)
}

func (l local) Targets(ctx context.Context) ([]v1.Target, error) { return l.svc.Targets(ctx), nil }

func (l local) Target(ctx context.Context, name string) (v1.Target, error) {
	return copied(l.svc.Target(ctx, name))
}

func (l local) LUNs(ctx context.Context, target string) ([]v1.LUN, error) {
	return l.svc.LUNs(ctx, target)
}

func (l local) Volumes(ctx context.Context) ([]v1.Volume, error) { return l.svc.Volumes(ctx), nil }

func (l local) Volume(ctx context.Context, name string) (v1.Volume, error) {
	return copied(l.svc.Volume(ctx, name))
}

func (l local) ResizeVolume(ctx context.Context, name string, size int64) (v1.Volume, error) {
	return l.svc.ResizeVolume(ctx, name, size)
}

func (l local) Accounts(ctx context.Context) ([]v1.Account, error) { return l.svc.Accounts(ctx), nil }

func (l local) Portals(ctx context.Context) ([]v1.Portal, error) { return l.svc.Portals(ctx), nil }

func (l local) Sessions(ctx context.Context, target string) ([]v1.Session, error) {
	return l.svc.Sessions(ctx, target), nil
}

func (l local) CloseConnection(ctx context.Context, id uint64, cid uint16) (v1.Result, error) {
	return v1.Result{}, l.svc.CloseConnection(ctx, id, cid)
}

// releasePortal stops listening on a portal that tgtd was started with.
func (l local) releasePortal(ctx context.Context, address string) error {
	if i, ok := l.inside(); ok {
		return i.ReleasePortal(ctx, address)
	}
	return errors.ErrUnsupported
}

func (l local) System(ctx context.Context) (v1.System, error) {
	return copied(l.svc.System(ctx), nil)
}

func (l local) Shutdown(ctx context.Context) (v1.Result, error) {
	return v1.Result{}, l.svc.Shutdown(ctx)
}

func (l local) Stats(ctx context.Context, target string) ([]v1.NexusStat, error) {
	return l.svc.Stats(ctx, target), nil
}

func (l local) Engines(ctx context.Context) ([]v1.Engine, error) { return l.svc.Engines(ctx), nil }

func copied[T any](v T, err error) (out T, _ error) {
	if err != nil {
		return v, err
	}
	b, err := json.Marshal(v)
	if err != nil {
		return v, err
	}
	err = json.Unmarshal(b, &out)
	return out, err
}
