package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"blockgate/backing"
	"blockgate/gateway"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

// maxSnapshotName is the longest name of a snapshot in bytes, in any engine.
const maxSnapshotName = 255

func snapshotObject(volume, name string) string {
	return fmt.Sprintf("snapshot %q of volume %q", name, volume)
}

// runningVolume is a volume that snapshots can be asked of.
func (d *Daemon) runningVolume(ctx context.Context, name string) (v1.Volume, error) {
	v, err := d.Volume(ctx, name)
	if err == nil && v.Status.State == v1.Failed {
		err = &state.Error{Class: state.Conflict, Code: state.CodeSnapshotFailed, Object: fmt.Sprintf("volume %q", name),
			Reason: "does not run: " + v.Status.Error, Hint: "blockgate volume retry " + name}
	}
	return v, err
}

// snapshotError tells why an engine did not do what was asked of a snapshot.
func snapshotError(v v1.Volume, snapshot string, err error) *state.Error {
	e := &state.Error{Class: state.Refused, Code: state.CodeSnapshotFailed, Object: snapshotObject(v.Name, snapshot), Reason: rootReason(v.Volume, err), Err: err}
	if snapshot == "" {
		e.Object = fmt.Sprintf("snapshots of volume %q", v.Name)
	}
	var hang *gateway.HangError
	switch {
	case errors.As(err, &hang):
		e.Reason = fmt.Sprintf("the store has not answered for %v; %s may still be carried out", hang.After, hang.Doing)
		e.Hint = "look whether it was, once the store answers: blockgate snapshot list " + v.Name
	case errors.Is(err, backing.ErrNotSupported) && v.Status.ReadOnly:
		e.Code, e.Reason, e.Hint = state.CodeNoSnapshots, "the store is open read-only, so that no snapshots are made or deleted through it", "use the volume it is a snapshot of, or serve it for writing"
	case errors.Is(err, backing.ErrNotSupported):
		e.Code = state.CodeNoSnapshots
		if !strings.Contains(err.Error(), "snapshot=") {
			e.Reason = fmt.Sprintf("a store of the engine %q has no snapshots", cmp.Or(v.Status.Engine, "none"))
		}
		e.Hint = noSnapshotsHint(v)
	case errors.Is(err, backing.ErrExist):
		e.Class, e.Code, e.Reason, e.Hint = state.Conflict, state.CodeSnapshotExists, "exists already", "blockgate snapshot list "+v.Name
	case errors.Is(err, backing.ErrNotExist):
		e.Class, e.Code, e.Reason, e.Hint = state.NotFound, state.CodeSnapshotNotFound, "does not exist", "blockgate snapshot list "+v.Name
	case errors.Is(err, backing.ErrBusy):
		e.Class, e.Hint = state.Conflict, "try again later"
	case errors.Is(err, context.DeadlineExceeded):
		e.Hint = "the engine needs more time; look what came of it: blockgate snapshot list " + v.Name
	case errors.Is(err, backing.ErrNoSpace):
		e.Hint = "free some space in the engine"
	case errors.Is(err, gateway.ErrNotFound):
		e.Class, e.Code, e.Object, e.Reason = state.Conflict, state.CodeSnapshotFailed, fmt.Sprintf("volume %q", v.Name), "does not run any more"
	}
	return e
}

const enginesWithSnapshots = "sheepdog and rbd volumes have snapshots, and curve volumes with ?snapshot=HOST:PORT"

// noSnapshotsHint says what else there is to be done.
func noSnapshotsHint(v v1.Volume) string {
	switch v.Status.Engine {
	case "file":
		return "while no initiator writes, a file is copied by: cp --reflink=auto --sparse=always; " + enginesWithSnapshots
	case "curve":
		return "name Curve's snapshot and clone service in the volume's store: …?snapshot=HOST:PORT"
	}
	return enginesWithSnapshots
}

