package file_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"blockgate/backing"
	"blockgate/backing/file"
	"blockgate/backing/storetest"
)

func open(t testing.TB, path string, o backing.OpenOptions) backing.Store {
	t.Helper()
	s, err := file.Open(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t testing.TB, size int64, o backing.OpenOptions) (backing.Store, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	o.Create, o.CreateSize = true, size
	return open(t, path, o), path
}

func TestConformance(t *testing.T) {
	for name, o := range map[string]backing.OpenOptions{
		"Buffered":  {},
		"Exclusive": {Exclusive: true},
		"Direct":    {Direct: true},
		"Sync":      {Sync: true},
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) backing.Store {
				path := filepath.Join(t.TempDir(), "disk.img")
				o.Create, o.CreateSize = true, storetest.Size
				s, err := file.Open(t.Context(), path, o)
				if o.Direct && errors.Is(err, backing.ErrNotSupported) {
					t.Skip(err)
				}
				if err != nil {
					t.Fatal(err)
				}
				return s
			})
		})
	}
}

// A creation that was killed before the file had its size is finished by the next.
func TestCreateAfterKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, path, backing.OpenOptions{Create: true, CreateSize: 1 << 20, Exclusive: true})
	defer s.Close()
	if s.Size() != 1<<20 {
		t.Errorf("size %d", s.Size())
	}
}

