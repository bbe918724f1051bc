package file_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"blockgate/backing"
	"blockgate/backing/file"
)

type lender interface {
	backing.Store
	backing.MappedLender
	backing.TryWriter
	backing.Discarder
	backing.ZeroWriter
	backing.CopyRanger
	backing.FUAWriter
	backing.Resizer
	backing.Usager
}

const (
	mib    = 1 << 20
	window = 3 * mib // what one window maps
)

// lending opens a new file in dir with so many windows.
func lending(t testing.TB, dir string, windows int, size int64) (lender, string) {
	t.Helper()
	path := filepath.Join(dir, "disk")
	s, err := file.Lending(file.NewWindows(int64(windows)*window))(t.Context(), path,
		backing.OpenOptions{Create: true, CreateSize: size, Exclusive: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s.(lender), path
}

// fill writes all of the store, with a number in each 64 KiB.
func fill(t testing.TB, s backing.Store) []byte {
	t.Helper()
	p := make([]byte, s.Size())
	for i := range p {
		p[i] = byte(i) ^ byte(i>>16)
	}
	if err := s.WriteAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// borrow asks until the window is worth it to be mapped.
func borrow(t testing.TB, s lender, off, n int64) []byte {
	t.Helper()
	for range 1 + 1<<30/n {
		if p := s.LendMapped(off, n); p != nil {
			return p
		}
	}
	t.Fatalf("%d bytes at %d are not lent", n, off)
	return nil
}

// places are folders on file systems that lend differently.
func places(t *testing.T, test func(t *testing.T, dir string)) {
	t.Run("disk", func(t *testing.T) { test(t, t.TempDir()) })
	t.Run("tmpfs", func(t *testing.T) { test(t, tmpfs(t, "128M")) })
}

func lendsOrSkip(t *testing.T, s lender) {
	t.Helper()
	for range 64 {
		if p := s.LendMapped(0, mib); p != nil {
			s.ReturnMapped(p, 0)
			return
		}
	}
	t.Skip("this file system is not lent from")
}

// What is lent is what ReadAt gives, through writes, holes and copies.
func TestLendMappedModel(t *testing.T) {
	places(t, func(t *testing.T, dir string) {
		s, _ := lending(t, dir, 3, 24*mib)
		want := fill(t, s)
		lendsOrSkip(t, s)
		rnd := rand.New(rand.NewPCG(1, 2))
		type loan struct {
			p   []byte
			off int64
		}
		var out []loan
		lent, reads := 0, 0
		giveBack := func() {
			for _, l := range out {
				if !bytes.Equal(l.p, want[l.off:][:len(l.p)]) {
					t.Fatalf("a loan of %d bytes at %d is not what was there", len(l.p), l.off)
				}
				s.ReturnMapped(l.p, l.off)
			}
			out = out[:0]
		}
		at := int64(0)
		for range 6000 {
			n := rnd.Int64N(200<<10) + 1
			off := rnd.Int64N(int64(len(want)) - n)
			switch k := rnd.IntN(40); {
			case k < 32:
				n, off = 64<<10, off&^4095
				if k < 20 { // a stream
					off = at
					if at += n; at == int64(len(want)) {
						at = 0
					}
				}
				reads++
				if p := s.LendMapped(off, n); p != nil {
					lent++
					if int64(len(p)) != n {
						t.Fatalf("%d bytes lent, %d asked for", len(p), n)
					}
					if out = append(out, loan{p, off}); len(out) == 8 {
						giveBack()
					}
				}
				continue
			case k < 36:
				giveBack()
				p := make([]byte, n)
				for i := range p {
					p[i] = byte(rnd.Uint32())
				}
				copy(want[off:], p)
				if err := s.WriteAt(t.Context(), p, off); err != nil {
					t.Fatal(err)
				}
			case k < 37:
				giveBack()
				clear(want[off:][:n])
				if err := s.Discard(t.Context(), off, n); err != nil {
					t.Fatal(err)
				}
			case k < 38:
				giveBack()
				clear(want[off:][:n])
				if err := s.WriteZeroes(t.Context(), off, n, k%2 == 0); err != nil {
					t.Fatal(err)
				}
			default:
				giveBack()
				dst := rnd.Int64N(int64(len(want)) - n)
				copy(want[dst:][:n], want[off:][:n])
				if err := s.CopyRange(t.Context(), dst, off, n); err != nil {
					t.Fatal(err)
				}
			}
		}
		giveBack()
		got := make([]byte, len(want))
		if err := s.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("the file is not the model (%v)", err)
		}
		if lent < reads/20 {
			t.Errorf("%d of %d reads were lent", lent, reads)
		}
	})
}

// Whatever changes the range waits for the loan, which keeps its bytes, and
// nothing is lent where somebody waits to write.
func TestLoansKeepWritersOut(t *testing.T) {
	zeroes := make([]byte, 64<<10)
	for name, change := range map[string]func(s lender) error{
		"write":        func(s lender) error { return s.WriteAt(t.Context(), zeroes, 0) },
		"write fua":    func(s lender) error { return s.WriteFUA(t.Context(), zeroes, 0) },
		"discard":      func(s lender) error { return s.Discard(t.Context(), 0, 4*mib) },
		"zeroes":       func(s lender) error { return s.WriteZeroes(t.Context(), 0, 64<<10, false) },
		"zeroes, hole": func(s lender) error { return s.WriteZeroes(t.Context(), 0, 64<<10, true) },
		"copy":         func(s lender) error { return s.CopyRange(t.Context(), 0, 3*mib, 64<<10) },
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := lending(t, tmpfs(t, "16M"), 4, 4*mib)
			want := fill(t, s)
			if name == "copy" {
				if err := s.WriteAt(t.Context(), zeroes, 3*mib); err != nil {
					t.Fatal(err)
				}
			}
			p, q := borrow(t, s, 0, 64<<10), borrow(t, s, 32<<10, 64<<10)
			if done, err := s.TryWriteAt(zeroes[:512], 100<<10-4096); done || err != nil {
				t.Fatalf("a write to what is on loan is done at once: %v, %v", done, err)
			}
			changed := make(chan error, 1)
			go func() { changed <- change(s) }()
			for { // until it waits
				r := s.LendMapped(0, 64<<10)
				if r == nil {
					break
				}
				s.ReturnMapped(r, 0)
				runtime.Gosched()
			}
			s.ReturnMapped(p, 0)
			if !bytes.Equal(q, want[32<<10:][:64<<10]) {
				t.Error("what is on loan has changed")
			}
			select {
			case err := <-changed:
				t.Errorf("the change did not wait: %v", err)
			default:
			}
			s.ReturnMapped(q, 32<<10)
			if err := <-changed; err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 64<<10)
			if err := s.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, zeroes) {
				t.Errorf("the change is not there (%v)", err)
			}
		})
	}
}