// checkSnapshotName refuses what no engine could have; the rest is the engine's.
func checkSnapshotName(volume, name string) error {
	bad := ""
	switch {
	case name == "":
		bad = "it needs a name"
	case len(name) > maxSnapshotName:
		bad = fmt.Sprintf("a name has at most %d bytes", maxSnapshotName)
	case strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) || strings.ContainsAny(name, "/@"):
		bad = "a name has printable characters, and neither / nor @"
	default:
		return nil
	}
	return &state.Error{Class: state.Usage, Code: state.CodeInvalidName, Object: snapshotObject(volume, name), Reason: bad, Hint: "for example: before-upgrade"}
}

func snapshotInfo(volume string, s backing.Snapshot) v1.Snapshot {
	return v1.Snapshot{Volume: volume, Name: s.Name, ID: s.ID, Created: s.Created.UTC(), Size: s.Size, PauseMs: float64(s.Pause.Round(time.Microsecond)) / 1e6}
}

// CreateSnapshot implements api.Service.
func (d *Daemon) CreateSnapshot(ctx context.Context, volume, name string) (v1.Snapshot, error) {
	if err := checkSnapshotName(volume, name); err != nil {
		return v1.Snapshot{}, err
	}
	v, err := d.runningVolume(ctx, volume)
	if err != nil {
		return v1.Snapshot{}, err
	}
	// What was begun is finished, also if the client hangs up.
	s, err := d.gw.CreateSnapshot(context.WithoutCancel(ctx), volume, name)
	if err != nil {
		return v1.Snapshot{}, snapshotError(v, name, err)
	}
	d.log.Info("snapshot made", "volume", volume, "snapshot", name, "pause", s.Pause)
	return snapshotInfo(volume, s), nil
}

// Snapshots implements api.Service.
func (d *Daemon) Snapshots(ctx context.Context, volume string) ([]v1.Snapshot, error) {
	v, err := d.runningVolume(ctx, volume)
	if err != nil {
		return nil, err
	}
	list, err := d.gw.Snapshots(ctx, volume)
	if err != nil {
		return nil, snapshotError(v, "", err)
	}
	out := make([]v1.Snapshot, len(list))
	for i, s := range list {
		out[i] = snapshotInfo(volume, s)
	}
	return out, nil
}

// To list the snapshots of all volumes, so many are asked at the same time, and all
// together for so long.
const (
	listers      = 16
	listPatience = 20 * time.Second
)

// AllSnapshots implements api.Service.
func (d *Daemon) AllSnapshots(ctx context.Context) v1.Snapshots {
	ctx, cancel := context.WithTimeout(ctx, listPatience)
	defer cancel()
	out := v1.Snapshots{Snapshots: []v1.Snapshot{}}
	var (
		mu    sync.Mutex
		wg    sync.WaitGroup
		slots = make(chan struct{}, listers)
	)
	for _, v := range d.gw.Volumes() {
		if v.Pending || !v.Snapshots {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			list, err := d.Snapshots(ctx, v.Name)
			mu.Lock()
			defer mu.Unlock()
			out.Snapshots = append(out.Snapshots, list...)
			if err != nil {
				out.Warnings = append(out.Warnings, err.Error())
			}
		})
	}
	wg.Wait()
	// Those of one volume stay in their order.
	slices.SortStableFunc(out.Snapshots, func(a, b v1.Snapshot) int { return strings.Compare(a.Volume, b.Volume) })
	slices.Sort(out.Warnings)
	return out
}

// DeleteSnapshot implements api.Service.
func (d *Daemon) DeleteSnapshot(ctx context.Context, volume, name string) error {
	if err := checkSnapshotName(volume, name); err != nil {
		return err
	}
	v, err := d.runningVolume(ctx, volume)
	if err != nil {
		return err
	}
	if user := d.servedAs(v.URL, name); user != "" {
		return &state.Error{Class: state.Conflict, Code: state.CodeSnapshotInUse, Object: snapshotObject(volume, name),
			Reason: fmt.Sprintf("is served as volume %q", user), Hint: "blockgate volume delete " + user}
	}
	if err := d.gw.DeleteSnapshot(context.WithoutCancel(ctx), volume, name); err != nil {
		e := snapshotError(v, name, err)
		if errors.Is(err, backing.ErrBusy) {
			e.Code, e.Hint = state.CodeSnapshotInUse, "clones that the engine has not made independent of it keep it; flatten or delete them with the engine's tools, or try again later"
		}
		return e
	}
	d.log.Info("snapshot deleted", "volume", volume, "snapshot", name)
	return nil
}

