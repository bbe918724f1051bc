// Package ceph has the calls of librados and librbd that a block store needs, as
// Go functions. The libraries are loaded at run time. Names, arguments and return
// values are those of rados/librados.h and rbd/librbd.h; functions that return
// int have a negative errno for an error. Handles are uintptr, as the memory
// behind them is C's.
package ceph

import (
	"fmt"
	"sync"
	"syscall"
	"unsafe"

	"github.com/ebitengine/purego"
)

// Lib is the two libraries. All functions are safe for concurrent use as far as
// the libraries say so of theirs.
type Lib struct {
	RadosVersion           func(major, minor, extra *int32)                       `c:"rados_version"`
	RadosCreate2           func(c *uintptr, cluster, name string, f uint64) int32 `c:"rados_create2"`
	RadosConfReadFile      func(c uintptr, path *byte) int32                      `c:"rados_conf_read_file"`
	RadosConfParseEnv      func(c uintptr, name *byte) int32                      `c:"rados_conf_parse_env"`
	RadosConfSet           func(c uintptr, option, value string) int32            `c:"rados_conf_set"`
	RadosConnect           func(c uintptr) int32                                  `c:"rados_connect"`
	RadosShutdown          func(c uintptr)                                        `c:"rados_shutdown"`
	RadosIoctxCreate       func(c uintptr, pool string, io *uintptr) int32        `c:"rados_ioctx_create"`
	RadosIoctxDestroy      func(io uintptr)                                       `c:"rados_ioctx_destroy"`
	RadosIoctxSetNamespace func(io uintptr, ns string)                            `c:"rados_ioctx_set_namespace"`

	GetXattr func(io uintptr, object, name string, value *byte, n uintptr) int32 `c:"rados_getxattr"`
	SetXattr func(io uintptr, object, name string, value *byte, n uintptr) int32 `c:"rados_setxattr"`

	Version            func(major, minor, extra *int32)                                                `c:"rbd_version"`
	ImageOptionsCreate func(o *uintptr)                                                                `c:"rbd_image_options_create"`
	ImageOptionsFree   func(o uintptr)                                                                 `c:"rbd_image_options_destroy"`
	Create4            func(io uintptr, name string, size uint64, opts uintptr) int32                  `c:"rbd_create4"`
	Clone3             func(io uintptr, name, snap string, cio uintptr, cname string, o uintptr) int32 `c:"rbd_clone3"`
	Open               func(io uintptr, name string, image *uintptr, snap *byte) int32                 `c:"rbd_open"`
	OpenReadOnly       func(io uintptr, name string, image *uintptr, snap *byte) int32                 `c:"rbd_open_read_only"`
	Close              func(image uintptr) int32                                                       `c:"rbd_close"`
	Stat               func(image uintptr, st *Stat, size uintptr) int32                               `c:"rbd_stat"`
	GetSize            func(image uintptr, size *uint64) int32                                         `c:"rbd_get_size"`
	GetFeatures        func(image uintptr, features *uint64) int32                                     `c:"rbd_get_features"`
	GetStripeUnit      func(image uintptr, n *uint64) int32                                            `c:"rbd_get_stripe_unit"`
	Resize             func(image uintptr, size uint64) int32                                          `c:"rbd_resize"`

	LockAcquire   func(image uintptr, mode int32) int32                                                      `c:"rbd_lock_acquire"`
	LockRelease   func(image uintptr) int32                                                                  `c:"rbd_lock_release"`
	LockGetOwners func(image uintptr, mode *int32, owners *uintptr, n *uintptr) int32                        `c:"rbd_lock_get_owners"`
	LockOwnersEnd func(owners *uintptr, n uintptr)                                                           `c:"rbd_lock_get_owners_cleanup"`
	LockBreak     func(image uintptr, mode int32, owner string) int32                                        `c:"rbd_lock_break"`
	WatchersList  func(image uintptr, w *Watcher, n *uintptr) int32                                          `c:"rbd_watchers_list"`
	WatchersEnd   func(w *Watcher, n uintptr)                                                                `c:"rbd_watchers_list_cleanup"`
	GetID         func(image uintptr, id *byte, n uintptr) int32                                             `c:"rbd_get_id"`
	UpdateWatch   func(image uintptr, handle *uint64, cb, arg uintptr) int32                                 `c:"rbd_update_watch"`
	UpdateUnwatch func(image uintptr, handle uint64) int32                                                   `c:"rbd_update_unwatch"`
	DiffIterate2  func(image uintptr, from *byte, off, n uint64, parent, whole uint8, cb, arg uintptr) int32 `c:"rbd_diff_iterate2"`

	SnapCreate        func(image uintptr, name string) int32                    `c:"rbd_snap_create"`
	SnapRemove        func(image uintptr, name string) int32                    `c:"rbd_snap_remove"`
	SnapList          func(image uintptr, s *Snap, n *int32) int32              `c:"rbd_snap_list"`
	SnapListEnd       func(s *Snap)                                             `c:"rbd_snap_list_end"`
	SnapProtect       func(image uintptr, name string) int32                    `c:"rbd_snap_protect"`
	SnapUnprotect     func(image uintptr, name string) int32                    `c:"rbd_snap_unprotect"`
	SnapIsProtected   func(image uintptr, name string, is *int32) int32         `c:"rbd_snap_is_protected"`
	SnapGetTimestamp  func(image uintptr, id uint64, t *syscall.Timespec) int32 `c:"rbd_snap_get_timestamp"`
	SnapNamespaceType func(image uintptr, id uint64, t *int32) int32            `c:"rbd_snap_get_namespace_type"`

	// The addresses of what is called for each I/O.
	aioCreate, aioRead, aioWrite, aioZeroes, aioCompare, aioFlush, aioResult, aioRelease, aioWait uintptr

	done, changed, extent uintptr // our callbacks
	pool
	slots    slots
	subjects subjects
}

