// Package api serves the daemon's HTTP API: resources as JSON, transactions,
// and what runs. It speaks over a unix socket to its owner and root. Errors are
// RFC 9457 problems with a stable code (see v1.Problem); the OpenAPI
// description is at /openapi.json.
package api

import (
	"context"
	"errors"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

// Service is what the API shows: the daemon. Its methods are safe for
// concurrent use; errors are *state.Error where they tell the caller something.
type Service interface {
	// Apply carries out a transaction.
	Apply(ctx context.Context, ops []state.Op) (v1.Result, error)
	Volumes(ctx context.Context) []v1.Volume
	Volume(ctx context.Context, name string) (v1.Volume, error)
	ResizeVolume(ctx context.Context, name string, size int64) (v1.Volume, error)
	RetryVolume(ctx context.Context, name string) (v1.Volume, error)
	// Snapshots of volumes are kept by their engines. AllSnapshots leaves out
	// volumes that cannot have any.
	Snapshots(ctx context.Context, volume string) ([]v1.Snapshot, error)
	AllSnapshots(ctx context.Context) v1.Snapshots
	CreateSnapshot(ctx context.Context, volume, name string) (v1.Snapshot, error)
	DeleteSnapshot(ctx context.Context, volume, name string) error
	CloneVolume(ctx context.Context, volume string, req v1.Clone) (v1.Cloned, error)
	Targets(ctx context.Context) []v1.Target
	Target(ctx context.Context, name string) (v1.Target, error)
	LUNs(ctx context.Context, target string) ([]v1.LUN, error)
	// PortGroups lists the target port groups of a target with their asymmetric
	// access states; SetPortGroup changes one and lists them as they are then.
	PortGroups(ctx context.Context, target string) ([]v1.PortGroup, error)
	SetPortGroup(ctx context.Context, target string, group uint16, set v1.SetPortGroup) ([]v1.PortGroup, error)
	Accounts(ctx context.Context) []v1.Account
	Portals(ctx context.Context) []v1.Portal
	Sessions(ctx context.Context, target string) []v1.Session
	CloseSession(ctx context.Context, id uint64) error
	CloseConnection(ctx context.Context, id uint64, cid uint16) error
	System(ctx context.Context) v1.System
	// Shutdown begins the orderly end and returns.
	Shutdown(ctx context.Context) error
	Stats(ctx context.Context, target string) []v1.NexusStat
	Engines(ctx context.Context) []v1.Engine
	// Declare makes the state what the configs declare.
	Declare(ctx context.Context, req v1.Declare) (v1.Declared, error)
	Export(ctx context.Context, req v1.Export) []state.Config
	// History lists the last changes, the newest first, without their differences.
	History(ctx context.Context) ([]v1.Change, error)
	HistoryChange(ctx context.Context, revision uint64) (v1.Change, error)
	// Differences between two revisions; 0 for from is before the last change, 0
	// for to is now.
	Differences(ctx context.Context, from, to uint64) ([]state.Difference, error)
	Rollback(ctx context.Context, req v1.Rollback) (v1.Declared, error)
	NBD
}

// maxBody bounds a request in bytes: a transaction of 20,000 resources is
// about 10 MB.
const maxBody = 256 << 20

// NewHandler makes the API's routes. version is shown in the description.
func NewHandler(svc Service, version string) http.Handler {
	cfg := huma.DefaultConfig("Blockgate", version)
	cfg.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", schemaName)
	cfg.CreateHooks = nil // no $schema fields in answers
	cfg.DocsPath = ""     // the page would load scripts from elsewhere
	cfg.Transformers = append(cfg.Transformers, problems)
	mux := http.NewServeMux()
	a := humago.New(mux, cfg)
	r := routes{api: a, svc: svc}
	r.volumes()
	r.snapshots()
	r.targets()
	r.others()
	r.nbd()
	r.declared()
	return mux
}

// schemaName tells apart what is asked for (Volume) and what then runs
// (VolumeInfo): the types have one name in two packages.
func schemaName(t reflect.Type, hint string) string {
	name := huma.DefaultSchemaNamer(t, hint)
	if t.PkgPath() == reflect.TypeFor[v1.Volume]().PkgPath() {
		switch name {
		case "Volume", "Target", "LUN", "Account", "Portal", "System", "NBDPortal":
			return name + "Info"
		case "Export": // what is asked for there; state.Export is a resource
			return "ExportRequest"
		}
	}
	return name
}

type routes struct {
	api huma.API
	svc Service
}

// Shapes of requests and answers, as huma wants them: it finds parameters in
// embedded structures whose names are exported.
type (
	none          struct{}
	answer[T any] struct{ Body T }

	// Request has a body.
	Request[T any] struct{ Body T }
	// Named has the name of a resource in its path.
	Named struct {
		Name string `path:"name"`
	}
	// OfTarget may be restricted to one target.
	OfTarget struct {
		Target string `query:"target" doc:"only those of this target"`
	}
	// OfSession has the number of a session in its path.
	OfSession struct {
		ID uint64 `path:"id"`
	}
)

func ok[T any](v T) (*answer[T], error) { return &answer[T]{Body: v}, nil }

func result[T any](v T, err error) (*answer[T], error) {
	if err != nil {
		return nil, asProblem(err)
	}
	return ok(v)
}

func register[I, O any](r routes, id, method, path, summary string, h func(context.Context, *I) (*answer[O], error)) {
	huma.Register(r.api, huma.Operation{
		OperationID: id, Method: method, Path: path, Summary: summary, MaxBodyBytes: maxBody,
		DefaultStatus: http.StatusOK,
	}, h)
}

// problem is a v1.Problem that huma takes for an error.
type problem struct{ v1.Problem }

func (p *problem) Error() string { return p.Detail }

// GetStatus implements huma.StatusError.
func (p *problem) GetStatus() int { return p.Status }

// ContentType implements huma.ContentTypeFilter.
func (p *problem) ContentType(string) string { return "application/problem+json" }

func asProblem(err error) error {
	e := state.ErrorOf(err)
	if errors.Is(err, context.Canceled) {
		e = &state.Error{Class: state.Refused, Code: "canceled", Reason: "the request was cancelled"}
	}
	status := map[state.Class]int{
		state.Usage: http.StatusBadRequest, state.NotFound: http.StatusNotFound, state.Conflict: http.StatusConflict,
		state.Refused: http.StatusUnprocessableEntity, state.Unreachable: http.StatusServiceUnavailable,
	}[e.Class]
	if e.Code == state.CodeForbidden {
		status = http.StatusForbidden
	}
	if status == 0 {
		status = http.StatusInternalServerError
	}
	return &problem{v1.Problem{
		Title: http.StatusText(status), Status: status, Detail: e.Error(),
		Code: e.Code, Class: int(e.Class), Object: e.Object, Reason: e.Reason, Hint: e.Hint,
	}}
}

// problems gives huma's own errors (a body that does not fit the description)
// the shape of ours.
func problems(_ huma.Context, _ string, v any) (any, error) {
	m, is := v.(*huma.ErrorModel)
	if !is {
		return v, nil
	}
	reason := m.Detail
	for _, d := range m.Errors {
		reason += "; " + d.Message
		if d.Location != "" {
			reason += " (" + d.Location + ")"
		}
	}
	class, code := state.Usage, state.CodeInvalidRequest
	switch {
	case m.Status == http.StatusNotFound:
		class = state.NotFound
	case m.Status >= 500:
		class, code = state.Internal, state.CodeInternal
	}
	return &problem{v1.Problem{
		Title: http.StatusText(m.Status), Status: m.Status, Detail: reason, Code: code, Class: int(class), Object: "request", Reason: reason,
	}}, nil
}
