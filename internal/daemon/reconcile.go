package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"blockgate/gateway"
	"blockgate/internal/state"
)

// reconciler carries out one plan. Every step that is done leaves a way back.
type reconciler struct {
	*Daemon
	// declared: the plan comes from a declaration, which may take away what
	// nobody named; force lets it, also under sessions.
	declared, force bool
	// restore: volumes that come back are not made anew.
	restore  bool
	undo     []func()
	warnings []string
}

// Check implements state.Reconciler: it refuses to take away what is in use
// unless that is forced.
func (r *reconciler) Check(_ context.Context, p *state.Plan) error {
	if err := r.checkSizes(p); err != nil {
		return err
	}
	if err := r.checkClients(p); err != nil {
		return err
	}
	if r.declared && !r.force {
		if err := r.checkSessions(p); err != nil {
			return err
		}
	}
	for _, op := range p.Ops {
		if op.Force || r.declared {
			continue
		}
		switch {
		case op.Kind == state.KindTarget && op.Verb == state.Delete:
			if n := r.sessionsOf(op.Name); n > 0 {
				return &state.Error{Class: state.Conflict, Code: state.CodeTargetActive, Object: fmt.Sprintf("target %q", op.Name),
					Reason: fmt.Sprintf("has %d sessions", n),
					Hint:   fmt.Sprintf("see them: blockgate session list --target %s; or delete it with --force", op.Name)}
			}
		case op.Kind == state.KindLUN && op.Verb == state.Delete:
			t, _ := p.Old.Target(op.Name)
			l, ok := t.Value.LUN(op.LUN.Number)
			if v, err := r.gw.Volume(l.Volume); ok && err == nil && v.Busy {
				return &state.Error{Class: state.Conflict, Code: state.CodeLUNActive, Object: fmt.Sprintf("LUN %d of target %q", l.Number, op.Name),
					Reason: "commands are running", Hint: "try again, or remove it with --force"}
			}
		case op.Kind == state.KindVolume && op.Verb != state.Delete && op.Volume != nil && op.Volume.Unit.Offline:
			if v, err := r.gw.Volume(op.Name); err == nil && v.Locked && !v.Offline {
				return &state.Error{Class: state.Conflict, Code: state.CodeRemovalPrevent, Object: fmt.Sprintf("volume %q", op.Name),
					Reason: "an initiator prevents the removal of the medium"}
			}
		}
	}
	return nil
}

func (d *Daemon) sessionsOf(target string) int {
	n := 0
	for _, s := range d.gw.Sessions() {
		if s.Target == target {
			n++
		}
	}
	return n
}

// Reconcile implements state.Reconciler. What can fail comes first, what takes
// things away from initiators last.
func (r *reconciler) Reconcile(ctx context.Context, p *state.Plan) ([]string, error) {
	for _, step := range []func(context.Context, *state.Plan) error{
		r.portalsStep, r.nbdPortalsStep, r.volumesStep, r.targetsStep, r.exportsStep, r.accountsStep, r.removeStep,
	} {
		if err := step(ctx, p); err != nil {
			r.goBack()
			return nil, err
		}
	}
	return r.warnings, nil
}

// goBack undoes what was done.
func (r *reconciler) goBack() {
	for _, back := range slices.Backward(r.undo) {
		back()
	}
	r.undo = nil
}

func (r *reconciler) back(f func()) { r.undo = append(r.undo, f) }

