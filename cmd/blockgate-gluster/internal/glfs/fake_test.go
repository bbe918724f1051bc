package glfs

import (
	"bytes"
	"context"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"blockgate/backing"
	"blockgate/cmd/blockgate-gluster/internal/gfapi"
)

// fakeVolume is a volume in memory whose bricks can go away.
type fakeVolume struct {
	mu      sync.Mutex
	data    map[string][]byte // by path
	volfile string
	meta    map[string]string

	down    error         // what every call that reaches bricks fails with
	silent  chan struct{} // calls are answered when it is closed
	flushes []error       // of the next flushes
	epoch   int
	locker  *fakeFile
	enforce bool // locks keep out those who do not ask
	other   bool // another client has the lock
	shard   bool // neither extents nor, for a test, zeroes
	noHoles bool

	opens, writes, syncs, durables, detached int
}

type fakeFile struct {
	v     *fakeVolume
	path  string
	flags int
	epoch int
	open  bool
}

func newFake(t *testing.T) *fakeVolume {
	t.Helper()
	text, err := os.ReadFile("testdata/v1.vol")
	if err != nil {
		t.Fatal(err)
	}
	return &fakeVolume{
		data:    map[string][]byte{},
		volfile: strings.Replace(string(text), "performance/write-behind", "performance/io-cache", 1),
		meta:    map[string]string{},
	}
}

func (v *fakeVolume) set(fn func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fn()
}

func (v *fakeVolume) Open(path string, flags int) (file, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.opens++
	if v.down != nil {
		return nil, v.down
	}
	if _, ok := v.data[path]; !ok {
		return nil, syscall.ENOENT
	}
	return &fakeFile{v: v, path: path, flags: flags, epoch: v.epoch, open: true}, nil
}

func (v *fakeVolume) Create(path string, flags int, _ uint32) (file, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.data[path]; ok && flags&syscall.O_EXCL != 0 {
		return nil, syscall.EEXIST
	}
	v.data[path] = nil
	return &fakeFile{v: v, path: path, flags: flags, epoch: v.epoch, open: true}, nil
}

func (v *fakeVolume) Volfile() ([]byte, error) { return []byte(v.volfile), nil }

func (v *fakeVolume) Meta(name string) (string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s, ok := v.meta[name]; ok {
		return s, nil
	}
	return "", syscall.ENOENT
}

func (v *fakeVolume) Space(string) (int64, error) { return 1 << 30, nil }
func (v *fakeVolume) Detach()                     { v.set(func() { v.detached++ }) }

// at runs a call on the bricks: fn with the lock held, when they answer.
func (f *fakeFile) at(ctx context.Context, fn func() error) error {
	v := f.v
	v.mu.Lock()
	silent := v.silent
	v.mu.Unlock()
	run := func() error {
		v.mu.Lock()
		defer v.mu.Unlock()
		switch {
		case !f.open:
			panic("a file is used that is closed")
		case v.down != nil:
			return v.down
		case f.epoch != v.epoch:
			return syscall.EBADFD
		}
		return fn()
	}
	if silent == nil {
		return run()
	}
	done := make(chan struct{})
	var err error
	go func() {
		<-silent
		err = run()
		close(done)
	}()
	select {
	case <-done:
		return err
	case <-ctx.Done():
		return &gfapi.Unanswered{Done: done, Cause: ctx.Err()}
	}
}

func (f *fakeFile) ReadAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	if len(p) > gfapi.MaxIO {
		panic("too long")
	}
	got := make([]byte, len(p))
	err = f.at(ctx, func() error {
		// Short, as a call may be.
		n = copy(got[:max(1, len(p)*2/3)], f.v.data[f.path][min(off, int64(len(f.v.data[f.path]))):])
		return nil
	})
	if err != nil {
		return 0, err
	}
	return copy(p, got[:n]), nil
}