// Readers, writers and the end, all at once. A write covers a block with one
// byte, so that a loan of it holds one byte too, and keeps it.
func TestLoansStress(t *testing.T) {
	const block, blocks = 64 << 10, 128
	s, path := lending(t, tmpfs(t, "32M"), 2, block*blocks)
	for i := range int64(blocks) {
		if err := s.WriteAt(t.Context(), make([]byte, block), i*block); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	var lent, wrote atomic.Int64
	for k := range uint64(3) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(k, 1))
			for at := int64(0); ; at = (at + 1) % blocks {
				if rnd.IntN(8) == 0 {
					at = rnd.Int64N(blocks)
				}
				p := s.LendMapped(at*block, block)
				if p == nil {
					var b [1]byte
					if err := s.ReadAt(t.Context(), b[:], at); errors.Is(err, backing.ErrClosed) {
						return
					}
					continue
				}
				lent.Add(1)
				if !bytes.Equal(p[:block-1], p[1:]) {
					t.Error("half of a write is lent")
				}
				s.ReturnMapped(p, at*block)
			}
		})
	}
	for k := range uint64(2) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(k, 2))
			for {
				p := bytes.Repeat([]byte{byte(rnd.Uint32())}, block)
				off := rnd.Int64N(blocks) * block
				done, err := s.TryWriteAt(p, off)
				if !done && err == nil {
					err = s.WriteAt(t.Context(), p, off)
				}
				if err != nil {
					if !errors.Is(err, backing.ErrClosed) {
						t.Error(err)
					}
					return
				}
				if wrote.Add(1) == 3000 {
					s.Close()
				}
			}
		})
	}
	wg.Wait()
	if lent.Load() == 0 {
		t.Error("nothing was lent")
	}
	again, err := file.Open(t.Context(), path, backing.OpenOptions{Exclusive: true})
	if err != nil {
		t.Fatalf("the file is still in use: %v", err)
	}
	again.Close()
	if n := mapped(t, path); n != 0 {
		t.Errorf("%d bytes of a closed file are mapped", n)
	}
}

