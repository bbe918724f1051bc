package api

import (
	"context"
	"net/http"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

func (r routes) volumes() {
	register(r, "list-volumes", http.MethodGet, "/v1/volumes", "List the volumes",
		func(ctx context.Context, _ *none) (*answer[[]v1.Volume], error) { return ok(r.svc.Volumes(ctx)) })
	register(r, "get-volume", http.MethodGet, "/v1/volumes/{name}", "Show a volume",
		func(ctx context.Context, in *Named) (*answer[v1.Volume], error) {
			return result(r.svc.Volume(ctx, in.Name))
		})
	register(r, "create-volume", http.MethodPost, "/v1/volumes", "Create a volume",
		func(ctx context.Context, in *Request[state.Volume]) (*answer[v1.Volume], error) {
			return r.putVolume(ctx, state.Create, in.Body)
		})
	register(r, "update-volume", http.MethodPut, "/v1/volumes/{name}", "Replace a volume's settings",
		func(ctx context.Context, in *struct {
			Named
			Request[state.Volume]
		}) (*answer[v1.Volume], error) {
			if err := sameName(state.KindVolume, in.Name, &in.Body.Name); err != nil {
				return nil, asProblem(err)
			}
			return r.putVolume(ctx, state.Update, in.Body)
		})
	register(r, "delete-volume", http.MethodDelete, "/v1/volumes/{name}", "Forget a volume; its data stay",
		func(ctx context.Context, in *struct {
			Named
			Force bool `query:"force"`
		}) (*answer[v1.Result], error) {
			return r.apply(ctx, state.Op{Verb: state.Delete, Kind: state.KindVolume, Name: in.Name, Force: in.Force})
		})
	register(r, "resize-volume", http.MethodPost, "/v1/volumes/{name}/resize", "Grow a volume, or take over its store's size",
		func(ctx context.Context, in *struct {
			Named
			Request[v1.Resize]
		}) (*answer[v1.Volume], error) {
			return result(r.svc.ResizeVolume(ctx, in.Name, in.Body.Size))
		})
	register(r, "retry-volume", http.MethodPost, "/v1/volumes/{name}/retry", "Try to open a failed volume again",
		func(ctx context.Context, in *Named) (*answer[v1.Volume], error) {
			return result(r.svc.RetryVolume(ctx, in.Name))
		})
}

func (r routes) targets() {
	register(r, "list-targets", http.MethodGet, "/v1/targets", "List the targets",
		func(ctx context.Context, _ *none) (*answer[[]v1.Target], error) { return ok(r.svc.Targets(ctx)) })
	register(r, "get-target", http.MethodGet, "/v1/targets/{name}", "Show a target",
		func(ctx context.Context, in *Named) (*answer[v1.Target], error) {
			return result(r.svc.Target(ctx, in.Name))
		})
	register(r, "create-target", http.MethodPost, "/v1/targets", "Create a target",
		func(ctx context.Context, in *Request[state.Target]) (*answer[v1.Target], error) {
			return r.putTarget(ctx, state.Create, in.Body)
		})
	register(r, "update-target", http.MethodPut, "/v1/targets/{name}", "Replace a target's settings",
		func(ctx context.Context, in *struct {
			Named
			Request[state.Target]
		}) (*answer[v1.Target], error) {
			if err := sameName(state.KindTarget, in.Name, &in.Body.Name); err != nil {
				return nil, asProblem(err)
			}
			return r.putTarget(ctx, state.Update, in.Body)
		})
	register(r, "delete-target", http.MethodDelete, "/v1/targets/{name}", "Delete a target; its volumes stay",
		func(ctx context.Context, in *struct {
			Named
			Force bool `query:"force" doc:"also when it has sessions"`
		}) (*answer[v1.Result], error) {
			return r.apply(ctx, state.Op{Verb: state.Delete, Kind: state.KindTarget, Name: in.Name, Force: in.Force})
		})
	register(r, "list-port-groups", http.MethodGet, "/v1/targets/{name}/port-groups", "List a target's port groups and their access states",
		func(ctx context.Context, in *Named) (*answer[[]v1.PortGroup], error) {
			return result(r.svc.PortGroups(ctx, in.Name))
		})
	register(r, "set-port-group", http.MethodPut, "/v1/targets/{name}/port-groups/{group}", "Set the access state of a target's port group",
		func(ctx context.Context, in *struct {
			Named
			Group uint16 `path:"group"`
			Request[v1.SetPortGroup]
		}) (*answer[[]v1.PortGroup], error) {
			return result(r.svc.SetPortGroup(ctx, in.Name, in.Group, in.Body))
		})
	register(r, "list-luns", http.MethodGet, "/v1/targets/{name}/luns", "List a target's LUNs",
		func(ctx context.Context, in *Named) (*answer[[]v1.LUN], error) {
			return result(r.svc.LUNs(ctx, in.Name))
		})
	register(r, "add-lun", http.MethodPost, "/v1/targets/{name}/luns", "Map a volume as a LUN",
		func(ctx context.Context, in *struct {
			Named
			Request[state.LUN]
		}) (*answer[v1.Result], error) {
			return r.apply(ctx, state.Op{Verb: state.Create, Kind: state.KindLUN, Name: in.Name, LUN: &in.Body})
		})
	register(r, "get-lun", http.MethodGet, "/v1/targets/{name}/luns/{n}", "Show a LUN",
		func(ctx context.Context, in *struct {
			Named
			N uint64 `path:"n"`
		}) (*answer[v1.LUN], error) {
			luns, err := r.svc.LUNs(ctx, in.Name)
			if err != nil {
				return nil, asProblem(err)
			}
			for _, l := range luns {
				if l.Number == in.N {
					return ok(l)
				}
			}
			return nil, asProblem(&state.Error{Class: state.NotFound, Code: state.CodeLUNNotFound, Object: `target "` + in.Name + `"`,
				Reason: "has no such LUN", Hint: "blockgate lun list " + in.Name})
		})
	register(r, "delete-lun", http.MethodDelete, "/v1/targets/{name}/luns/{n}", "Unmap a LUN; the volume stays",
		func(ctx context.Context, in *struct {
			Named
			N     uint64 `path:"n"`
			Force bool   `query:"force" doc:"also while commands run"`
		}) (*answer[v1.Result], error) {
			return r.apply(ctx, state.Op{Verb: state.Delete, Kind: state.KindLUN, Name: in.Name, LUN: &state.LUN{Number: in.N}, Force: in.Force})
		})
}

func (r routes) others() {
	register(r, "apply", http.MethodPost, "/v1/transactions", "Carry out several operations, all or none",
		func(ctx context.Context, in *Request[v1.Transaction]) (*answer[v1.Result], error) {
			return r.apply(ctx, in.Body.Ops...)
		})

	register(r, "list-accounts", http.MethodGet, "/v1/accounts", "List the CHAP accounts, without secrets",
		func(ctx context.Context, _ *none) (*answer[[]v1.Account], error) { return ok(r.svc.Accounts(ctx)) })
	register(r, "create-account", http.MethodPost, "/v1/accounts", "Create a CHAP account",
		func(ctx context.Context, in *Request[state.Account]) (*answer[v1.Result], error) {
			return r.apply(ctx, state.Op{Verb: state.Create, Kind: state.KindAccount, Account: &in.Body})
		})
	register(r, "delete-account", http.MethodDelete, "/v1/accounts/{name}", "Delete a CHAP account",
		func(ctx context.Context, in *struct {
			Named
			Force bool `query:"force" doc:"also when it is in use"`
		}) (*answer[v1.Result], error) {
			return r.apply(ctx, state.Op{Verb: state.Delete, Kind: state.KindAccount, Name: in.Name, Force: in.Force})
		})

	register(r, "list-portals", http.MethodGet, "/v1/portals", "List the portals",
		func(ctx context.Context, _ *none) (*answer[[]v1.Portal], error) { return ok(r.svc.Portals(ctx)) })
	register(r, "create-portal", http.MethodPost, "/v1/portals", "Listen on another address",
		func(ctx context.Context, in *Request[state.Portal]) (*answer[v1.Result], error) {
			return r.apply(ctx, state.Op{Verb: state.Create, Kind: state.KindPortal, Portal: &in.Body})
		})
	register(r, "delete-portal", http.MethodDelete, "/v1/portals/{name}", "Stop listening on an address",
		func(ctx context.Context, in *Named) (*answer[v1.Result], error) {
			return r.apply(ctx, state.Op{Verb: state.Delete, Kind: state.KindPortal, Name: in.Name})
		})

	register(r, "list-sessions", http.MethodGet, "/v1/sessions", "List the sessions",
		func(ctx context.Context, in *OfTarget) (*answer[[]v1.Session], error) {
			return ok(r.svc.Sessions(ctx, in.Target))
		})
	register(r, "close-session", http.MethodDelete, "/v1/sessions/{id}", "Close a session's connections",
		func(ctx context.Context, in *OfSession) (*answer[v1.Result], error) {
			return result(v1.Result{}, r.svc.CloseSession(ctx, in.ID))
		})
	register(r, "close-connection", http.MethodDelete, "/v1/sessions/{id}/connections/{cid}", "Close one connection",
		func(ctx context.Context, in *struct {
			OfSession
			CID uint16 `path:"cid"`
		}) (*answer[v1.Result], error) {
			return result(v1.Result{}, r.svc.CloseConnection(ctx, in.ID, in.CID))
		})

	register(r, "get-system", http.MethodGet, "/v1/system", "Show the gateway's settings and facts",
		func(ctx context.Context, _ *none) (*answer[v1.System], error) { return ok(r.svc.System(ctx)) })
	register(r, "update-system", http.MethodPut, "/v1/system", "Replace the gateway's settings",
		func(ctx context.Context, in *Request[state.System]) (*answer[v1.Result], error) {
			return r.apply(ctx, state.Op{Verb: state.Update, Kind: state.KindSystem, System: &in.Body})
		})
	register(r, "shutdown", http.MethodPost, "/v1/system/shutdown", "Drain the sessions and end the daemon",
		func(ctx context.Context, _ *none) (*answer[v1.Result], error) {
			return result(v1.Result{}, r.svc.Shutdown(ctx))
		})
	register(r, "get-stats", http.MethodGet, "/v1/stats", "Show the LUNs' I/O counters",
		func(ctx context.Context, in *OfTarget) (*answer[[]v1.NexusStat], error) {
			return ok(r.svc.Stats(ctx, in.Target))
		})
	register(r, "list-engines", http.MethodGet, "/v1/engines", "List the kinds of backing stores",
		func(ctx context.Context, _ *none) (*answer[[]v1.Engine], error) { return ok(r.svc.Engines(ctx)) })
}

func (r routes) apply(ctx context.Context, ops ...state.Op) (*answer[v1.Result], error) {
	return result(r.svc.Apply(ctx, ops))
}

func (r routes) putVolume(ctx context.Context, verb state.Verb, v state.Volume) (*answer[v1.Volume], error) {
	done, err := r.svc.Apply(ctx, []state.Op{{Verb: verb, Kind: state.KindVolume, Volume: &v}})
	if err != nil {
		return nil, asProblem(err)
	}
	out, err := r.svc.Volume(ctx, v.Name)
	out.Warnings = done.Warnings
	return result(out, err)
}

func (r routes) putTarget(ctx context.Context, verb state.Verb, t state.Target) (*answer[v1.Target], error) {
	if _, err := r.svc.Apply(ctx, []state.Op{{Verb: verb, Kind: state.KindTarget, Target: &t}}); err != nil {
		return nil, asProblem(err)
	}
	return result(r.svc.Target(ctx, t.Name))
}

// sameName lets a body leave the name to the path, and nothing else.
func sameName(k state.Kind, path string, body *string) error {
	if *body == "" {
		*body = path
	}
	if *body != path {
		return &state.Error{Class: state.Usage, Code: state.CodeInvalidRequest, Object: string(k) + ` "` + path + `"`,
			Reason: `cannot be renamed to "` + *body + `"`}
	}
	return nil
}