func (f *fakeFile) WriteAt(ctx context.Context, p []byte, off int64, durable bool) (n int, err error) {
	if len(p) > gfapi.MaxIO {
		panic("too long")
	}
	p = append([]byte(nil), p[:max(1, len(p)*2/3)]...)
	err = f.at(ctx, func() error {
		if f.v.enforce && f.v.locker != f {
			return syscall.EBUSY
		}
		f.v.writes++
		if durable {
			f.v.durables++
		}
		copy(f.v.data[f.path][off:], p)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *fakeFile) Datasync(ctx context.Context) error {
	return f.at(ctx, func() error {
		f.v.syncs++
		if len(f.v.flushes) > 0 {
			err := f.v.flushes[0]
			f.v.flushes = f.v.flushes[1:]
			return err
		}
		return nil
	})
}

func (f *fakeFile) Discard(ctx context.Context, off, n int64) error {
	return f.at(ctx, func() error {
		if f.v.noHoles {
			return syscall.EOPNOTSUPP
		}
		data := f.v.data[f.path]
		if off < int64(len(data)) {
			clear(data[off:min(off+n, int64(len(data)))])
		}
		return nil
	})
}

func (f *fakeFile) Zerofill(ctx context.Context, off, n int64) error {
	return f.at(ctx, func() error {
		if f.v.shard {
			return syscall.EOPNOTSUPP
		}
		clear(f.v.data[f.path][off:][:n])
		return nil
	})
}

func (f *fakeFile) Stat() (st syscall.Stat_t, err error) {
	err = f.at(context.Background(), func() error {
		st.Mode, st.Size, st.Blocks = syscall.S_IFREG|0o600, int64(len(f.v.data[f.path])), 8
		return nil
	})
	return st, err
}

func (f *fakeFile) Truncate(size int64) error {
	return f.at(context.Background(), func() error {
		data := make([]byte, size)
		copy(data, f.v.data[f.path])
		f.v.data[f.path] = data
		return nil
	})
}

var zeroes [4096]byte

// Seek knows holes of 4 KiB.
func (f *fakeFile) Seek(off int64, whence int) (at int64, err error) {
	err = f.at(context.Background(), func() error {
		if f.v.shard {
			return syscall.EOPNOTSUPP
		}
		data := f.v.data[f.path]
		size := int64(len(data))
		if off >= size {
			return syscall.ENXIO
		}
		for at = off; at < size; at = at&^4095 + 4096 {
			block := data[at&^4095 : min(at&^4095+4096, size)]
			hole := bytes.Equal(block, zeroes[:len(block)])
			if hole == (whence == gfapi.SeekHole) {
				return nil
			}
		}
		at = size
		if whence == gfapi.SeekData {
			return syscall.ENXIO
		}
		return nil
	})
	return at, err
}

// lockedFor tells whether another than f has the lock.
func (v *fakeVolume) lockedFor(f *fakeFile) bool {
	return v.other || v.locker != nil && v.locker != f && v.locker.open && v.locker.epoch == v.epoch
}

func (f *fakeFile) Locked() (locked bool, err error) {
	err = f.at(context.Background(), func() error {
		locked = f.v.lockedFor(f)
		return nil
	})
	return locked, err
}

func (f *fakeFile) Lock(mandatory bool) error {
	return f.at(context.Background(), func() error {
		switch {
		case mandatory && !f.v.enforce:
			return syscall.EINVAL
		case !f.v.enforce && f.v.lockedFor(f):
			return syscall.EAGAIN
		}
		f.v.locker, f.v.other = f, false
		return nil
	})
}

func (f *fakeFile) Close() error {
	f.v.set(func() {
		if !f.open {
			panic("a file is closed twice")
		}
		f.open = false
	})
	return nil
}

// openFake opens /disk of the volume.
func openFake(t *testing.T, v *fakeVolume, l Location, o backing.OpenOptions) (*Store, error) {
	t.Helper()
	l.Volume, l.Path, l.LogLevel = "vol", "/disk", -1
	l.Servers = []Server{{Host: "host", Port: DefaultPort}}
	return open(t.Context(), func() (volume, error) { return v, nil }, l, Options{OpenOptions: o})
}

// mustOpen is openFake of a store that is closed when the test ends.
func mustOpen(t *testing.T, v *fakeVolume, l Location, o backing.OpenOptions) *Store {
	t.Helper()
	s, err := openFake(t, v, l, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}
