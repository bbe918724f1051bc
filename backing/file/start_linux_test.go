package file_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"blockgate/backing"
	"blockgate/backing/file"
	"blockgate/backing/storetest"
	"blockgate/internal/aio"
)

// started is a store whose reads and writes all go by its Starter, in pieces that
// are begun together: one that is alone goes another way.
type started struct {
	*file.Store
	starter backing.Starter
	piece   int
}

func (s started) ReadAt(ctx context.Context, p []byte, off int64) error {
	return s.do(ctx, p, off, false)
}

func (s started) WriteAt(ctx context.Context, p []byte, off int64) error {
	return s.do(ctx, p, off, true)
}

func (s started) do(ctx context.Context, p []byte, off int64, write bool) error {
	var b batch
	for {
		n := min(s.piece, len(p))
		b.add(&backing.IO{Ctx: ctx, P: p[:n], Off: off, Write: write})
		if p, off = p[n:], off+int64(n); len(p) == 0 {
			break
		}
	}
	// Twice the same, so that none is alone.
	b.add(&backing.IO{Ctx: ctx, P: nil, Off: 0, Write: write})
	return b.run(s.starter)
}

// batch is some IOs that are begun together.
type batch struct {
	ios  []*backing.IO
	want sync.WaitGroup

	mu   sync.Mutex
	errs map[*backing.IO]error
	more int // ends beyond the first
}

func (b *batch) add(io *backing.IO) {
	io.Done = b
	b.ios = append(b.ios, io)
}

// run returns the first error in the order of the IOs.
func (b *batch) run(s backing.Starter) error {
	b.errs = map[*backing.IO]error{}
	b.want.Add(len(b.ios))
	s.Start(b.ios)
	b.want.Wait()
	for _, io := range b.ios {
		if err := b.errs[io]; err != nil {
			return err
		}
	}
	return nil
}

func (b *batch) IODone(io *backing.IO, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, twice := b.errs[io]; twice {
		b.more++
	}
	b.errs[io] = err
	b.want.Done()
}

// createDirect makes a direct store that has AIO. The space is there: what would
// have to be allocated is written by a goroutine that waits.
func createDirect(t testing.TB, size int64) backing.Store {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := file.Open(t.Context(), path, backing.OpenOptions{Direct: true})
	if errors.Is(err, backing.ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if backing.StarterOf(s) == nil {
		s.Close()
		t.Skip("no AIO here")
	}
	return s
}

func TestStarterConformance(t *testing.T) {
	for name, piece := range map[string]int{"Blocks": 4096, "Odd": 70_000} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) backing.Store {
				s := createDirect(t, storetest.Size)
				return started{s.(*file.Store), backing.StarterOf(s), piece}
			})
		})
	}
}

func TestNoStarter(t *testing.T) {
	s, _ := create(t, 1<<20, backing.OpenOptions{})
	defer s.Close()
	if backing.StarterOf(s) != nil {
		t.Error("a store with the page cache has a Starter, whose calls would wait")
	}
	// A file system that cannot begin a read without waiting has direct stores all
	// the same.
	path := sparse(t, filepath.Join(tmpfs(t, "4m"), "disk.img"), 1<<20)
	d, err := file.Open(t.Context(), path, backing.OpenOptions{Direct: true})
	if err != nil {
		t.Skip(err)
	}
	defer d.Close()
	if backing.StarterOf(d) != nil {
		t.Skip("this tmpfs can")
	}
	if err := d.WriteAt(t.Context(), make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
}

// blocks is aligned memory.
func blocks(n int) []byte {
	p := make([]byte, n+4096)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(p))) % 4096
	return p[skip:][:n]
}