func TestCreate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.img")
	o := backing.OpenOptions{Create: true, CreateSize: 1 << 40}
	s := open(t, path, o)
	if err := s.WriteAt(t.Context(), []byte("kept"), 1<<40-4); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode of a new file = %v, %v; want 0600", fi.Mode(), err)
	}

	// What is there stays as it is.
	for _, o := range []backing.OpenOptions{{}, {ReadOnly: true}, o, {Create: true}} {
		s := open(t, path, o)
		p := make([]byte, 4)
		if err := s.ReadAt(t.Context(), p, s.Size()-4); err != nil || string(p) != "kept" {
			t.Errorf("%+v: read %q, %v", o, p, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	_, err = file.Open(t.Context(), path, backing.OpenOptions{Create: true, CreateSize: 4096})
	if !errors.Is(err, backing.ErrSizeMismatch) || !strings.Contains(err.Error(), "4096") || !strings.Contains(err.Error(), "1099511627776") {
		t.Errorf("another size: %v; want ErrSizeMismatch that names both", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("a refused creation took the file away: %v", err)
	}

	for _, o := range []backing.OpenOptions{
		{Create: true}, {Create: true, CreateSize: -1}, {Create: true, CreateSize: 4096, ReadOnly: true},
	} {
		if _, err := file.Open(t.Context(), filepath.Join(dir, "new.img"), o); err == nil {
			t.Errorf("%+v: no error", o)
		}
		if _, err := os.Stat(filepath.Join(dir, "new.img")); !os.IsNotExist(err) {
			t.Errorf("%+v left a file behind", o)
		}
	}
	// Larger than any file system takes: nothing may stay.
	if _, err := file.Open(t.Context(), filepath.Join(dir, "huge.img"), backing.OpenOptions{Create: true, CreateSize: 1<<63 - 1}); err == nil {
		t.Log("this file system takes files of 8 EiB")
	} else if _, err := os.Stat(filepath.Join(dir, "huge.img")); !os.IsNotExist(err) {
		t.Errorf("a failed creation left a file behind: %v", err)
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := file.Open(t.Context(), filepath.Join(dir, "missing"), backing.OpenOptions{}); !errors.Is(err, backing.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if _, err := file.Open(t.Context(), filepath.Join(dir, "no", "parent"), backing.OpenOptions{Create: true, CreateSize: 4096}); !errors.Is(err, backing.ErrNotExist) {
		t.Errorf("no parent: %v", err)
	}
	if _, err := file.Open(t.Context(), dir, backing.OpenOptions{}); err == nil || !strings.Contains(err.Error(), "directory") {
		t.Errorf("directory: %v", err)
	}
	if _, err := file.Open(t.Context(), "", backing.OpenOptions{}); err == nil {
		t.Error("no path: no error")
	}
	if _, err := file.Open(t.Context(), os.DevNull, backing.OpenOptions{}); err == nil {
		t.Error("character device: no error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := file.Open(ctx, filepath.Join(dir, "x"), backing.OpenOptions{Create: true, CreateSize: 4096}); !errors.Is(err, context.Canceled) {
		t.Errorf("ended ctx: %v", err)
	}
}

func TestReadOnly(t *testing.T) {
	w, path := create(t, 1<<20, backing.OpenOptions{})
	defer w.Close()
	s := open(t, path, backing.OpenOptions{ReadOnly: true})
	defer s.Close()
	if err := s.WriteAt(t.Context(), make([]byte, 512), 0); !errors.Is(err, backing.ErrReadOnly) {
		t.Errorf("WriteAt: %v", err)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Errorf("Flush: %v", err)
	}
	if c := backing.CapsOf(s); c&backing.CapsModify != 0 || !backing.InfoOf(s).ReadOnly {
		t.Errorf("capabilities %v, info %+v", c, backing.InfoOf(s))
	}
}

// A file that becomes shorter under the store gives an error and never zeroes,
// and one that grows is seen by Refresh.
func TestSizeChanges(t *testing.T) {
	for name, o := range map[string]backing.OpenOptions{"Buffered": {}, "Direct": {Direct: true}} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			path := filepath.Join(t.TempDir(), "disk.img")
			o.Create, o.CreateSize = true, 1<<20
			s, err := file.Open(ctx, path, o)
			if errors.Is(err, backing.ErrNotSupported) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if err := os.Truncate(path, 512<<10); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 4096)
			if err := s.ReadAt(ctx, p, 512<<10-4096); err != nil {
				t.Errorf("below the new end: %v", err)
			}
			for _, off := range []int64{512<<10 - 2048, 512 << 10, 1<<20 - 4096} {
				if err := s.ReadAt(ctx, p, off); !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("read at %d beyond the new end: %v", off, err)
				}
				if r, ok := backing.As[backing.TryReader](s); ok {
					if done, _ := r.TryReadAt(p, off); done {
						t.Errorf("TryReadAt at %d beyond the new end: done", off)
					}
				}
			}
			for _, size := range []int64{512 << 10, 2 << 20} {
				if err := os.Truncate(path, size); err != nil {
					t.Fatal(err)
				}
				got, err := s.(backing.Refresher).Refresh(ctx)
				if err != nil || got != size || s.Size() != size {
					t.Errorf("Refresh = %d, %v, Size = %d; want %d", got, err, s.Size(), size)
				}
			}
			if err := s.WriteAt(ctx, p, 2<<20-4096); err != nil {
				t.Errorf("write into what was added: %v", err)
			}
		})
	}
}

// Flushes from many callers share fdatasync calls and all return.
func TestFlushTogether(t *testing.T) {
	s, _ := create(t, 1<<20, backing.OpenOptions{})
	defer s.Close()
	var wg sync.WaitGroup
	for w := range int64(8) {
		wg.Go(func() {
			for range 5 {
				if err := s.WriteAt(t.Context(), make([]byte, 4096), w<<12); err != nil {
					t.Error(err)
				}
				if err := s.Flush(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// Close while calls run: they end well or with ErrClosed, and their file
// descriptor does not come to mean another file.
func TestCloseUnderLoad(t *testing.T) {
	s, path := create(t, 1<<20, backing.OpenOptions{})
	started, ended := make(chan struct{}, 4), make(chan error, 4)
	for w := range int64(4) {
		go func() {
			p := make([]byte, 4096)
			var err error
			for i := 0; err == nil; i++ {
				if err = s.WriteAt(context.Background(), p, w<<12); err == nil {
					err = s.ReadAt(context.Background(), p, w<<12)
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
	other, err := os.OpenFile(path+".other", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for range 4 {
		if err := <-ended; !errors.Is(err, backing.ErrClosed) {
			t.Errorf("error = %v, want %v", err, backing.ErrClosed)
		}
	}
	if fi, err := other.Stat(); err != nil || fi.Size() != 0 {
		t.Errorf("another file was written to: %v, %v", fi.Size(), err)
	}
}

func benchmark(b *testing.B, call func(s backing.Store, p []byte, off int64) error) {
	s, _ := create(b, 16<<20, backing.OpenOptions{})
	defer s.Close()
	if err := s.WriteAt(b.Context(), make([]byte, 16<<20), 0); err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 4096)
	b.ReportAllocs()
	b.SetBytes(4096)
	for i := int64(0); b.Loop(); i++ {
		if err := call(s, p, i*1031%4096<<12); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadAt4K(b *testing.B) {
	benchmark(b, func(s backing.Store, p []byte, off int64) error { return s.ReadAt(context.Background(), p, off) })
}

func BenchmarkWriteAt4K(b *testing.B) {
	benchmark(b, func(s backing.Store, p []byte, off int64) error { return s.WriteAt(context.Background(), p, off) })
}

func BenchmarkTryReadAt4K(b *testing.B) {
	benchmark(b, func(s backing.Store, p []byte, off int64) error {
		if done, err := s.(backing.TryReader).TryReadAt(p, off); !done {
			b.Skip("not in the cache, or not possible here: ", err)
		}
		return nil
	})
}