// Lengths and values of the C headers.
const (
	LockExclusive = 0 // RBD_LOCK_MODE_EXCLUSIVE

	FeatureExclusiveLock = 1 << 2
	FeatureFastDiff      = 1 << 4

	SnapNamespaceUser = 0 // RBD_SNAP_NAMESPACE_TYPE_USER

	WriteZeroesThick = 1 // RBD_WRITE_ZEROES_FLAG_THICK_PROVISION
)

// Stat is rbd_image_info_t.
type Stat struct {
	Size, ObjSize, NumObjs uint64
	Order                  int32
	BlockNamePrefix        [24]byte
	ParentPool             int64
	ParentName             [96]byte
}

// Snap is rbd_snap_info_t.
type Snap struct {
	ID, Size uint64
	Name     uintptr
}

// Watcher is rbd_image_watcher_t.
type Watcher struct {
	Addr   uintptr
	ID     int64
	Cookie uint64
}

// Sonames are the libraries' names; their numbers are those of the ABI.
const (
	soRados = "librados.so.2"
	soRBD   = "librbd.so.1"
)

// Load loads the libraries. It is to be called once in a process, since callbacks
// are never given back.
func Load() (*Lib, error) {
	rados, err := purego.Dlopen(soRados, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return nil, missing(soRados, err)
	}
	rbd, err := purego.Dlopen(soRBD, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return nil, missing(soRBD, err)
	}
	l := new(Lib)
	if err := l.bind(rados, rbd); err != nil {
		return nil, err
	}
	l.slots.init()
	l.done = purego.NewCallback(l.onDone)
	l.changed = purego.NewCallback(l.onChanged)
	l.extent = purego.NewCallback(l.onExtent)
	return l, nil
}

func missing(so string, err error) error {
	return fmt.Errorf("%s cannot be loaded: install the package librbd1 (Debian, Ubuntu, Fedora, RHEL) on this host: %w", so, err)
}

// GoString copies a C string of at most 4 KiB.
func GoString(p uintptr) string {
	if p == 0 {
		return ""
	}
	b := unsafe.Slice(*(**byte)(unsafe.Pointer(&p)), 4096)
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// CString is a C string for arguments that may be NULL: nil for "".
func CString(s string) *byte {
	if s == "" {
		return nil
	}
	b := append([]byte(s), 0)
	return &b[0]
}

// Errno makes an error of a negative return value, nil of others.
func Errno(r int32) error {
	if r >= 0 {
		return nil
	}
	return syscall.Errno(-r)
}

// subjects maps the argument of a callback to the Go value that it means, so
// that C never holds a Go pointer.
type subjects struct {
	mu   sync.Mutex
	next uintptr
	of   map[uintptr]any
}

func (s *subjects) add(v any) uintptr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = make(map[uintptr]any)
	}
	s.next++
	s.of[s.next] = v
	return s.next
}

func (s *subjects) get(id uintptr) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.of[id]
}

func (s *subjects) remove(id uintptr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.of, id)
}
