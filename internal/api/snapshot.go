package api

import (
	"context"
	"net/http"

	v1 "blockgate/internal/api/v1"
)

func (r routes) snapshots() {
	type ofSnapshot struct {
		Named
		Snapshot string `path:"snapshot"`
	}
	register(r, "list-all-snapshots", http.MethodGet, "/v1/snapshots", "List the snapshots of all volumes",
		func(ctx context.Context, _ *none) (*answer[v1.Snapshots], error) {
			return ok(r.svc.AllSnapshots(ctx))
		})
	register(r, "list-snapshots", http.MethodGet, "/v1/volumes/{name}/snapshots", "List a volume's snapshots, oldest first",
		func(ctx context.Context, in *Named) (*answer[[]v1.Snapshot], error) {
			return result(r.svc.Snapshots(ctx, in.Name))
		})
	register(r, "create-snapshot", http.MethodPost, "/v1/volumes/{name}/snapshots", "Make a snapshot of a volume in its engine",
		func(ctx context.Context, in *struct {
			Named
			Request[v1.CreateSnapshot]
		}) (*answer[v1.Snapshot], error) {
			return result(r.svc.CreateSnapshot(ctx, in.Name, in.Body.Name))
		})
	register(r, "delete-snapshot", http.MethodDelete, "/v1/volumes/{name}/snapshots/{snapshot}", "Delete a snapshot; the volume and its clones stay",
		func(ctx context.Context, in *ofSnapshot) (*answer[v1.Result], error) {
			return result(v1.Result{}, r.svc.DeleteSnapshot(ctx, in.Name, in.Snapshot))
		})
	register(r, "clone-volume", http.MethodPost, "/v1/volumes/{name}/clone", "Make a volume of a snapshot of another one",
		func(ctx context.Context, in *struct {
			Named
			Request[v1.Clone]
		}) (*answer[v1.Cloned], error) {
			return result(r.svc.CloneVolume(ctx, in.Name, in.Body))
		})
}
