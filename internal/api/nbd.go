package api

import (
	"context"
	"net/http"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

// NBD is the part of Service that is about NBD.
type NBD interface {
	Exports(ctx context.Context) []v1.NBDExport
	NBDPortals(ctx context.Context) []v1.NBDPortal
	NBDClients(ctx context.Context) []v1.NBDClient
	CloseNBDClient(ctx context.Context, id uint64) error
}

func (r routes) nbd() {
	register(r, "list-exports", http.MethodGet, "/v1/nbd/exports", "List the NBD exports",
		func(ctx context.Context, _ *none) (*answer[[]v1.NBDExport], error) { return ok(r.svc.Exports(ctx)) })
	register(r, "create-export", http.MethodPost, "/v1/nbd/exports", "Export a volume by NBD",
		func(ctx context.Context, in *Request[state.Export]) (*answer[v1.Result], error) {
			return r.apply(ctx, state.Op{Verb: state.Create, Kind: state.KindExport, Export: &in.Body})
		})
	register(r, "update-export", http.MethodPut, "/v1/nbd/exports/{name}", "Replace an export's settings",
		func(ctx context.Context, in *struct {
			Named
			Request[state.Export]
		}) (*answer[v1.Result], error) {
			if err := sameName(state.KindExport, in.Name, &in.Body.Name); err != nil {
				return nil, asProblem(err)
			}
			return r.apply(ctx, state.Op{Verb: state.Update, Kind: state.KindExport, Export: &in.Body})
		})
	register(r, "delete-export", http.MethodDelete, "/v1/nbd/exports/{name}", "End an export; its volume stays",
		func(ctx context.Context, in *struct {
			Named
			Force bool `query:"force" doc:"also when it has clients"`
		}) (*answer[v1.Result], error) {
			return r.apply(ctx, state.Op{Verb: state.Delete, Kind: state.KindExport, Name: in.Name, Force: in.Force})
		})
	register(r, "list-nbd-portals", http.MethodGet, "/v1/nbd/portals", "List the addresses that NBD is served on",
		func(ctx context.Context, _ *none) (*answer[[]v1.NBDPortal], error) { return ok(r.svc.NBDPortals(ctx)) })
	register(r, "create-nbd-portal", http.MethodPost, "/v1/nbd/portals", "Serve NBD on another address",
		func(ctx context.Context, in *Request[state.NBDPortal]) (*answer[v1.Result], error) {
			return r.apply(ctx, state.Op{Verb: state.Create, Kind: state.KindNBDPortal, NBDPortal: &in.Body})
		})
	register(r, "delete-nbd-portal", http.MethodDelete, "/v1/nbd/portals/{name}", "Stop serving NBD on an address",
		func(ctx context.Context, in *Named) (*answer[v1.Result], error) {
			return r.apply(ctx, state.Op{Verb: state.Delete, Kind: state.KindNBDPortal, Name: in.Name})
		})
	register(r, "list-nbd-clients", http.MethodGet, "/v1/nbd/clients", "List the NBD connections",
		func(ctx context.Context, _ *none) (*answer[[]v1.NBDClient], error) { return ok(r.svc.NBDClients(ctx)) })
	register(r, "close-nbd-client", http.MethodDelete, "/v1/nbd/clients/{id}", "Close an NBD connection",
		func(ctx context.Context, in *OfSession) (*answer[v1.Result], error) {
			return result(v1.Result{}, r.svc.CloseNBDClient(ctx, in.ID))
		})
}
