// Package client talks to a daemon's API over its unix socket, one method for
// each route. Errors are *state.Error: those of the daemon, and one of class
// Unreachable when it does not answer.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

// maxAnswer bounds what is read of one answer, in bytes.
const maxAnswer = 1 << 30

// Client is a connection to one daemon. It is safe for concurrent use; it
// connects when first used.
type Client struct {
	// Command is what the history says was done with this client: a command
	// line without its secrets. Empty: the request's method and path. Set it
	// before the first use.
	Command string

	socket string
	http   *http.Client
}

// New makes a client of the daemon that listens on the unix socket.
func New(socket string) *Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		DisableCompression: true,
	}
	return &Client{socket: socket, http: &http.Client{Transport: tr}}
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Socket is the path of the daemon's socket.
func (c *Client) Socket() string { return c.socket }

// Volumes lists the volumes by name.
func (c *Client) Volumes(ctx context.Context) ([]v1.Volume, error) {
	return get[[]v1.Volume](ctx, c, "/v1/volumes")
}

// Volume gives one volume.
func (c *Client) Volume(ctx context.Context, name string) (v1.Volume, error) {
	return get[v1.Volume](ctx, c, "/v1/volumes/"+url.PathEscape(name))
}

// CreateVolume makes a volume; with a Size, also the store if there is none.
func (c *Client) CreateVolume(ctx context.Context, v state.Volume) (v1.Volume, error) {
	return send[v1.Volume](ctx, c, http.MethodPost, "/v1/volumes", v)
}

// UpdateVolume replaces a volume's settings. What stands for its identity and
// is empty is kept.
func (c *Client) UpdateVolume(ctx context.Context, v state.Volume) (v1.Volume, error) {
	return send[v1.Volume](ctx, c, http.MethodPut, "/v1/volumes/"+url.PathEscape(v.Name), v)
}

// ChangeVolume reads a volume, lets change modify it and writes it back, again if
// someone else changed it in between.
func (c *Client) ChangeVolume(ctx context.Context, name string, change func(*state.Volume) error) (v1.Result, error) {
	for try := 0; ; try++ {
		v, err := c.Volume(ctx, name)
		if err != nil {
			return v1.Result{}, err
		}
		if err := change(&v.Volume); err != nil {
			return v1.Result{}, err
		}
		res, err := c.Apply(ctx, state.Op{Verb: state.Update, Kind: state.KindVolume, IfRevision: v.Revision, Volume: &v.Volume})
		if e := state.ErrorOf(err); e != nil && e.Code == state.CodeRevision && try < 10 {
			continue
		}
		return res, err
	}
}

// DeleteVolume forgets a volume; its data stay. With force it is unmapped first.
func (c *Client) DeleteVolume(ctx context.Context, name string, force bool) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodDelete, "/v1/volumes/"+url.PathEscape(name)+forced(force), nil)
}

// ResizeVolume grows a volume to size bytes, or, if size is 0, takes over the
// size that its store has now.
func (c *Client) ResizeVolume(ctx context.Context, name string, size int64) (v1.Volume, error) {
	return send[v1.Volume](ctx, c, http.MethodPost, "/v1/volumes/"+url.PathEscape(name)+"/resize", v1.Resize{Size: size})
}

// RetryVolume tries to open a failed volume again.
func (c *Client) RetryVolume(ctx context.Context, name string) (v1.Volume, error) {
	return send[v1.Volume](ctx, c, http.MethodPost, "/v1/volumes/"+url.PathEscape(name)+"/retry", nil)
}

// Targets lists the targets by ID.
func (c *Client) Targets(ctx context.Context) ([]v1.Target, error) {
	return get[[]v1.Target](ctx, c, "/v1/targets")
}

// Target gives one target.
func (c *Client) Target(ctx context.Context, name string) (v1.Target, error) {
	return get[v1.Target](ctx, c, "/v1/targets/"+url.PathEscape(name))
}

