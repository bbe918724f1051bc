package ram_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"blockgate/backing"
	"blockgate/backing/ram"
	"blockgate/backing/storetest"
)

func open(t testing.TB, url string, o backing.OpenOptions) backing.Store {
	t.Helper()
	s, err := ram.Open(t.Context(), url, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) backing.Store {
		return open(t, fmt.Sprint(storetest.Size), backing.OpenOptions{})
	})
}

func TestOpen(t *testing.T) {
	for _, c := range []struct {
		url  string
		o    backing.OpenOptions
		size int64
		err  error
	}{
		{url: "1G", size: 1 << 30},
		{url: "512,name=scratch", size: 512},
		{url: "64M,name=scratch,pages=huge", size: 64 << 20},
		{url: "64M,pages=small,name=scratch", size: 64 << 20},
		{url: "", o: backing.OpenOptions{Create: true, CreateSize: 4096}, size: 4096},
		{url: "1M", o: backing.OpenOptions{Create: true, CreateSize: 1 << 20}, size: 1 << 20},
		{url: "1M", o: backing.OpenOptions{Create: true, CreateSize: 1 << 21}, err: backing.ErrSizeMismatch},
		{url: "2P", err: backing.ErrOutOfRange},
		{url: "1P", size: 1 << 50},
		{url: ""}, {url: "0"}, {url: "1G,colour=red"}, {url: "1G,name="}, {url: "1G,"}, {url: "1G,pages=2M"}, {url: "1G,name=a,,pages=huge"}, {url: "lots"},
	} {
		s, err := ram.Open(t.Context(), c.url, c.o)
		if c.size == 0 {
			if err == nil || c.err != nil && !errors.Is(err, c.err) {
				t.Errorf("Open(%q): error = %v, want one of kind %v", c.url, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("Open(%q): %v", c.url, err)
			continue
		}
		if s.Size() != c.size {
			t.Errorf("Open(%q): size = %d, want %d", c.url, s.Size(), c.size)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A large store can be written at both ends, and its extents tell every block.
func TestSparse(t *testing.T) {
	ctx := t.Context()
	const size = 1 << 42
	s := open(t, "4T", backing.OpenOptions{})
	defer s.Close()
	block := make([]byte, 512)
	block[0] = 1
	for _, off := range []int64{0, 1 << 30, size - 512} {
		if err := s.WriteAt(ctx, block, off); err != nil {
			t.Fatal(err)
		}
	}
	want := []backing.Extent{
		{Off: 0, Len: 512, Allocated: true},
		{Off: 512, Len: 1<<30 - 512},
		{Off: 1 << 30, Len: 512, Allocated: true},
		{Off: 1<<30 + 512, Len: size - 512 - 1<<30 - 512},
		{Off: size - 512, Len: 512, Allocated: true},
	}
	check := func() {
		t.Helper()
		var got []backing.Extent
		err := s.(backing.Extenter).Extents(ctx, 0, size, func(e backing.Extent) bool {
			got = append(got, e)
			return true
		})
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("extents = %v, %v; want %v", got, err, want)
		}
	}
	check()
	// One block of two in a page is unmapped, the page stays for the other.
	if err := s.WriteAt(ctx, block, 512); err != nil {
		t.Fatal(err)
	}
	if err := s.(backing.Discarder).Discard(ctx, 512, 512); err != nil {
		t.Fatal(err)
	}
	check()
	if err := s.(backing.ZeroWriter).WriteZeroes(ctx, 1<<30, 512, false); err != nil {
		t.Fatal(err)
	}
	check()
	// Everything at once.
	if err := s.(backing.Discarder).Discard(ctx, 0, size); err != nil {
		t.Fatal(err)
	}
	want = []backing.Extent{{Len: size}}
	check()
}

// Close while calls run ends them with ErrClosed, and none touches memory that
// is gone.
func TestCloseUnderLoad(t *testing.T) {
	s := open(t, "256M", backing.OpenOptions{})
	started := make(chan struct{}, 4)
	ended := make(chan error, 4)
	for w := range int64(4) {
		go func() {
			p := make([]byte, 64<<10)
			var err error
			for i := int64(0); err == nil; i++ {
				off := (i*4 + w) % 4096 << 16
				if err = s.WriteAt(context.Background(), p, off); err == nil {
					err = s.ReadAt(context.Background(), p, off)
				}
				if i == 10 {
					started <- struct{}{}
				}
			}
			ended <- err
		}()
	}
	for range 4 {
		<-started
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for range 4 {
		if err := <-ended; !errors.Is(err, backing.ErrClosed) {
			t.Errorf("error = %v, want %v", err, backing.ErrClosed)
		}
	}
}

func TestReadOnly(t *testing.T) {
	s := open(t, "1M", backing.OpenOptions{ReadOnly: true})
	defer s.Close()
	if err := s.WriteAt(t.Context(), make([]byte, 512), 0); !errors.Is(err, backing.ErrReadOnly) {
		t.Errorf("WriteAt: %v", err)
	}
	if c := backing.CapsOf(s); c&backing.CapsModify != 0 {
		t.Errorf("capabilities of a read-only store: %v", c)
	}
}

func BenchmarkReadAt4K(b *testing.B) {
	s, p := open(b, "64M", backing.OpenOptions{}), make([]byte, 4096)
	defer s.Close()
	if err := s.WriteAt(b.Context(), make([]byte, 64<<20), 0); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetBytes(4096)
	for i := int64(0); b.Loop(); i++ {
		if err := s.ReadAt(b.Context(), p, i*4099%16384<<12); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWriteAt4K(b *testing.B) {
	s, p := open(b, "64M", backing.OpenOptions{}), make([]byte, 4096)
	defer s.Close()
	b.ReportAllocs()
	b.SetBytes(4096)
	for i := int64(0); b.Loop(); i++ {
		if err := s.WriteAt(b.Context(), p, i*4099%16384<<12); err != nil {
			b.Fatal(err)
		}
	}
}

func TestUsage(t *testing.T) {
	s, err := ram.New(128 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !backingHas(s) {
		t.Skip("the system does not tell its memory")
	}
	used := func() int64 {
		t.Helper()
		u, err := s.Usage(t.Context())
		if err != nil || u.Available <= 0 {
			t.Fatalf("Usage = %+v, %v", u, err)
		}
		return u.Used
	}
	if n := used(); n != 0 {
		t.Errorf("an empty store uses %d bytes", n)
	}
	for _, off := range []int64{0, 1<<20 - 512, 100 << 20} {
		if err := s.WriteAt(t.Context(), make([]byte, 1024), off); err != nil {
			t.Fatal(err)
		}
	}
	if n := used(); n != 3*1024 {
		t.Errorf("after three writes of a KiB: %d bytes", n)
	}
	if err := s.Discard(t.Context(), 0, 512); err != nil {
		t.Fatal(err)
	}
	if n := used(); n != 3*1024-512 {
		t.Errorf("after a discard: %d bytes", n)
	}
}

func backingHas(s *ram.Store) bool { return s.Capabilities()&backing.CapUsage != 0 }

// A reader sees all of an atomic write that crosses from one chunk to the next,
// or nothing.
func TestWriteAtomic(t *testing.T) {
	s, err := ram.New(4 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const off, n = 1<<20 - 4096, 8192
	done := make(chan error)
	go func() {
		for i := range 200 {
			if err := s.WriteAtomic(context.Background(), bytes.Repeat([]byte{byte(i)}, n), off); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for running := true; running; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		default:
		}
		// Comparing with what cannot be there looks at the whole range at once.
		p := make([]byte, n)
		if err := s.ReadAt(t.Context(), p[:1], off); err != nil {
			t.Fatal(err)
		}
		want := bytes.Repeat(p[:1], n)
		at, err := s.CompareAndWrite(t.Context(), want, want, off)
		if err != nil {
			t.Fatal(err)
		}
		if at > 0 {
			t.Fatalf("half of an atomic write: the first difference is at %d", at)
		}
	}
}