// Close does not take away what is on loan.
func TestCloseWithLoans(t *testing.T) {
	s, path := lending(t, tmpfs(t, "16M"), 2, 4*mib)
	want := fill(t, s)
	p := borrow(t, s, mib, mib)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s.LendMapped(0, mib) != nil {
		t.Error("a closed store lends")
	}
	if !bytes.Equal(p, want[mib:2*mib]) {
		t.Error("the loan has changed")
	}
	s.ReturnMapped(p, mib)
	if n := mapped(t, path); n != 0 {
		t.Errorf("%d bytes of a closed file are mapped", n)
	}
}

// A file that grows is lent to its new end, and holes stay holes.
func TestLoansOfHolesAndGrowth(t *testing.T) {
	s, _ := lending(t, tmpfs(t, "16M"), 4, 2*mib)
	fill(t, s)
	s.ReturnMapped(borrow(t, s, 0, mib), 0)
	if err := s.Resize(t.Context(), 8*mib); err != nil {
		t.Fatal(err)
	}
	before, err := s.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 64 {
		for off := int64(0); off < 8*mib; off += 512 << 10 {
			if p := s.LendMapped(off, 512<<10); p != nil {
				if off >= 2*mib {
					t.Fatalf("a hole at %d is lent", off)
				}
				s.ReturnMapped(p, off)
			}
		}
	}
	if err := s.Discard(t.Context(), 0, mib); err != nil {
		t.Fatal(err)
	}
	for range 64 {
		if s.LendMapped(0, mib) != nil {
			t.Fatal("what was discarded is lent")
		}
	}
	after, err := s.Usage(t.Context())
	if err != nil || after.Used != before.Used-mib {
		t.Errorf("%d bytes are used, before the discard of 1 MiB %d (%v)", after.Used, before.Used, err)
	}
	p := bytes.Repeat([]byte{7}, mib)
	if err := s.WriteAt(t.Context(), p, 7*mib); err != nil {
		t.Fatal(err)
	}
	q := borrow(t, s, 7*mib, mib)
	if !bytes.Equal(p, q) {
		t.Error("the new end is not what was written")
	}
	s.ReturnMapped(q, 7*mib)
}