// What the kernel did not do, or only in part, is done all the same.
func TestStarterGoesOn(t *testing.T) {
	var n atomic.Int64
	for name, f := range map[string]aio.Faults{
		"short": {Result: func(op *aio.Op, res int64) int64 { return res / 8192 * 4096 }},
		"short by bytes": {Result: func(op *aio.Op, res int64) int64 {
			if op.Write {
				return res
			}
			return max(res-100, 0)
		}},
		"nothing": {Result: func(*aio.Op, int64) int64 { return 0 }},
		"would have to wait": {Result: func(_ *aio.Op, res int64) int64 {
			if n.Add(1)%2 == 0 {
				return -int64(syscall.EAGAIN)
			}
			return res
		}},
		"interrupted":   {Result: func(*aio.Op, int64) int64 { return -int64(syscall.EINTR) }},
		"not so":        {Result: func(*aio.Op, int64) int64 { return -int64(syscall.EOPNOTSUPP) }},
		"no room":       {Submit: refuseAfterFirst(syscall.EAGAIN)},
		"one at a time": {Submit: func(int) (int, syscall.Errno) { return 1, 0 }},
		"not any more":  {Submit: refuseAfterFirst(syscall.ENOSYS)},
		"forbidden":     {Submit: refuseAfterFirst(syscall.EPERM)},
		"not like this": {Result: func(*aio.Op, int64) int64 { return -int64(syscall.EINVAL) }},
		"no memory":     {Result: func(*aio.Op, int64) int64 { return -int64(syscall.ENOMEM) }},
	} {
		t.Run(name, func(t *testing.T) {
			s := createDirect(t, 1<<20)
			defer s.Close()
			if _, err := file.SetFaults(s, f); err != nil {
				t.Fatal(err)
			}
			d := started{s.(*file.Store), backing.StarterOf(s), 16 << 10}
			want := blocks(256 << 10)
			for i := range want {
				want[i] = byte(i / 1000)
			}
			if err := d.WriteAt(t.Context(), want, 64<<10); err != nil {
				t.Fatal(err)
			}
			got := blocks(len(want))
			if err := d.ReadAt(t.Context(), got, 64<<10); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Error("what was read is not what was written")
			}
			clear(got)
			if err := s.ReadAt(t.Context(), got, 64<<10); err != nil || !bytes.Equal(got, want) {
				t.Errorf("ReadAt does not find it: %v", err)
			}
		})
	}
}

// While the file system is frozen io_submit of a write waits. Whoever begins it must
// not, nor may reads.
func TestStarterFrozen(t *testing.T) {
	s := createDirect(t, 1<<20)
	defer s.Close()
	frozen, thaw := make(chan struct{}), make(chan struct{})
	var calls atomic.Int64
	if _, err := file.SetFaults(s, aio.Faults{Submit: func(n int) (int, syscall.Errno) {
		if calls.Add(1) == 2 { // the first asks whether there is AIO
			close(frozen)
			<-thaw
		}
		return n, 0
	}}); err != nil {
		t.Fatal(err)
	}
	st := backing.StarterOf(s)
	ctx, abort := context.WithCancel(t.Context())
	var first, aborted, reads batch
	two := func(b *batch, c context.Context, write bool) {
		for i := range 2 {
			b.add(&backing.IO{Ctx: c, P: blocks(4096), Off: int64(i) * 4096, Write: write})
		}
	}
	two(&first, t.Context(), true)
	two(&aborted, ctx, true)
	two(&reads, t.Context(), false)
	ended := make(chan error, 2)
	begun := make(chan struct{})
	go func() {
		defer close(begun)
		first.errs, aborted.errs = map[*backing.IO]error{}, map[*backing.IO]error{}
		first.want.Add(2)
		aborted.want.Add(2)
		st.Start(first.ios)
		<-frozen
		st.Start(aborted.ios)
	}()
	select {
	case <-begun:
	case <-time.After(10 * time.Second):
		close(thaw)
		t.Fatal("Start waits for the file system")
	}
	go func() { ended <- reads.run(st) }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("reads wait for the file system")
	}
	abort()
	close(thaw)
	first.want.Wait()
	aborted.want.Wait()
	for _, io := range aborted.ios {
		if !errors.Is(aborted.errs[io], context.Canceled) {
			t.Errorf("a write that was aborted meanwhile: %v", aborted.errs[io])
		}
	}
}