// servedAs is a volume whose store is a snapshot of another one's: its URL is the
// other's and the snapshot's name or id after a colon, without the options.
func (d *Daemon) servedAs(url, snapshot string) string {
	base, _, _ := strings.Cut(url, "?")
	for _, v := range d.st.Snapshot().Volumes() {
		if u, _, _ := strings.Cut(v.Value.URL, "?"); u == base+":"+snapshot {
			return v.Value.Name
		}
	}
	return ""
}

// CloneVolume implements api.Service. The engine makes the clone and then one
// change of the state makes the volume. Where that fails the error names what
// there is in the engine.
func (d *Daemon) CloneVolume(ctx context.Context, volume string, req v1.Clone) (out v1.Cloned, err error) {
	ctx = context.WithoutCancel(ctx)
	v, err := d.runningVolume(ctx, volume)
	if err != nil {
		return out, err
	}
	if req.Snapshot == "" {
		return out, &state.Error{Class: state.Usage, Code: state.CodeInvalidRequest, Object: fmt.Sprintf("clone of volume %q", volume),
			Reason: "no snapshot is named that it shall begin with", Hint: fmt.Sprintf("blockgate volume clone %s@SNAPSHOT NAME, or add --snapshot SNAPSHOT to make one first", volume)}
	}
	if err := checkSnapshotName(volume, req.Snapshot); err != nil {
		return out, err
	}
	// What the state would refuse is refused before anything is made.
	next := cloneOf(v.Volume, req.Name)
	if _, err := d.st.Snapshot().Plan([]state.Op{{Verb: state.Create, Kind: state.KindVolume, Volume: &next}}); err != nil {
		return out, err
	}
	made := ""
	if req.MakeSnapshot {
		s, err := d.CreateSnapshot(ctx, volume, req.Snapshot)
		if err != nil {
			return out, err
		}
		out.Snapshot = &s
		made = fmt.Sprintf("; the snapshot %q that was made for it stays", req.Snapshot)
	}
	url, err := d.gw.Clone(ctx, volume, req.Snapshot, cmp.Or(req.StoreName, req.Name))
	if err != nil {
		return out, cloneError(v, req, made, err)
	}
	next.URL = url
	if _, err := d.Apply(ctx, []state.Op{{Verb: state.Create, Kind: state.KindVolume, Volume: &next}}); err != nil {
		e := *state.ErrorOf(err)
		e.Reason += fmt.Sprintf("; the clone was made in the engine, as %s, and is no volume%s", url, made)
		e.Hint = fmt.Sprintf("make it one: blockgate volume create %s '%s'; or delete it with the engine's own tools", req.Name, url)
		e.Err = err
		return out, &e
	}
	d.log.Info("volume cloned", "volume", volume, "snapshot", req.Snapshot, "clone", req.Name, "url", url)
	out.Volume, err = d.Volume(ctx, req.Name)
	return out, err
}

func cloneError(v v1.Volume, req v1.Clone, made string, err error) *state.Error {
	e := snapshotError(v, req.Snapshot, err)
	var hang *gateway.HangError
	switch {
	case errors.Is(err, backing.ErrExist):
		e.Code, e.Object = state.CodeCloneExists, fmt.Sprintf("clone %q of volume %q", cmp.Or(req.StoreName, req.Name), v.Name)
		e.Reason, e.Hint = "the engine has a store of this name already", "choose another: --store-name NAME"
	case errors.As(err, &hang), errors.Is(err, context.DeadlineExceeded):
		e.Hint = "look in the engine whether the clone was made; a snapshot that is still being copied can be cloned later"
	}
	e.Reason += made
	return e
}

// cloneOf is the volume that a clone becomes: as the other one, with an identity
// of its own. It has no size, so that a clone which is gone is never made anew as
// an empty store.
func cloneOf(v state.Volume, name string) state.Volume {
	v.Name, v.Size, v.Bstype, v.BackingStore, v.Scope = name, 0, "", "", ""
	v.ReadOnly = false
	v.Unit.Serial, v.Unit.NAA, v.Unit.SCSIID = "", "", ""
	return v
}
