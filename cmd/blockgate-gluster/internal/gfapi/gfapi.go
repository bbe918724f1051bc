// Package gfapi calls GlusterFS' client library, libgfapi (glusterfs/api/glfs.h of
// GlusterFS 6 and later), without a C compiler: the library is loaded when asked
// for. Of the library it has what a block device needs.
//
// Data moves through the library's asynchronous calls, so that a request in flight
// costs no thread. What the library may still touch after a caller has gone is
// never memory of Go's heap.
//
// The library runs threads of its own, which may write to a connection that is
// gone: a program has to ignore SIGPIPE.
package gfapi

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/ebitengine/purego"
)

// LibraryName is what the dynamic linker is asked for; DebianPackage is where it
// comes from.
const (
	LibraryName   = "libgfapi.so.0"
	DebianPackage = "libgfapi0"
)

// abi is the symbol version at which calls that write got the file's attributes
// before and after (GlusterFS 6).
const abi = "GFAPI_6.0"

// Library is libgfapi, loaded. It is safe for concurrent use and is never
// unloaded: its threads do not all end.
type Library struct {
	fn struct {
		glfsNew, setVolfileServer, setLogging, setXlatorOption, init, fini, getVolfile uintptr
		open, creat, close, fstat, ftruncate, lseek, statvfs                           uintptr
		fsetxattr, fileLock, posixLock                                                 uintptr
		preadAsync, pwriteAsync, fdatasyncAsync, discardAsync, zerofillAsync           uintptr
		read                                                                           uintptr
	}
	errnoLocation uintptr
	complete      uintptr // the one callback there is, called by the library's threads

	calls   calls
	buffers buffers
}

// Load loads the library. The error is one line that says what to install.
func Load() (*Library, error) { return load(LibraryName) }

func load(name string) (*Library, error) {
	handle, err := purego.Dlopen(name, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("GlusterFS needs its client library %s, of Debian's package %s: %w", name, DebianPackage, err)
	}
	dlvsym, err := purego.Dlsym(purego.RTLD_DEFAULT, "dlvsym")
	if err != nil {
		return nil, fmt.Errorf("the C library has no dlvsym: %w", err)
	}
	l := new(Library)
	if l.errnoLocation, err = purego.Dlsym(purego.RTLD_DEFAULT, "__errno_location"); err != nil {
		return nil, fmt.Errorf("the C library has no __errno_location: %w", err)
	}
	for _, s := range []struct {
		to        *uintptr
		name, abi string
	}{
		{&l.fn.glfsNew, "glfs_new", ""},
		{&l.fn.setVolfileServer, "glfs_set_volfile_server", ""},
		{&l.fn.setLogging, "glfs_set_logging", ""},
		{&l.fn.setXlatorOption, "glfs_set_xlator_option", ""},
		{&l.fn.init, "glfs_init", ""},
		{&l.fn.fini, "glfs_fini", ""},
		{&l.fn.getVolfile, "glfs_get_volfile", ""},
		{&l.fn.open, "glfs_open", ""},
		{&l.fn.creat, "glfs_creat", ""},
		{&l.fn.close, "glfs_close", ""},
		{&l.fn.fstat, "glfs_fstat", ""},
		{&l.fn.ftruncate, "glfs_ftruncate", abi},
		{&l.fn.lseek, "glfs_lseek", ""},
		{&l.fn.statvfs, "glfs_statvfs", ""},
		{&l.fn.fsetxattr, "glfs_fsetxattr", ""},
		{&l.fn.fileLock, "glfs_file_lock", ""},
		{&l.fn.posixLock, "glfs_posix_lock", ""},
		{&l.fn.read, "glfs_read", ""},
		{&l.fn.preadAsync, "glfs_pread_async", abi},
		{&l.fn.pwriteAsync, "glfs_pwrite_async", abi},
		{&l.fn.fdatasyncAsync, "glfs_fdatasync_async", abi},
		{&l.fn.discardAsync, "glfs_discard_async", abi},
		{&l.fn.zerofillAsync, "glfs_zerofill_async", abi},
	} {
		if s.abi == "" {
			*s.to, err = purego.Dlsym(handle, s.name)
		} else {
			*s.to, err = symbolOfVersion(dlvsym, handle, s.name, s.abi)
		}
		if err != nil {
			return nil, fmt.Errorf("%s has no %s %s: it has to be of GlusterFS 6 or later", name, s.name, s.abi)
		}
	}
	l.complete = purego.NewCallback(l.completed)
	l.buffers.init()
	return l, nil
}

// symbolOfVersion is for calls whose parameters changed: plain dlsym would give
// those of whatever version the library prefers.
func symbolOfVersion(dlvsym, handle uintptr, name, version string) (uintptr, error) {
	n, v := cString(name), cString(version)
	addr, _, _ := purego.SyscallN(dlvsym, handle, uintptr(unsafe.Pointer(n)), uintptr(unsafe.Pointer(v)))
	runtime.KeepAlive(n)
	runtime.KeepAlive(v)
	if addr == 0 {
		return 0, syscall.ENOSYS
	}
	return addr, nil
}
