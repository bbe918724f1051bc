package gfapi

import (
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// FS is a volume of GlusterFS, attached. Server, Logging and Option come before
// Init, the rest after it. All methods after Init are safe for concurrent use, Fini
// excepted.
type FS struct {
	lib *Library
	ptr uintptr
}

// New begins to attach a volume.
func (l *Library) New(volume string) (*FS, error) {
	v := cString(volume)
	ptr, errno := l.invoke(l.fn.glfsNew, uintptr(unsafe.Pointer(v)))
	runtime.KeepAlive(v)
	if ptr == 0 {
		return nil, reason(errno)
	}
	return &FS{l, ptr}, nil
}

// Server adds one that tells how the volume is built. transport is "tcp" or "unix";
// host is the socket's path for the latter, and port is 0.
func (f *FS) Server(transport, host string, port int) error {
	t, h := cString(transport), cString(host)
	r, errno := f.lib.invoke(f.lib.fn.setVolfileServer, f.ptr, uintptr(unsafe.Pointer(t)), uintptr(unsafe.Pointer(h)), uintptr(port))
	runtime.KeepAlive(t)
	runtime.KeepAlive(h)
	return check(r, errno)
}

// Logging says where the library's own log goes, and how much of it: 0 nothing, 4
// errors, 5 warnings, 7 information, 9 everything.
func (f *FS) Logging(file string, level int) error {
	p := cString(file)
	r, errno := f.lib.invoke(f.lib.fn.setLogging, f.ptr, uintptr(unsafe.Pointer(p)), uintptr(level))
	runtime.KeepAlive(p)
	return check(r, errno)
}

// Option sets an option of the translators whose name matches a pattern
// ("*-write-behind"), for this client alone and however the volume is changed.
func (f *FS) Option(translator, key, value string) error {
	t, k, v := cString(translator), cString(key), cString(value)
	r, errno := f.lib.invoke(f.lib.fn.setXlatorOption, f.ptr, uintptr(unsafe.Pointer(t)), uintptr(unsafe.Pointer(k)), uintptr(unsafe.Pointer(v)))
	runtime.KeepAlive(t)
	runtime.KeepAlive(k)
	runtime.KeepAlive(v)
	return check(r, errno)
}

// Init reaches a server and attaches the volume. It may take as long as a server
// lets it wait.
func (f *FS) Init() error {
	r, errno := f.lib.invoke(f.lib.fn.init, f.ptr)
	return check(r, errno)
}

// Fini detaches the volume, or gives up one that Init failed for. It takes up to
// ten seconds. No file may be open, and nothing else be called afterwards.
func (f *FS) Fini() error {
	r, errno := f.lib.invoke(f.lib.fn.fini, f.ptr)
	return check(r, errno)
}

// maxVolfile bounds what Volfile reads; one of hundreds of bricks is smaller.
const maxVolfile = 16 << 20

// volfileTime is how long Volfile waits for there to be one.
const volfileTime = 5 * time.Second

// Volfile is the description of the volume as the servers gave it: which
// translators there are and with which options. It holds the password by which
// the bricks know the volume.
func (f *FS) Volfile() ([]byte, error) {
	// Into a larger buffer than needed the library copies what lies behind the
	// text in its memory, so it gets one that is too small by all of it first.
	buf := make([]byte, 0, 1)
	// It may change in between, and appears a moment after Init has returned.
	for deadline := time.Now().Add(volfileTime); time.Now().Before(deadline); {
		r, errno := f.lib.invoke(f.lib.fn.getVolfile, f.ptr, uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)))
		n := int(r)
		if n == 0 {
			time.Sleep(volfileTime / 1000)
			continue
		}
		if n > 0 {
			return buf[:min(n, len(buf))], nil
		}
		if errno != 0 && n == -1 {
			return nil, reason(errno)
		}
		if len(buf)-n > maxVolfile {
			return nil, syscall.EFBIG
		}
		buf = make([]byte, len(buf)-n)
	}
	return nil, syscall.EAGAIN
}

// metaSize is more than any line of the synthetic files has.
const metaSize = 4096

// Meta reads one of the synthetic files below /.meta, which tell what the
// translators in this process are doing: "graphs/active/NAME/options/KEY".
func (f *FS) Meta(name string) (string, error) {
	file, err := f.Open("/.meta/"+name, syscall.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer file.Close()
	buf := make([]byte, metaSize)
	r, errno := f.lib.invoke(f.lib.fn.read, file.ptr, uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0)
	n := int(r)
	if n < 0 || n > len(buf) {
		return "", reason(errno)
	}
	return strings.TrimSpace(string(buf[:n])), nil
}

// Space is what the file system of a path has, in bytes.
func (f *FS) Space(path string) (available int64, err error) {
	// struct statvfs of 64-bit Linux; what follows is room for the rest of it.
	var s struct {
		bsize, frsize, blocks, bfree, bavail uint64
		rest                                 [128]byte
	}
	p := cString(path)
	r, errno := f.lib.invoke(f.lib.fn.statvfs, f.ptr, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&s)))
	runtime.KeepAlive(p)
	if err := check(r, errno); err != nil {
		return 0, err
	}
	return int64(s.bavail * s.frsize), nil
}

// Open opens a file with open(2)'s flags.
func (f *FS) Open(path string, flags int) (*File, error) {
	p := cString(path)
	ptr, errno := f.lib.invoke(f.lib.fn.open, f.ptr, uintptr(unsafe.Pointer(p)), uintptr(flags))
	runtime.KeepAlive(p)
	if ptr == 0 {
		return nil, reason(errno)
	}
	return &File{f.lib, ptr}, nil
}

// Create makes a file, with O_EXCL among the flags one that is not there.
func (f *FS) Create(path string, flags int, mode uint32) (*File, error) {
	p := cString(path)
	ptr, errno := f.lib.invoke(f.lib.fn.creat, f.ptr, uintptr(unsafe.Pointer(p)), uintptr(flags), uintptr(mode))
	runtime.KeepAlive(p)
	if ptr == 0 {
		return nil, reason(errno)
	}
	return &File{f.lib, ptr}, nil
}
