package api

import (
	"context"
	"net/http"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

func (r routes) declared() {
	register(r, "declare", http.MethodPost, "/v1/declare", "Make the state what is declared, all or nothing",
		func(ctx context.Context, in *Request[v1.Declare]) (*answer[v1.Declared], error) {
			return result(r.svc.Declare(ctx, in.Body))
		})
	// A POST, so that secrets are asked for in no URL.
	register(r, "export", http.MethodPost, "/v1/export", "Give the state as it would be declared",
		func(ctx context.Context, in *Request[v1.Export]) (*answer[[]state.Config], error) {
			return ok(r.svc.Export(ctx, in.Body))
		})
	register(r, "list-history", http.MethodGet, "/v1/history", "List the last changes",
		func(ctx context.Context, _ *none) (*answer[[]v1.Change], error) {
			return result(r.svc.History(ctx))
		})
	register(r, "get-history", http.MethodGet, "/v1/history/{revision}", "Show what the change to a revision was",
		func(ctx context.Context, in *struct {
			Revision uint64 `path:"revision"`
		}) (*answer[v1.Change], error) {
			return result(r.svc.HistoryChange(ctx, in.Revision))
		})
	register(r, "diff", http.MethodGet, "/v1/diff", "Show what changed between two revisions",
		func(ctx context.Context, in *struct {
			From uint64 `query:"from" doc:"0: before the last change"`
			To   uint64 `query:"to" doc:"0: now"`
		}) (*answer[[]state.Difference], error) {
			return result(r.svc.Differences(ctx, in.From, in.To))
		})
	register(r, "rollback", http.MethodPost, "/v1/rollback", "Bring back the resources of an earlier revision",
		func(ctx context.Context, in *Request[v1.Rollback]) (*answer[v1.Declared], error) {
			return result(r.svc.Rollback(ctx, in.Body))
		})
}

// ProblemOf is an error as the API shows it.
func ProblemOf(err error) *v1.Problem { return &asProblem(err).(*problem).Problem }