// What the kernel says it can not do without waiting it is not asked for again.
func TestStarterAsksOnce(t *testing.T) {
	s := createDirect(t, 1<<20)
	defer s.Close()
	var asked [2]atomic.Int64 // to read, to write
	if _, err := file.SetFaults(s, aio.Faults{Result: func(op *aio.Op, _ int64) int64 {
		if op.Write {
			asked[1].Add(1)
			return -int64(syscall.EOPNOTSUPP)
		}
		asked[0].Add(1)
		return int64(len(op.Buf))
	}}); err != nil {
		t.Fatal(err)
	}
	d := started{s.(*file.Store), backing.StarterOf(s), 4096}
	p := blocks(4 * 4096)
	for range 3 {
		if err := errors.Join(d.WriteAt(t.Context(), p, 0), d.ReadAt(t.Context(), p, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if r, w := asked[0].Load(), asked[1].Load(); r != 12 || w < 1 || w > 4 {
		t.Errorf("the kernel was asked for %d reads and %d writes, want 12, and 4 at most", r, w)
	}
	if got := backing.InfoOf(s).DirectIO; got != "aio for reads, threads for writes" {
		t.Errorf("DirectIO = %q", got)
	}
}

// refuseAfterFirst lets the first request through, which asks whether there is AIO.
func refuseAfterFirst(errno syscall.Errno) func(int) (int, syscall.Errno) {
	var calls atomic.Int64
	return func(n int) (int, syscall.Errno) {
		if calls.Add(1) == 1 {
			return n, 0
		}
		return 0, errno
	}
}

func TestStarterErrors(t *testing.T) {
	for _, tc := range []struct {
		errno syscall.Errno
		want  error
	}{
		{syscall.EIO, syscall.EIO},
		{syscall.ENOSPC, backing.ErrNoSpace},
		{syscall.EROFS, backing.ErrReadOnly},
	} {
		s := createDirect(t, 1<<20)
		if _, err := file.SetFaults(s, aio.Faults{Result: func(op *aio.Op, res int64) int64 {
			if op.Off == 8192 {
				return -int64(tc.errno)
			}
			return res
		}}); err != nil {
			t.Fatal(err)
		}
		for _, write := range []bool{false, true} {
			var b batch
			for i := range 4 {
				b.add(&backing.IO{P: blocks(4096), Off: int64(i) * 4096, Write: write})
			}
			err := b.run(backing.StarterOf(s))
			if !errors.Is(err, tc.want) || !errors.Is(err, tc.errno) {
				t.Errorf("%v: %v, want %v", tc.errno, err, tc.want)
			}
			for i, io := range b.ios {
				if (b.errs[io] != nil) != (i == 2) {
					t.Errorf("%v: request %d: %v", tc.errno, i, b.errs[io])
				}
			}
		}
		if err := s.WriteAt(t.Context(), blocks(4096), 8192); err != nil {
			t.Errorf("after %v: %v", tc.errno, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A file that has become shorter under the store is no zeroes.
func TestStarterShrunk(t *testing.T) {
	s := createDirect(t, 1<<20)
	defer s.Close()
	if err := os.Truncate(backing.InfoOf(s).Location, 1<<19); err != nil {
		t.Fatal(err)
	}
	var b batch
	b.add(&backing.IO{P: blocks(4096), Off: 0})
	b.add(&backing.IO{P: blocks(4096), Off: 1<<20 - 4096})
	if err := b.run(backing.StarterOf(s)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v, want io.ErrUnexpectedEOF", err)
	}
}

// Close with requests under way: each ends once, and the descriptors go.
func TestStarterClose(t *testing.T) {
	before := descriptors(t)
	for range 10 {
		s := createDirect(t, 1<<20)
		st := backing.StarterOf(s)
		var loaders sync.WaitGroup
		begun := make(chan struct{}, 8)
		for g := range 4 {
			loaders.Go(func() {
				for k := 0; ; k++ {
					var b batch
					for i := range 16 {
						b.add(&backing.IO{P: blocks(4096), Off: int64(i) * 8192, Write: g%2 == 0})
					}
					err := b.run(st)
					if b.more != 0 {
						t.Error("a request ended twice")
					}
					if k == 1 {
						begun <- struct{}{}
					}
					if errors.Is(err, backing.ErrClosed) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for range 4 {
			<-begun
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		loaders.Wait()
	}
	for descriptors(t) > before {
		runtime.Gosched()
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestDirectIOIsTold(t *testing.T) {
	s := createDirect(t, 1<<20)
	defer s.Close()
	if got := backing.InfoOf(s).DirectIO; got != "aio" {
		t.Errorf("DirectIO = %q", got)
	}
	path := backing.InfoOf(s).Location
	off := open(t, path, backing.OpenOptions{Direct: true, NoAIO: true})
	defer off.Close()
	if got := backing.InfoOf(off).DirectIO; got != "threads" || backing.StarterOf(off) != nil {
		t.Errorf("with NoAIO: DirectIO = %q, Starter %v", got, backing.StarterOf(off))
	}
	if err := off.WriteAt(t.Context(), blocks(4096), 0); err != nil {
		t.Error(err)
	}
	b := open(t, path, backing.OpenOptions{})
	defer b.Close()
	if got := backing.InfoOf(b).DirectIO; got != "" {
		t.Errorf("without Direct: DirectIO = %q", got)
	}
}
