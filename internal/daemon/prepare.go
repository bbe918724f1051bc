package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"blockgate/backing"
	"blockgate/internal/state"
)

var _ state.Preparer = (*reconciler)(nil)

// Prepare implements state.Preparer: the stores of new volumes are made, and
// others grown, before the state says that they are so. A crash in between
// leaves a store that the next attempt takes as it is.
func (r *reconciler) Prepare(ctx context.Context, p *state.Plan) (abandon func(), err error) {
	err = each(p, state.KindVolume, func(c state.Change) error {
		if c.Verb != state.Create {
			return nil
		}
		now, _ := p.New.Volume(c.Name)
		fresh := isNew(now.Value)
		if e := r.startVolume(ctx, now.Value, !r.restore && !(r.declared && grownMemory(now.Value))); e != nil {
			if e.Code == state.CodeUnknownEngine && forced(p, c) {
				r.warnings = append(r.warnings, e.Error())
				r.back(func() { r.note(r.volumes, c.Name, nil) })
				return nil
			}
			r.note(r.volumes, c.Name, nil)
			return e
		}
		r.back(func() {
			if err := r.gw.RemoveVolume(context.WithoutCancel(ctx), c.Name); err != nil {
				r.log.Error("volume not taken back", "volume", c.Name, "err", err)
			}
		})
		if fresh {
			r.warnSpace(now.Value)
		}
		return nil
	})
	if err == nil {
		// Last, since volumes never shrink again.
		err = r.grow(ctx, p)
	}
	if err != nil {
		r.goBack()
		return nil, err
	}
	return r.goBack, nil
}

// grownMemory tells a RAM volume that is to be larger than its URL says, as one is
// exported that has grown: it begins with that size and is grown, as at a restart.
func grownMemory(v state.Volume) bool {
	scheme, rest := backing.SplitURL(v.URL)
	size, _, _ := strings.Cut(rest, ",")
	n, err := backing.ParseSize(size)
	return scheme == "ram" && err == nil && v.Size > n
}

// forced tells whether a volume is to be kept though nothing can serve it yet:
// it is failed until a daemon that has its engine starts.
func forced(p *state.Plan, c state.Change) bool {
	return slices.ContainsFunc(p.Ops, func(op state.Op) bool {
		return op.Kind == c.Kind && op.Verb != state.Delete && op.Force && (op.Name == c.Name || op.Volume != nil && op.Volume.Name == c.Name)
	})
}

// grow brings running volumes to the sizes they are to have.
func (r *reconciler) grow(ctx context.Context, p *state.Plan) error {
	return each(p, state.KindVolume, func(c state.Change) error {
		now, _ := p.New.Volume(c.Name)
		old, _ := p.Old.Volume(c.Name)
		if c.Verb != state.Update || now.Value.Size == old.Value.Size || now.Value.URL != old.Value.URL {
			return nil
		}
		v, err := r.gw.Volume(c.Name)
		if err != nil || v.Pending || v.Size >= now.Value.Size {
			return nil // failed, which the next steps see to, or there already
		}
		if err := r.gw.ResizeVolume(ctx, c.Name, now.Value.Size); err != nil {
			return resizeError(now.Value, err)
		}
		return nil
	})
}

func resizeError(v state.Volume, err error) *state.Error {
	e := volumeError(v, err)
	e.Code = state.CodeResizeFailed
	if errors.Is(err, backing.ErrNotSupported) {
		e.Hint = "volumes grow and never shrink; a store that cannot grow by itself is extended below, then: blockgate volume resize " + v.Name
	}
	return e
}

// checkSizes refuses to make a volume smaller.
func (r *reconciler) checkSizes(p *state.Plan) error {
	return each(p, state.KindVolume, func(c state.Change) error {
		now, _ := p.New.Volume(c.Name)
		old, _ := p.Old.Volume(c.Name)
		if c.Verb != state.Update || now.Value.Size == old.Value.Size || now.Value.Size == 0 || now.Value.URL != old.Value.URL {
			return nil
		}
		has := old.Value.Size
		if v, err := r.gw.Volume(c.Name); err == nil && !v.Pending {
			has = v.Size
		}
		if now.Value.Size >= has {
			return nil
		}
		return &state.Error{Class: state.Refused, Code: state.CodeResizeFailed, Object: fmt.Sprintf("volume %q", c.Name),
			Reason: fmt.Sprintf("has %s and cannot shrink to %s: what initiators wrote behind that would be lost",
				state.FormatSize(has), state.FormatSize(now.Value.Size)),
			Hint: "make another volume of that size"}
	})
}

