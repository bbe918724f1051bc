package aio_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"blockgate/internal/aio"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const block = 4096

// file is a file opened with O_DIRECT.
func file(t testing.TB, blocks int) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "f"), os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if errors.Is(err, syscall.EINVAL) {
		t.Skip("no O_DIRECT here")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	p := buffer(blocks * block)
	for i := range blocks {
		fill(p[i*block:][:block], i)
	}
	if _, err := f.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return f
}

func buffer(n int) []byte {
	p := make([]byte, n+block)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(p))) % block
	return p[skip:][:n]
}

func fill(p []byte, i int) {
	for k := range p {
		p[k] = byte(i + k/512)
	}
}

// rig is a queue and what it has given back.
type rig struct {
	q    *aio.Queue
	want sync.WaitGroup

	mu  sync.Mutex
	got map[*aio.Op]int
}

func newRig(t testing.TB, fd int, f aio.Faults) *rig {
	t.Helper()
	r := &rig{got: map[*aio.Op]int{}}
	q, err := aio.NewFaulty(fd, r.done, f)
	if errors.Is(err, aio.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.q = q
	t.Cleanup(q.Close)
	return r
}

func (r *rig) done(ops []*aio.Op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, op := range ops {
		r.got[op]++
		r.want.Done()
	}
}

// run has the queue do all of ops, and returns when they are done.
func (r *rig) run(t *testing.T, ops []*aio.Op) {
	t.Helper()
	r.want.Add(len(ops))
	r.q.Submit(ops)
	r.want.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, op := range ops {
		if r.got[op] != 1 {
			t.Errorf("request %d was given back %d times", i, r.got[op])
		}
		delete(r.got, op)
	}
}

func reads(n int) []*aio.Op {
	ops := make([]*aio.Op, n)
	for i := range ops {
		ops[i] = &aio.Op{Buf: buffer(block), Off: int64(i) * block}
	}
	return ops
}

func TestReadAndWrite(t *testing.T) {
	const n = 3*aio.Depth + 7 // more than the kernel is given at once
	f := file(t, n)
	r := newRig(t, int(f.Fd()), aio.Faults{})
	ops := reads(n)
	r.run(t, ops)
	want := buffer(block)
	for i, op := range ops {
		// What would have to wait is for the caller to do.
		if op.Err == syscall.EAGAIN {
			continue
		}
		fill(want, i)
		if op.Err != 0 || op.N != block || !bytes.Equal(op.Buf, want) {
			t.Fatalf("read %d: %d bytes, %v, right: %v", i, op.N, op.Err, bytes.Equal(op.Buf, want))
		}
	}
	for i, op := range ops {
		op.Write = true
		fill(op.Buf, i+100)
	}
	r.run(t, ops)
	wrote := 0
	for i, op := range ops {
		if op.Err == syscall.EAGAIN {
			continue
		}
		wrote++
		got := buffer(block)
		if _, err := f.ReadAt(got, op.Off); err != nil {
			t.Fatal(err)
		}
		if op.Err != 0 || op.N != block || !bytes.Equal(op.Buf, got) {
			t.Fatalf("write %d: %d bytes, %v, right: %v", i, op.N, op.Err, bytes.Equal(op.Buf, got))
		}
	}
	if wrote == 0 {
		t.Error("every write would have had to wait")
	}
}

func TestEndOfFile(t *testing.T) {
	f := file(t, 2)
	r := newRig(t, int(f.Fd()), aio.Faults{})
	ops := []*aio.Op{
		{Buf: buffer(4 * block)},
		{Buf: buffer(block), Off: 8 * block},
		{Buf: buffer(block)[:100]},
	}
	r.run(t, ops)
	for i, want := range []struct {
		n   int
		err syscall.Errno
	}{{2 * block, 0}, {0, 0}, {0, syscall.EINVAL}} {
		if ops[i].N != want.n || ops[i].Err != want.err {
			t.Errorf("read %d: %d bytes, %v; want %d, %v", i, ops[i].N, ops[i].Err, want.n, want.err)
		}
	}
}

func TestKernelTakesOneAtATime(t *testing.T) {
	f := file(t, 64)
	var calls atomic.Int64
	r := newRig(t, int(f.Fd()), aio.Faults{Submit: func(n int) (int, syscall.Errno) {
		switch calls.Add(1) % 3 {
		case 0:
			return 0, syscall.EINTR
		case 1:
			return 1, 0
		}
		return min(n, 5), 0
	}})
	ops := reads(64)
	r.run(t, ops)
	for i, op := range ops {
		if op.Err != 0 && op.Err != syscall.EAGAIN {
			t.Errorf("read %d: %v", i, op.Err)
		}
	}
}

func TestKernelRefuses(t *testing.T) {
	f := file(t, 64)
	var calls atomic.Int64
	r := newRig(t, int(f.Fd()), aio.Faults{Submit: func(n int) (int, syscall.Errno) {
		if c := calls.Add(1); c > 1 && c%2 == 0 { // the first asks whether there is AIO
			return 0, syscall.EAGAIN
		}
		return 1, 0
	}})
	ops := reads(64)
	r.run(t, ops)
	refused := 0
	for _, op := range ops {
		if op.Err == syscall.EAGAIN {
			refused++
		}
	}
	if refused < 32 {
		t.Errorf("%d requests came back with EAGAIN, want at least 32", refused)
	}
}

func TestUnavailable(t *testing.T) {
	f := file(t, 1)
	for _, errno := range []syscall.Errno{syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EPERM} {
		before := descriptors(t)
		_, err := aio.NewFaulty(int(f.Fd()), func([]*aio.Op) {}, aio.Faults{Submit: func(int) (int, syscall.Errno) { return 0, errno }})
		if !errors.Is(err, aio.ErrUnavailable) || !errors.Is(err, errno) {
			t.Errorf("%v: %v, want ErrUnavailable", errno, err)
		}
		if n := descriptors(t); n != before {
			t.Errorf("%v: %d descriptors, %d before", errno, n, before)
		}
	}
}

// A queue that is closed gives back its descriptor and its goroutine (TestMain).
func TestClose(t *testing.T) {
	f := file(t, 8)
	before := descriptors(t)
	for range 20 {
		r := newRig(t, int(f.Fd()), aio.Faults{})
		r.run(t, reads(8))
		r.q.Close()
		r.q.Close()
	}
	for descriptors(t) > before {
		runtime.Gosched() // the goroutines of the queues end
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
