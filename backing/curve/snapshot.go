package curve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"blockgate/backing"
	"blockgate/internal/rangelock"
)

var _ backing.Snapshotter = (*Store)(nil)

// CreateSnapshot makes a snapshot. It returns once the snapshot is taken, that is
// when writes do not change it any more: with Curve's defaults that is 10 s, which
// they wait. Longer than Config.MaxPause they do not; then it is backing.ErrBusy.
// Curve goes on to copy the snapshot to its object storage, and no clone can be
// made before that has ended.
func (s *Store) CreateSnapshot(ctx context.Context, name string) (backing.Snapshot, error) {
	if err := s.serves(true); err != nil {
		return backing.Snapshot{}, err
	}
	snap, err := s.createSnapshot(ctx, name)
	if err != nil {
		return backing.Snapshot{}, fmt.Errorf("curve %s: snapshot %q: %w", s.loc, name, err)
	}
	return snap, nil
}

func (s *Store) createSnapshot(ctx context.Context, name string) (backing.Snapshot, error) {
	if name == "" || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }) {
		return backing.Snapshot{}, errors.New("want a name of 1 to 255 bytes without control characters")
	}
	switch _, err := s.find(ctx, name); {
	case err == nil:
		return backing.Snapshot{}, backing.ErrExist
	case !errors.Is(err, backing.ErrNotExist):
		return backing.Snapshot{}, err
	}
	begin := time.Now()
	tctx, cancel := context.WithTimeoutCause(ctx, s.snaps.maxPause,
		fmt.Errorf("%w: it was not taken within %v, and writes are not held up for longer", backing.ErrBusy, s.snaps.maxPause))
	defer cancel()
	h := new(rangelock.Hold)
	if err := s.ranges.Lock(tctx, nil, h, 0, rangelock.Everything, true); err != nil {
		return backing.Snapshot{}, err
	}
	info, asked, err := s.take(tctx, name)
	s.ranges.Unlock(h)
	if err == nil {
		snap := snapshotOf(&info)
		snap.Pause = time.Since(begin)
		return snap, nil
	}
	if errors.Is(err, context.DeadlineExceeded) && tctx.Err() != nil {
		err = context.Cause(tctx)
	}
	if asked {
		// Nobody shall find a snapshot that we have not promised.
		if err2 := s.abandon(context.WithoutCancel(ctx), name, info.UUID); err2 != nil {
			err = fmt.Errorf("%w; what there is of it could not be removed: %w", err, err2)
		}
	}
	return backing.Snapshot{}, err
}

// take makes a snapshot with the whole volume held. asked says that there may be
// something of it although it failed.
func (s *Store) take(ctx context.Context, name string) (info snapshotInfo, asked bool, err error) {
	if err := s.cl.flush(ctx); err != nil {
		return info, false, err
	}
	a, err := s.snaps.do(ctx, "CreateSnapshot", "File", s.loc.Volume, "Name", name)
	if err == nil && a.UUID == "" {
		err = errors.New("snapshot and clone service: it names no id")
	}
	if err != nil {
		return info, !errors.As(err, new(*serviceError)), err
	}
	// The service answers before anything is done. When the snapshot has its
	// number, libcurve writes into it until it has heard of that, which the
	// service gives it two leases of time for; only then there is progress.
	err = s.snaps.until(ctx, func() (bool, error) {
		i, ok, err := s.snaps.byUUID(ctx, a.UUID)
		info = i
		switch {
		case err != nil:
			return false, err
		case !ok || i.Status != snapDone && i.Status != snapPending:
			return false, errors.New("the service gave it up")
		}
		return i.Status == snapDone || i.Progress >= progressTaken, nil
	})
	info.UUID = a.UUID
	return info, true, err
}

