package rbd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"blockgate/backing"
	"blockgate/cmd/blockgate-rbd/internal/ceph"
)

func checkName(kind, name string) error {
	if name == "" || len(name) > 255 || strings.ContainsAny(name, "@/?\x00") {
		return fmt.Errorf("rbd: %q is no name for %s: up to 255 bytes without @, / and ?", name, kind)
	}
	return nil
}

// CreateSnapshot: librbd holds writes up, waits for those under way and makes the
// snapshot at the cluster.
func (s *Store) CreateSnapshot(_ context.Context, name string) (backing.Snapshot, error) {
	if err := checkName("a snapshot", name); err != nil {
		return backing.Snapshot{}, err
	}
	if err := s.check(0, 0, true); err != nil {
		return backing.Snapshot{}, err
	}
	began := time.Now()
	if err := ceph.Errno(s.lib.SnapCreate(s.image, name)); err != nil {
		return backing.Snapshot{}, s.wrap("snapshot "+name, s.fate(err, true))
	}
	pause := time.Since(began)
	list, err := s.snapshots()
	if err != nil {
		return backing.Snapshot{}, err
	}
	for _, x := range list {
		if x.Name == name {
			x.Pause = pause
			return x, nil
		}
	}
	return backing.Snapshot{}, fmt.Errorf("rbd: snapshot %s@%s was deleted at once: %w", s.spec, name, backing.ErrNotExist)
}

// Snapshots lists those that users have made.
func (s *Store) Snapshots(context.Context) ([]backing.Snapshot, error) {
	if err := s.check(0, 0, false); err != nil {
		return nil, err
	}
	return s.snapshots()
}

// maxSnapshots is more than a cluster makes of one image.
const maxSnapshots = 1 << 16

func (s *Store) snapshots() ([]backing.Snapshot, error) {
	n := int32(64)
	list := make([]ceph.Snap, n)
	r := s.lib.SnapList(s.image, &list[0], &n)
	for ceph.Errno(r) == syscall.ERANGE && n > 0 && n <= maxSnapshots {
		list = make([]ceph.Snap, n)
		r = s.lib.SnapList(s.image, &list[0], &n)
	}
	if err := ceph.Errno(r); err != nil {
		return nil, s.wrap("listing snapshots", s.fate(err, false))
	}
	if r == 0 {
		return nil, nil
	}
	defer s.lib.SnapListEnd(&list[0])
	var out []backing.Snapshot
	for _, x := range list[:min(int(r), len(list))] {
		var kind int32
		if s.lib.SnapNamespaceType(s.image, x.ID, &kind) >= 0 && kind != ceph.SnapNamespaceUser {
			continue // deleted, and kept by clones; or of a mirror or group
		}
		snap := backing.Snapshot{Name: ceph.GoString(x.Name), Size: int64(x.Size)}
		snap.ID = snap.Name
		var t syscall.Timespec
		if s.lib.SnapGetTimestamp(s.image, x.ID, &t) >= 0 {
			snap.Created = time.Unix(t.Sec, t.Nsec).UTC()
		}
		out = append(out, snap)
	}
	return out, nil
}

// DeleteSnapshot also takes the protection off that Clone has put on.
func (s *Store) DeleteSnapshot(_ context.Context, name string) error {
	if err := checkName("a snapshot", name); err != nil {
		return err
	}
	if err := s.check(0, 0, true); err != nil {
		return err
	}
	var protected int32
	if err := ceph.Errno(s.lib.SnapIsProtected(s.image, name, &protected)); err != nil {
		return s.wrap("snapshot "+name, s.fate(err, true))
	}
	if protected != 0 {
		if err := ceph.Errno(s.lib.SnapUnprotect(s.image, name)); err != nil {
			return s.wrap("unprotecting snapshot "+name, s.fate(err, true))
		}
	}
	return s.wrap("deleting snapshot "+name, s.fate(ceph.Errno(s.lib.SnapRemove(s.image, name)), true))
}

// Clone makes an image of the same pool that has the snapshot as its parent.
// Where clusters want it so (clones of the first kind), the snapshot is protected
// for that and cannot be deleted as long as there are clones of it.
func (s *Store) Clone(_ context.Context, snapshot, name string) (string, error) {
	if err := checkName("a snapshot", snapshot); err != nil {
		return "", err
	}
	if err := checkName("an image", name); err != nil {
		return "", err
	}
	if err := s.check(0, 0, false); err != nil {
		return "", err
	}
	var opts uintptr
	s.lib.ImageOptionsCreate(&opts)
	defer s.lib.ImageOptionsFree(opts)
	clone := func() error {
		return ceph.Errno(s.lib.Clone3(s.io, s.location.Image, snapshot, s.io, name, opts))
	}
	err := clone()
	if errors.Is(err, syscall.EINVAL) {
		if perr := ceph.Errno(s.lib.SnapProtect(s.image, snapshot)); perr != nil && perr != syscall.EBUSY {
			return "", s.wrap("protecting snapshot "+snapshot, s.fate(perr, true))
		}
		err = clone()
	}
	if err != nil {
		return "", s.wrap("cloning snapshot "+snapshot+" to "+name, s.fate(err, false))
	}
	return s.location.Clone(name), nil
}
