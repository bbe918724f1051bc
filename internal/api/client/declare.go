package client

import (
	"context"
	"fmt"
	"net/http"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

// Declare makes the state what the request declares, or says what that would
// change.
func (c *Client) Declare(ctx context.Context, req v1.Declare) (v1.Declared, error) {
	return send[v1.Declared](ctx, c, http.MethodPost, "/v1/declare", req)
}

// Export gives the state as configs.
func (c *Client) Export(ctx context.Context, req v1.Export) ([]state.Config, error) {
	return send[[]state.Config](ctx, c, http.MethodPost, "/v1/export", req)
}

// History lists the last changes, the newest first, without their differences.
func (c *Client) History(ctx context.Context) ([]v1.Change, error) {
	return get[[]v1.Change](ctx, c, "/v1/history")
}

// HistoryChange gives the change that made a revision.
func (c *Client) HistoryChange(ctx context.Context, revision uint64) (v1.Change, error) {
	return get[v1.Change](ctx, c, fmt.Sprintf("/v1/history/%d", revision))
}

// Differences tells what changed between two revisions. 0 for from is before
// the last change, 0 for to is now.
func (c *Client) Differences(ctx context.Context, from, to uint64) ([]state.Difference, error) {
	return get[[]state.Difference](ctx, c, fmt.Sprintf("/v1/diff?from=%d&to=%d", from, to))
}

// Rollback brings back the resources of an earlier revision.
func (c *Client) Rollback(ctx context.Context, req v1.Rollback) (v1.Declared, error) {
	return send[v1.Declared](ctx, c, http.MethodPost, "/v1/rollback", req)
}

// ErrorOf is the error that a problem stands for.
func ErrorOf(p *v1.Problem) error {
	return &state.Error{Class: state.Class(p.Class), Code: p.Code, Object: p.Object, Reason: p.Reason, Hint: p.Hint}
}