// abandon removes what there is of a snapshot that failed. Without an id it is the
// one of that name, which was not there before.
func (s *Store) abandon(ctx context.Context, name, uuid string) error {
	ctx, cancel := context.WithTimeout(ctx, s.snaps.http.Timeout)
	defer cancel()
	if uuid == "" {
		i, err := s.find(ctx, name)
		if errors.Is(err, backing.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		uuid = i.UUID
	}
	_, err := s.snaps.do(ctx, "CancelSnapshot", "File", s.loc.Volume, "UUID", uuid)
	if err != nil {
		_, err = s.snaps.do(ctx, "DeleteSnapshot", "File", s.loc.Volume, "UUID", uuid)
	}
	if errors.Is(err, backing.ErrNotExist) {
		return nil
	}
	return err
}

func snapshotOf(i *snapshotInfo) backing.Snapshot {
	return backing.Snapshot{Name: i.Name, ID: i.UUID, Created: time.UnixMicro(int64(i.Time)), Size: int64(i.FileLength)}
}

// Snapshots lists the volume's snapshots, also those that are still being copied.
// One of them may have failed: a clone of it then says so.
func (s *Store) Snapshots(ctx context.Context) ([]backing.Snapshot, error) {
	if err := s.serves(false); err != nil {
		return nil, err
	}
	infos, err := s.snaps.snapshots(ctx)
	if err != nil {
		return nil, fmt.Errorf("curve %s: snapshots: %w", s.loc, err)
	}
	slices.SortStableFunc(infos, func(a, b snapshotInfo) int { return cmp.Compare(a.Time, b.Time) })
	list := make([]backing.Snapshot, len(infos))
	for i := range infos {
		list[i] = snapshotOf(&infos[i])
	}
	return list, nil
}

// find is a snapshot of the volume by its name or id.
func (s *Store) find(ctx context.Context, name string) (snapshotInfo, error) {
	infos, err := s.snaps.snapshots(ctx)
	if err != nil {
		return snapshotInfo{}, err
	}
	for _, by := range [...]func(*snapshotInfo) string{
		func(i *snapshotInfo) string { return i.Name },
		func(i *snapshotInfo) string { return i.UUID },
	} {
		for i := range infos {
			if by(&infos[i]) == name {
				return infos[i], nil
			}
		}
	}
	return snapshotInfo{}, backing.ErrNotExist
}

// DeleteSnapshot deletes a snapshot by its name or id, and returns when it is
// gone. If ctx ends before, Curve goes on deleting it.
func (s *Store) DeleteSnapshot(ctx context.Context, name string) error {
	if err := s.serves(true); err != nil {
		return err
	}
	if err := s.deleteSnapshot(ctx, name); err != nil {
		return fmt.Errorf("curve %s: delete snapshot %q: %w", s.loc, name, err)
	}
	return nil
}

func (s *Store) deleteSnapshot(ctx context.Context, name string) error {
	i, err := s.find(ctx, name)
	if err != nil {
		return err
	}
	action := "DeleteSnapshot"
	if i.Status == snapPending {
		action = "CancelSnapshot" // it is being copied; this ends that and removes it
	}
	if i.Status == snapDone || i.Status == snapPending || i.Status == snapError {
		if _, err := s.snaps.do(ctx, action, "File", s.loc.Volume, "UUID", i.UUID); err != nil {
			return err
		}
	}
	return s.snaps.until(ctx, func() (bool, error) {
		now, ok, err := s.snaps.byUUID(ctx, i.UUID)
		if err == nil && ok && now.Status == snapError {
			err = errors.New("the service failed to delete it")
		}
		return !ok, err
	})
}

// Clone makes a volume beside this one from a snapshot of it, by its name or id.
// It waits until the snapshot is copied. The clone can be used at once, while
// Curve brings its data along as it is read; Flatten brings all of it. The
// location has the options of this store.
func (s *Store) Clone(ctx context.Context, snapshot, name string) (string, error) {
	if err := s.serves(true); err != nil {
		return "", err
	}
	location, err := s.clone(ctx, snapshot, name)
	if err != nil {
		return "", fmt.Errorf("curve %s: clone of snapshot %q as %q: %w", s.loc, snapshot, name, err)
	}
	return location, nil
}

func (s *Store) clone(ctx context.Context, snapshot, name string) (string, error) {
	l := s.loc
	l.Volume = "/" + strings.TrimPrefix(name, "/")
	back, err := ParseLocation(l.String())
	if err != nil || back.Volume != l.Volume || l.Volume == "/" {
		return "", errors.New("a volume cannot have this name")
	}
	from, err := s.find(ctx, snapshot)
	if err != nil {
		return "", err
	}
	err = s.snaps.until(ctx, func() (bool, error) {
		i, ok, err := s.snaps.byUUID(ctx, from.UUID)
		switch {
		case err != nil:
			return false, err
		case !ok:
			return false, backing.ErrNotExist
		case i.Status != snapDone && i.Status != snapPending:
			return false, errors.New("the snapshot failed or is being deleted")
		}
		return i.Status == snapDone, nil
	})
	if err != nil {
		return "", fmt.Errorf("the snapshot is not copied yet: %w", err)
	}
	a, err := s.snaps.do(ctx, "Clone", "Source", from.UUID, "Destination", l.Volume, "Lazy", "true")
	if err != nil {
		return "", err
	}
	err = s.snaps.until(ctx, func() (bool, error) {
		t, err := s.snaps.task(ctx, "UUID", a.UUID)
		if err == nil && (t.TaskStatus == taskError || t.TaskStatus == taskErrorCleaning) {
			err = errors.New("the service failed to make it")
			if _, err2 := s.snaps.do(ctx, "CleanCloneTask", "UUID", a.UUID); err2 != nil {
				err = fmt.Errorf("%w; its task %s could not be removed: %w", err, a.UUID, err2)
			}
		}
		return t.TaskStatus == taskDone || t.TaskStatus == taskMetaInstalled, err
	})
	if err != nil {
		return "", err
	}
	return l.String(), nil
}

// Flatten makes a clone independent of the snapshot it was made from, by bringing
// all data along. It returns when that is done; if ctx ends before, Curve goes on.
// It is backing.ErrNotExist if the volume is no clone.
func (s *Store) Flatten(ctx context.Context) error {
	if err := s.serves(true); err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("curve %s: flatten: %w", s.loc, err) }
	t, err := s.snaps.task(ctx, "File", s.loc.Volume)
	if err != nil {
		return fail(err)
	}
	if t.TaskStatus == taskMetaInstalled {
		if _, err := s.snaps.do(ctx, "Flatten", "UUID", t.UUID); err != nil {
			return fail(err)
		}
	}
	err = s.snaps.until(ctx, func() (bool, error) {
		t, err := s.snaps.task(ctx, "UUID", t.UUID)
		if err == nil && (t.TaskStatus == taskError || t.TaskStatus == taskErrorCleaning) {
			err = errors.New("the service failed")
		}
		return t.TaskStatus == taskDone, err
	})
	if err != nil {
		return fail(err)
	}
	return nil
}

// serves checks that a call to the service makes sense.
func (s *Store) serves(modify bool) error {
	if err := s.check(0, 0, modify); err != nil {
		return err
	}
	if s.snaps == nil {
		return fmt.Errorf("curve %s: %w without the address of the snapshot and clone service (option snapshot=HOST:PORT)", s.loc, backing.ErrNotSupported)
	}
	return nil
}
