package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

// Exports lists the NBD exports.
func (c *Client) Exports(ctx context.Context) ([]v1.NBDExport, error) {
	return get[[]v1.NBDExport](ctx, c, "/v1/nbd/exports")
}

// CreateExport exports a volume by NBD.
func (c *Client) CreateExport(ctx context.Context, e state.Export) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodPost, "/v1/nbd/exports", e)
}

// UpdateExport replaces an export's settings.
func (c *Client) UpdateExport(ctx context.Context, e state.Export) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodPut, "/v1/nbd/exports/"+url.PathEscape(e.Name), e)
}

// DeleteExport ends an export; with force also under its clients.
func (c *Client) DeleteExport(ctx context.Context, name string, force bool) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodDelete, "/v1/nbd/exports/"+url.PathEscape(name)+forced(force), nil)
}

// NBDPortals lists the addresses that NBD is served on.
func (c *Client) NBDPortals(ctx context.Context) ([]v1.NBDPortal, error) {
	return get[[]v1.NBDPortal](ctx, c, "/v1/nbd/portals")
}

// CreateNBDPortal serves NBD on another address.
func (c *Client) CreateNBDPortal(ctx context.Context, p state.NBDPortal) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodPost, "/v1/nbd/portals", p)
}

// DeleteNBDPortal stops serving on an address; connections go on.
func (c *Client) DeleteNBDPortal(ctx context.Context, address string) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodDelete, "/v1/nbd/portals/"+url.PathEscape(address), nil)
}

// NBDClients lists the NBD connections.
func (c *Client) NBDClients(ctx context.Context) ([]v1.NBDClient, error) {
	return get[[]v1.NBDClient](ctx, c, "/v1/nbd/clients")
}

// CloseNBDClient closes an NBD connection.
func (c *Client) CloseNBDClient(ctx context.Context, id uint64) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodDelete, "/v1/nbd/clients/"+strconv.FormatUint(id, 10), nil)
}