// checkSessions refuses to take away, by a declaration or a rollback, what
// initiators that are logged in use.
func (r *reconciler) checkSessions(p *state.Plan) error {
	using := map[string][]string{}
	for _, s := range r.gw.Sessions() {
		from := ""
		if len(s.Conns) > 0 {
			from = " from " + s.Conns[0].Remote.String()
		}
		using[s.Target] = append(using[s.Target], fmt.Sprintf("%s%s (session %d)", s.Initiator, from, s.ID))
	}
	if len(using) == 0 {
		return nil
	}
	refuse := func(code, what, why, target string) error {
		if len(using[target]) == 0 {
			return nil
		}
		return &state.Error{Class: state.Conflict, Code: code, Object: what,
			Reason: fmt.Sprintf("%s, while target %q has sessions: %s", why, target, some(using[target])),
			Hint:   "log them out, or go on with --force"}
	}
	for _, c := range p.Changes {
		switch {
		case c.Kind == state.KindTarget && c.Verb == state.Delete:
			if err := refuse(state.CodeTargetActive, fmt.Sprintf("target %q", c.Name), "would be deleted", c.Name); err != nil {
				return err
			}
		case c.Kind == state.KindTarget && c.Verb == state.Update:
			old, _ := p.Old.Target(c.Name)
			now, _ := p.New.Target(c.Name)
			for _, l := range old.Value.LUNs {
				if is, ok := now.Value.LUN(l.Number); ok && is.Volume == l.Volume {
					continue
				}
				if err := refuse(state.CodeLUNActive, fmt.Sprintf("LUN %d of target %q", l.Number, c.Name), "would be taken away", c.Name); err != nil {
					return err
				}
			}
		case c.Kind == state.KindVolume && c.Verb == state.Update:
			old, _ := p.Old.Volume(c.Name)
			now, _ := p.New.Volume(c.Name)
			why := replaced(old.Value, now.Value)
			if why == "" {
				continue
			}
			for _, ref := range p.Old.UsersOf(c.Name) {
				if err := refuse(state.CodeVolumeActive, fmt.Sprintf("volume %q", c.Name), why, ref.Target); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// replaced says what of a change an initiator could not stand.
func replaced(old, now state.Volume) string {
	switch {
	case old.URL != now.URL:
		return "would become another store"
	case old.BlockSize != now.BlockSize:
		return "would change its block size"
	case !old.ReadOnly && now.ReadOnly, !old.Unit.ReadOnly && now.Unit.ReadOnly:
		return "would become read-only"
	case !old.Unit.Offline && now.Unit.Offline:
		return "would go offline"
	case old.Unit.Type != now.Unit.Type, old.Unit.NAA != now.Unit.NAA, old.Unit.Serial != now.Unit.Serial:
		return "would become another disk"
	}
	return ""
}

// some names a few of many.
func some(list []string) string {
	const few = 5
	more := ""
	if len(list) > few {
		more = fmt.Sprintf(" and %d more", len(list)-few)
		list = list[:few]
	}
	out := list[0]
	for _, s := range list[1:] {
		out += ", " + s
	}
	return out + more
}

// isNew tells whether a file volume's file will be made.
func isNew(v state.Volume) bool {
	scheme, path := backing.SplitURL(v.URL)
	if scheme != "file" || v.Size == 0 {
		return false
	}
	missing, _ := soon(func() bool {
		_, err := os.Stat(path)
		return errors.Is(err, fs.ErrNotExist)
	})
	return missing
}

// patience is how long a file system is waited for that is asked for no more than
// a warning. One on a server that is gone keeps its callers for ever.
const patience = 2 * time.Second

// soon gives what f says, or reports false when that takes too long.
func soon[T any](f func() T) (v T, ok bool) {
	answer := make(chan T, 1)
	go func() { answer <- f() }()
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case v = <-answer:
		return v, true
	case <-t.C:
		return v, false
	}
}

// warnSpace warns of a new file that is larger than what its file system has
// free: it is sparse, and writes fail when the space is used up.
func (r *reconciler) warnSpace(v state.Volume) {
	_, path := backing.SplitURL(v.URL)
	dir := filepath.Dir(path)
	free, ok := soon(func() int64 {
		if n, ok := freeSpace(dir); ok {
			return n
		}
		return math.MaxInt64
	})
	if !ok || v.Size <= free {
		return
	}
	r.warnings = append(r.warnings, fmt.Sprintf("volume %q: %s are more than the %s that are free in %s: the file is sparse, and writes will fail when that is used up",
		v.Name, state.FormatSize(v.Size), approx(free), dir))
}

// approx is a number of bytes for people.
func approx(n int64) string {
	unit, f := 0, float64(n)
	for f >= 1024 && unit < 6 {
		f /= 1024
		unit++
	}
	if unit == 0 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%.1f%ciB", f, "KMGTPE"[unit-1])
}
