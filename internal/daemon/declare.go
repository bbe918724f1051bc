package daemon

import (
	"context"
	"fmt"
	"slices"

	"blockgate/internal/api"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/declare"
	"blockgate/internal/state"
)

// Declare implements api.Service.
func (d *Daemon) Declare(ctx context.Context, req v1.Declare) (v1.Declared, error) {
	out, err := d.planned(ctx, &reconciler{Daemon: d, declared: true, force: req.Force}, req.DryRun,
		func(s *state.Snapshot) ([]state.Op, []string, error) {
			ops, err := declare.Ops(s, req.Configs, declare.Options{Adopt: req.Adopt})
			return ops, nil, err
		})
	if err != nil {
		return out, err
	}
	for _, c := range req.Configs {
		for _, v := range c.Volumes {
			if e := d.failure(d.volumes, v.Name); e != nil {
				out.Warnings = append(out.Warnings, fmt.Sprintf("volume %q does not run: %s; next: blockgate volume retry %s", v.Name, e.Reason, v.Name))
			}
		}
	}
	return out, nil
}

// Rollback implements api.Service.
func (d *Daemon) Rollback(ctx context.Context, req v1.Rollback) (v1.Declared, error) {
	return d.planned(ctx, &reconciler{Daemon: d, declared: true, force: req.Force, restore: true}, req.DryRun,
		func(s *state.Snapshot) ([]state.Op, []string, error) {
			history, err := d.st.History(ctx)
			if err != nil {
				return nil, nil, err
			}
			images, err := state.Between(history, req.Revision, 0)
			if err != nil {
				return nil, nil, err
			}
			return s.Restore(images)
		})
}

// planned carries out a change whose operations follow from the state, or only
// says what it would be.
func (d *Daemon) planned(ctx context.Context, r *reconciler, dry bool, ops func(*state.Snapshot) ([]state.Op, []string, error)) (v1.Declared, error) {
	var notes []string
	work := func(s *state.Snapshot) ([]state.Op, error) {
		list, n, err := ops(s)
		notes = n
		return list, err
	}
	if dry {
		s := d.st.Snapshot()
		list, err := work(s)
		if err != nil {
			return v1.Declared{}, err
		}
		p, err := s.Plan(list)
		if err != nil {
			return v1.Declared{}, err
		}
		out, err := declared(p, notes)
		if err != nil {
			return v1.Declared{}, err
		}
		out.Revision = s.Revision()
		if err := r.Check(ctx, p); err != nil {
			out.Refusal = api.ProblemOf(err)
		}
		return out, nil
	}
	// A change once begun is finished, as in Apply.
	p, warnings, err := d.st.Change(context.WithoutCancel(ctx), r, origin(ctx), work)
	if err != nil {
		return v1.Declared{}, err
	}
	d.logChange(p, warnings)
	return declared(p, append(notes, warnings...))
}

func declared(p *state.Plan, warnings []string) (v1.Declared, error) {
	images, err := p.Images()
	if err != nil {
		return v1.Declared{}, err
	}
	diff, err := state.Differences(images)
	return v1.Declared{Revision: p.New.Revision(), Differences: diff, Warnings: warnings}, err
}

// Export implements api.Service.
func (d *Daemon) Export(_ context.Context, req v1.Export) []state.Config {
	return declare.Export(d.st.Snapshot(), declare.ExportOptions{Scopes: req.Scopes, Secrets: req.Secrets, NoIdentity: req.NoIdentity})
}

// History implements api.Service.
func (d *Daemon) History(ctx context.Context) ([]v1.Change, error) {
	list, err := d.st.History(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]v1.Change, 0, len(list))
	for _, e := range slices.Backward(list) {
		out = append(out, change(e))
	}
	return out, nil
}

func change(e state.Entry) v1.Change {
	c := v1.Change{Revision: e.Revision, Before: e.Before, Time: e.Time, Origin: e.Origin, Incomplete: e.Incomplete}
	for _, i := range e.Images {
		switch {
		case i.Old == nil:
			c.Created++
		case i.New == nil:
			c.Deleted++
		default:
			c.Changed++
		}
	}
	return c
}

// HistoryChange implements api.Service.
func (d *Daemon) HistoryChange(ctx context.Context, revision uint64) (v1.Change, error) {
	list, err := d.st.History(ctx)
	if err != nil {
		return v1.Change{}, err
	}
	for _, e := range list {
		if e.Revision == revision {
			c := change(e)
			c.Differences, err = state.Differences(e.Images)
			return c, err
		}
	}
	return v1.Change{}, &state.Error{Class: state.NotFound, Code: state.CodeNoRevision, Object: fmt.Sprintf("revision %d", revision),
		Reason: "is none that a change made, or is older than the history", Hint: "blockgate history"}
}

// Differences implements api.Service.
func (d *Daemon) Differences(ctx context.Context, from, to uint64) ([]state.Difference, error) {
	list, err := d.st.History(ctx)
	if err != nil {
		return nil, err
	}
	images, err := state.Between(list, from, to)
	if err != nil {
		return nil, err
	}
	return state.Differences(images)
}