// A file that is cut off while it is lent: the kernel says so and nobody dies,
// the store lends no more, and reading it is an error.
func TestFileIsCutOffWhileLent(t *testing.T) {
	s, path := lending(t, tmpfs(t, "16M"), 2, 4*mib)
	fill(t, s)
	p := borrow(t, s, 2*mib, 64<<10)
	if err := os.Truncate(path, mib); err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	if n, err := unix.Writev(fds[0], [][]byte{p}); !errors.Is(err, syscall.EFAULT) {
		t.Errorf("writev of what is gone: %d, %v", n, err)
	}
	if err := s.CopyMapped(make([]byte, 4096), 2*mib); err == nil {
		t.Error("what is gone can be copied")
	}
	s.ReturnMapped(p, 2*mib)
	for range 64 {
		if s.LendMapped(0, 512<<10) != nil {
			t.Fatal("it lends again")
		}
	}
	if err := s.ReadAt(t.Context(), make([]byte, 4096), 2*mib); err == nil {
		t.Error("what is gone can be read")
	}
	if err := s.ReadAt(t.Context(), make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
}

// A file that Refresh finds shorter while a stream goes on in it.
func TestStreamThroughShrinkingFile(t *testing.T) {
	s, path := lending(t, tmpfs(t, "16M"), 2, 8*mib)
	fill(t, s)
	s.ReturnMapped(borrow(t, s, mib, mib), mib) // the next window goes on from here
	if err := os.Truncate(path, mib); err != nil {
		t.Fatal(err)
	}
	if _, err := s.(backing.Refresher).Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !file.Place(s, 2*mib, mib) {
		t.Error("no window for what goes on")
	}
}

// What a file has grown by behind the store's back may be holes, which are not
// filled.
func TestLoansAfterRefresh(t *testing.T) {
	s, path := lending(t, tmpfs(t, "16M"), 4, 4*mib)
	fill(t, s)
	s.ReturnMapped(borrow(t, s, 0, mib), 0)
	if err := os.Truncate(path, 8*mib); err != nil {
		t.Fatal(err)
	}
	if n, err := s.(backing.Refresher).Refresh(t.Context()); n != 8*mib || err != nil {
		t.Fatal(n, err)
	}
	for off := int64(3 * mib); off < 8*mib; off += mib {
		for range 8 {
			if p := s.LendMapped(off, mib); p != nil {
				if off >= 4*mib {
					t.Fatalf("a hole at %d is lent", off)
				}
				s.ReturnMapped(p, off)
			}
		}
	}
	if u, err := s.Usage(t.Context()); err != nil || u.Used > 4*mib {
		t.Errorf("%d bytes are used (%v)", u.Used, err)
	}
}

// A closed file is let go of, also where another store just looks at the window
// that once was its own.
func TestCloseWhileLooked(t *testing.T) {
	s, path := lending(t, tmpfs(t, "16M"), 2, 4*mib)
	fill(t, s)
	s.ReturnMapped(borrow(t, s, 0, mib), 0)
	file.CloseWhileLooked(s)
	if n := mapped(t, path); n != 0 {
		t.Errorf("%d bytes of a closed file are mapped", n)
	}
}

// What is mapped does not grow with the number of files or their size, and what
// cannot be lent for want of windows is not.
func TestWindowsAreBounded(t *testing.T) {
	dir := tmpfs(t, "128M")
	open := file.Lending(file.NewWindows(3 * window))
	var stores []lender
	for i := range 3 {
		s, err := open(t.Context(), filepath.Join(dir, fmt.Sprint("disk", i)), backing.OpenOptions{Create: true, CreateSize: 24 * mib})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		fill(t, s)
		stores = append(stores, s.(lender))
	}
	lent := 0
	for off := int64(0); off < 24*mib; off += mib {
		for _, s := range stores {
			if p := s.LendMapped(off, mib); p != nil {
				lent++
				s.ReturnMapped(p, off)
			}
		}
	}
	if lent < 48 {
		t.Errorf("%d of 72 reads were lent", lent)
	}
	if n := mapped(t, dir); n == 0 || n > 3*window {
		t.Errorf("%d bytes are mapped, want up to %d", n, 3*window)
	}
	s := stores[0]
	out := map[int64][]byte{}
	for off := int64(0); off < 24*mib; off += 2 * mib {
		for range 300 {
			if p := s.LendMapped(off, mib); p != nil {
				out[off] = p
				break
			}
		}
	}
	if len(out) != 3 {
		t.Errorf("%d windows are on loan, there are 3", len(out))
	}
	for off, p := range out {
		s.ReturnMapped(p, off)
	}
}

// mapped is how many bytes of files whose path begins so this process maps.
func mapped(t *testing.T, path string) (n int) {
	t.Helper()
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var from, to int
		if _, err := fmt.Sscanf(sc.Text(), "%x-%x", &from, &to); err == nil && strings.Contains(sc.Text(), path) {
			n += to - from
		}
	}
	return n
}

// Files that are opened with O_DIRECT, and reads that are too short or too long,
// are not lent.
func TestWhatIsNotLent(t *testing.T) {
	s, _ := lending(t, tmpfs(t, "16M"), 2, 8*mib)
	fill(t, s)
	s.ReturnMapped(borrow(t, s, 0, mib), 0)
	for _, r := range [][2]int64{{0, 2048}, {0, 0}, {0, -1}, {-mib, mib}, {0, mib + 1}, {8 * mib, mib}, {8*mib - 512, mib}, {1<<63 - mib, mib}} {
		if s.LendMapped(r[0], r[1]) != nil {
			t.Errorf("%d bytes at %d are lent", r[1], r[0])
		}
	}
	path := filepath.Join(t.TempDir(), "disk")
	d, err := file.Lending(file.NewWindows(window))(t.Context(), path, backing.OpenOptions{Create: true, CreateSize: 4 * mib, Direct: true})
	if err != nil {
		t.Skip(err)
	}
	defer d.Close()
	for range 64 {
		if d.(lender).LendMapped(0, mib) != nil {
			t.Fatal("a file that goes past the page cache is lent from it")
		}
	}
}

func TestLoansDoNotAllocate(t *testing.T) {
	s, _ := lending(t, tmpfs(t, "32M"), 2, 16*mib)
	fill(t, s)
	s.ReturnMapped(borrow(t, s, 0, mib), 0)
	at, lent := int64(0), 0
	if n := testing.AllocsPerRun(500, func() {
		if p := s.LendMapped(at, 64<<10); p != nil {
			lent++
			s.ReturnMapped(p, at)
		}
		at = (at + 64<<10) % (16 * mib)
	}); n != 0 || lent == 0 {
		t.Errorf("%v allocations, %d of 500 lent", n, lent)
	}
}