// each calls f for the changes of one kind.
func each(p *state.Plan, k state.Kind, f func(state.Change) error) error {
	for _, c := range p.Changes {
		if c.Kind == k {
			if err := f(c); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *reconciler) portalsStep(ctx context.Context, p *state.Plan) error {
	err := each(p, state.KindPortal, func(c state.Change) error {
		if c.Verb == state.Create {
			return nil
		}
		old, _ := p.Old.Portal(c.Name)
		failed := r.failure(r.portals, c.Name)
		if failed == nil {
			if err := r.gw.RemovePortal(c.Name); err != nil {
				r.warnings = append(r.warnings, err.Error())
			}
		}
		r.note(r.portals, c.Name, nil)
		r.back(func() {
			if failed != nil {
				r.note(r.portals, c.Name, failed)
			} else if e := r.startPortal(context.WithoutCancel(ctx), old.Value); e != nil {
				r.log.Error("portal failed", "portal", c.Name, "err", e)
			}
		})
		return nil
	})
	if err != nil {
		return err
	}
	return each(p, state.KindPortal, func(c state.Change) error {
		if c.Verb == state.Delete {
			return nil
		}
		now, _ := p.New.Portal(c.Name)
		if e := r.startPortal(ctx, now.Value); e != nil {
			r.note(r.portals, c.Name, nil)
			return e
		}
		r.back(func() { r.gw.RemovePortal(c.Name) })
		return nil
	})
}

func (r *reconciler) volumesStep(ctx context.Context, p *state.Plan) error {
	return each(p, state.KindVolume, func(c state.Change) error {
		now, _ := p.New.Volume(c.Name)
		old, _ := p.Old.Volume(c.Name)
		switch {
		case c.Verb == state.Update && r.failure(r.volumes, c.Name) != nil:
			if r.known(c.Name) {
				return r.updateFailed(ctx, p, old.Value, now.Value)
			}
			was := r.failure(r.volumes, c.Name)
			if e := r.restart(ctx, p.Old, now.Value); e != nil {
				r.note(r.volumes, c.Name, was)
				return e
			}
			r.back(func() {
				for _, ref := range p.Old.UsersOf(c.Name) {
					r.gw.UnmapLUN(ref.Target, ref.Number)
				}
				r.dropExports(p.Old, c.Name)
				r.gw.RemoveVolume(context.WithoutCancel(ctx), c.Name)
				r.note(r.volumes, c.Name, was)
			})
		case c.Verb == state.Update:
			return r.updateVolume(ctx, old.Value, now.Value)
		}
		return nil
	})
}

func (r *reconciler) updateVolume(ctx context.Context, old, now state.Volume) error {
	cfg, err := r.volumeConfig(now, now.URL != old.URL)
	if err != nil {
		return volumeError(now, err)
	}
	err = r.gw.UpdateVolume(ctx, cfg)
	if err != nil && r.linger(err) {
		if i, gone := r.gw.Volume(now.Name); gone == nil && i.Pending {
			r.note(r.volumes, now.Name, volumeError(now, err)) // it is tried again
		}
	} else if err != nil {
		if i, gone := r.gw.Volume(now.Name); gone != nil || i.Pending {
			r.note(r.volumes, now.Name, volumeError(now, err))
		}
		return volumeError(now, err)
	}
	r.back(func() {
		cfg, err := r.volumeConfig(old, false)
		if err == nil {
			err = r.gw.UpdateVolume(context.WithoutCancel(ctx), cfg)
		}
		if err != nil && !r.linger(err) {
			r.log.Error("volume not put back as it was", "volume", old.Name, "err", err)
		}
	})
	return nil
}

// updateFailed changes a pending volume, whose store is opened by that.
func (r *reconciler) updateFailed(ctx context.Context, p *state.Plan, old, now state.Volume) error {
	was := r.failure(r.volumes, now.Name)
	cfg, err := r.volumeConfig(now, now.URL != old.URL)
	if err == nil {
		err = r.gw.UpdateVolume(ctx, cfg)
	}
	if err != nil && !r.linger(err) {
		return volumeError(now, err)
	}
	r.note(r.volumes, now.Name, nil)
	r.back(func() {
		ctx := context.WithoutCancel(ctx)
		for _, ref := range p.Old.UsersOf(now.Name) {
			r.gw.UnmapLUN(ref.Target, ref.Number)
		}
		r.dropExports(p.Old, now.Name)
		if err := r.gw.RemoveVolume(ctx, now.Name); err != nil && !r.linger(err) {
			r.log.Error("volume not put back as it was", "volume", old.Name, "err", err)
		}
		r.note(r.volumes, now.Name, was)
		r.pend(old, was)
		for _, ref := range p.Old.UsersOf(now.Name) {
			if err := r.mapLUN(ref.Target, state.LUN{Number: ref.Number, Volume: now.Name}); err != nil {
				r.log.Error("LUN failed", "target", ref.Target, "lun", ref.Number, "err", err)
			}
		}
		r.addExports(p.Old, now.Name)
	})
	return nil
}

// linger makes a warning of a store that hangs while it is let go.
func (r *reconciler) linger(err error) bool {
	var l *gateway.LingerError
	if !errors.As(err, &l) {
		return false
	}
	r.warnings = append(r.warnings, l.Error())
	return true
}

func (r *reconciler) targetsStep(_ context.Context, p *state.Plan) error {
	return each(p, state.KindTarget, func(c state.Change) error {
		now, _ := p.New.Target(c.Name)
		old, _ := p.Old.Target(c.Name)
		switch c.Verb {
		case state.Create:
			if err := r.addTarget(p.New, now.Value); err != nil {
				return targetError(c.Name, err)
			}
			r.back(func() { r.gw.RemoveTarget(context.Background(), c.Name) })
		case state.Update:
			if err := r.changeTarget(p.New, old.Value, now.Value); err != nil {
				if err := r.changeTarget(p.Old, now.Value, old.Value); err != nil {
					r.log.Error("target not put back as it was", "target", c.Name, "err", err)
				}
				return targetError(c.Name, err)
			}
			r.back(func() {
				if err := r.changeTarget(p.Old, now.Value, old.Value); err != nil {
					r.log.Error("target not put back as it was", "target", c.Name, "err", err)
				}
			})
		}
		return nil
	})
}

func (r *reconciler) addTarget(s *state.Snapshot, t state.Target) error {
	if err := r.gw.AddTarget(r.addTargetConfig(context.Background(), s, t)); err != nil {
		return err
	}
	for _, l := range t.LUNs {
		if err := r.mapLUN(t.Name, l); err != nil {
			r.gw.RemoveTarget(context.Background(), t.Name)
			return err
		}
	}
	return nil
}

// changeTarget goes from one target to another of the same name. It may be
// called on one that is half-way there, to go back.
func (r *reconciler) changeTarget(s *state.Snapshot, from, to state.Target) error {
	for _, l := range from.LUNs {
		if now, ok := to.LUN(l.Number); !ok || now.Volume != l.Volume {
			if err := r.gw.UnmapLUN(from.Name, l.Number); err != nil && !errors.Is(err, gateway.ErrNotFound) {
				return err
			}
		}
	}
	if err := r.gw.UpdateTarget(r.targetConfig(s, to)); err != nil {
		return err
	}
	for _, l := range to.LUNs {
		if was, ok := from.LUN(l.Number); !ok || was.Volume != l.Volume {
			if err := r.mapLUN(to.Name, l); err != nil && !errors.Is(err, gateway.ErrExists) {
				return err
			}
		}
	}
	return nil
}

// accountsStep brings changed secrets to the targets that use them, and the
// gateway's own settings.
func (r *reconciler) accountsStep(_ context.Context, p *state.Plan) error {
	changed := map[string]bool{}
	system := false
	for _, c := range p.Changes {
		switch c.Kind {
		case state.KindAccount:
			changed[c.Name] = true
		case state.KindSystem:
			system = true
		}
	}
	if len(changed) == 0 && !system {
		return nil
	}
	apply := func(s *state.Snapshot) error {
		sys := s.System().Value
		r.gw.SetOffline(sys.Offline || sys.Stopped())
		r.gw.SetDiscoveryAuth(discoveryPolicy(s))
		if len(changed) == 0 {
			return nil
		}
		for _, t := range s.Targets() {
			uses := changed[t.Value.OutgoingAccount]
			for _, u := range t.Value.Accounts {
				uses = uses || changed[u]
			}
			if uses {
				if err := r.gw.UpdateTarget(r.targetConfig(s, t.Value)); err != nil {
					return targetError(t.Value.Name, err)
				}
			}
		}
		return nil
	}
	r.back(func() {
		if err := apply(p.Old); err != nil {
			r.log.Error("accounts not put back as they were", "err", err)
		}
	})
	return apply(p.New)
}

// removeStep cannot fail: what does not go smoothly becomes a warning.
func (r *reconciler) removeStep(ctx context.Context, p *state.Plan) error {
	each(p, state.KindTarget, func(c state.Change) error {
		if c.Verb == state.Delete {
			if err := r.gw.RemoveTarget(ctx, c.Name); err != nil {
				r.log.Error("target not removed", "target", c.Name, "err", err)
			}
		}
		return nil
	})
	r.removeExports(p)
	each(p, state.KindVolume, func(c state.Change) error {
		if c.Verb != state.Delete {
			return nil
		}
		r.note(r.volumes, c.Name, nil)
		if !r.known(c.Name) {
			return nil
		}
		if err := r.gw.RemoveVolume(context.WithoutCancel(ctx), c.Name); err != nil && !r.linger(err) {
			r.warnings = append(r.warnings, err.Error())
		}
		return nil
	})
	return nil
}