// CreateTarget makes a target.
func (c *Client) CreateTarget(ctx context.Context, t state.Target) (v1.Target, error) {
	return send[v1.Target](ctx, c, http.MethodPost, "/v1/targets", t)
}

// UpdateTarget reads a target, lets change modify it and writes it back,
// again if someone else changed it in between.
func (c *Client) UpdateTarget(ctx context.Context, name string, change func(*state.Target) error) (v1.Result, error) {
	for try := 0; ; try++ {
		t, err := c.Target(ctx, name)
		if err != nil {
			return v1.Result{}, err
		}
		if err := change(&t.Target); err != nil {
			return v1.Result{}, err
		}
		res, err := c.Apply(ctx, state.Op{Verb: state.Update, Kind: state.KindTarget, IfRevision: t.Revision, Target: &t.Target})
		if e := state.ErrorOf(err); e != nil && e.Code == state.CodeRevision && try < 10 {
			continue
		}
		return res, err
	}
}

// DeleteTarget removes a target; with force also under its sessions.
func (c *Client) DeleteTarget(ctx context.Context, name string, force bool) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodDelete, "/v1/targets/"+url.PathEscape(name)+forced(force), nil)
}

// PortGroups lists a target's port groups with their access states, by tag.
func (c *Client) PortGroups(ctx context.Context, target string) ([]v1.PortGroup, error) {
	return get[[]v1.PortGroup](ctx, c, "/v1/targets/"+url.PathEscape(target)+"/port-groups")
}

// SetPortGroup changes the access state of a target's port group.
func (c *Client) SetPortGroup(ctx context.Context, target string, group uint16, set v1.SetPortGroup) ([]v1.PortGroup, error) {
	return send[[]v1.PortGroup](ctx, c, http.MethodPut, fmt.Sprintf("/v1/targets/%s/port-groups/%d", url.PathEscape(target), group), set)
}

// LUNs lists a target's LUNs with their volumes, by number.
func (c *Client) LUNs(ctx context.Context, target string) ([]v1.LUN, error) {
	return get[[]v1.LUN](ctx, c, "/v1/targets/"+url.PathEscape(target)+"/luns")
}

// AddLUN maps a volume into a target.
func (c *Client) AddLUN(ctx context.Context, target string, l state.LUN) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodPost, "/v1/targets/"+url.PathEscape(target)+"/luns", l)
}

// DeleteLUN unmaps a LUN; with force also while commands run.
func (c *Client) DeleteLUN(ctx context.Context, target string, number uint64, force bool) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodDelete,
		"/v1/targets/"+url.PathEscape(target)+"/luns/"+strconv.FormatUint(number, 10)+forced(force), nil)
}

// Accounts lists the CHAP accounts, without secrets.
func (c *Client) Accounts(ctx context.Context) ([]v1.Account, error) {
	return get[[]v1.Account](ctx, c, "/v1/accounts")
}

// CreateAccount makes a CHAP account.
func (c *Client) CreateAccount(ctx context.Context, a state.Account) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodPost, "/v1/accounts", a)
}

// DeleteAccount removes an account; with force also from the targets that use
// it (one that loses its last account is set offline, never left open).
func (c *Client) DeleteAccount(ctx context.Context, user string, force bool) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodDelete, "/v1/accounts/"+url.PathEscape(user)+forced(force), nil)
}

// Portals lists the portals, those of the daemon's command line included.
func (c *Client) Portals(ctx context.Context) ([]v1.Portal, error) {
	return get[[]v1.Portal](ctx, c, "/v1/portals")
}

// CreatePortal listens on another address.
func (c *Client) CreatePortal(ctx context.Context, p state.Portal) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodPost, "/v1/portals", p)
}

// DeletePortal stops listening; sessions that came in there go on.
func (c *Client) DeletePortal(ctx context.Context, address string) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodDelete, "/v1/portals/"+url.PathEscape(address), nil)
}

// Sessions lists the sessions of a target, or all if target is empty.
func (c *Client) Sessions(ctx context.Context, target string) ([]v1.Session, error) {
	return get[[]v1.Session](ctx, c, "/v1/sessions?target="+url.QueryEscape(target))
}

