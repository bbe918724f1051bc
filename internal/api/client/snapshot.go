package client

import (
	"context"
	"net/http"
	"net/url"

	v1 "blockgate/internal/api/v1"
)

func snapshotsOf(volume string) string { return "/v1/volumes/" + url.PathEscape(volume) + "/snapshots" }

// AllSnapshots lists the snapshots of all volumes whose stores have such.
func (c *Client) AllSnapshots(ctx context.Context) (v1.Snapshots, error) {
	return get[v1.Snapshots](ctx, c, "/v1/snapshots")
}

// Snapshots lists a volume's snapshots, oldest first.
func (c *Client) Snapshots(ctx context.Context, volume string) ([]v1.Snapshot, error) {
	return get[[]v1.Snapshot](ctx, c, snapshotsOf(volume))
}

// CreateSnapshot makes a snapshot of a volume.
func (c *Client) CreateSnapshot(ctx context.Context, volume, name string) (v1.Snapshot, error) {
	return send[v1.Snapshot](ctx, c, http.MethodPost, snapshotsOf(volume), v1.CreateSnapshot{Name: name})
}

// DeleteSnapshot deletes a snapshot; the volume and clones of it stay.
func (c *Client) DeleteSnapshot(ctx context.Context, volume, name string) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodDelete, snapshotsOf(volume)+"/"+url.PathEscape(name), nil)
}

// CloneVolume makes a volume of a snapshot of another one.
func (c *Client) CloneVolume(ctx context.Context, volume string, req v1.Clone) (v1.Cloned, error) {
	return send[v1.Cloned](ctx, c, http.MethodPost, "/v1/volumes/"+url.PathEscape(volume)+"/clone", req)
}