// CloseSession closes all connections of a session.
func (c *Client) CloseSession(ctx context.Context, id uint64) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodDelete, "/v1/sessions/"+strconv.FormatUint(id, 10), nil)
}

// CloseConnection closes one connection of a session.
func (c *Client) CloseConnection(ctx context.Context, id uint64, cid uint16) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodDelete, fmt.Sprintf("/v1/sessions/%d/connections/%d", id, cid), nil)
}

// System gives the gateway's settings and facts.
func (c *Client) System(ctx context.Context) (v1.System, error) {
	return get[v1.System](ctx, c, "/v1/system")
}

// UpdateSystem replaces the gateway's settings.
func (c *Client) UpdateSystem(ctx context.Context, s state.System) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodPut, "/v1/system", s)
}

// Shutdown asks the daemon to drain and end; it returns when the daemon has
// begun.
func (c *Client) Shutdown(ctx context.Context) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodPost, "/v1/system/shutdown", nil)
}

// Stats gives the I/O counters of a target's LUNs, or of all if target is empty.
func (c *Client) Stats(ctx context.Context, target string) ([]v1.NexusStat, error) {
	return get[[]v1.NexusStat](ctx, c, "/v1/stats?target="+url.QueryEscape(target))
}

// Engines lists the kinds of backing stores that the daemon has.
func (c *Client) Engines(ctx context.Context) ([]v1.Engine, error) {
	return get[[]v1.Engine](ctx, c, "/v1/engines")
}

// Apply carries out operations as one transaction.
func (c *Client) Apply(ctx context.Context, ops ...state.Op) (v1.Result, error) {
	return send[v1.Result](ctx, c, http.MethodPost, "/v1/transactions", v1.Transaction{Ops: ops})
}

func forced(force bool) string {
	if force {
		return "?force=true"
	}
	return ""
}

func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	return send[T](ctx, c, http.MethodGet, path, nil)
}

func send[T any](ctx context.Context, c *Client, method, path string, body any) (out T, err error) {
	var in io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return out, err
		}
		in = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://blockgate"+path, in)
	if err != nil {
		return out, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.Command != "" {
		req.Header.Set(v1.CommandHeader, url.PathEscape(c.Command))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return out, c.unreachable(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return out, c.unreachable(err)
	}
	if resp.StatusCode >= 300 {
		return out, problem(resp, raw)
	}
	if len(raw) == 0 {
		return out, nil
	}
	if err := json.Unmarshal(raw, &out); err != nil {
		return out, &state.Error{Class: state.Internal, Code: state.CodeInternal, Object: "answer of the daemon", Reason: err.Error(),
			Hint: "are client and daemon of the same version?", Err: err}
	}
	return out, nil
}

func (c *Client) unreachable(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &state.Error{Class: state.Unreachable, Code: state.CodeUnreachable, Object: "daemon at " + c.socket, Reason: "did not answer in time", Err: err}
	}
	e := &state.Error{Class: state.Unreachable, Code: state.CodeUnreachable, Object: "daemon at " + c.socket, Err: err,
		Hint: "start it with: blockgate daemon (or name its socket with --socket)"}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Reason = "is not running (there is no socket)"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Reason = "is not running (nobody listens on the socket)"
	case errors.Is(err, fs.ErrPermission):
		e.Class, e.Code, e.Reason = state.Refused, state.CodeForbidden, "you have no right to use its socket"
		e.Hint = "use the account that the daemon runs as, or root"
	default:
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		e.Reason = "cannot be reached: " + err.Error()
	}
	return e
}

func problem(resp *http.Response, raw []byte) error {
	var p v1.Problem
	if err := json.Unmarshal(raw, &p); err != nil || p.Code == "" {
		return &state.Error{Class: state.Internal, Code: state.CodeInternal, Object: "daemon", Reason: "answered " + resp.Status}
	}
	return &state.Error{Class: state.Class(p.Class), Code: p.Code, Object: p.Object, Reason: p.Reason, Hint: p.Hint}
}
