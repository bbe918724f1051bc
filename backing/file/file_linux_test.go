package file_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"blockgate/backing"
	"blockgate/backing/file"
)

// tmpfs mounts a small file system and returns its folder.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("blockgate-test", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// loop makes a block device over the file at path.
func loop(t *testing.T, path string, options ...string) string {
	t.Helper()
	out, err := exec.Command("losetup", append(append([]string{"--find", "--show"}, options...), path)...).Output()
	if err != nil {
		t.Skipf("needs a loop device: losetup: %v", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach: %v: %s", err, out)
		}
	})
	return device
}

func sparse(t *testing.T, path string, size int64) string {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExclusive(t *testing.T) {
	first, path := create(t, 1<<20, backing.OpenOptions{Exclusive: true})
	link := path + ".link"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, o := range []backing.OpenOptions{
		{Exclusive: true},
		{Exclusive: true, ReadOnly: true},
		{Exclusive: true, Create: true, CreateSize: 1 << 20},
	} {
		for _, p := range []string{path, link} {
			if _, err := file.Open(t.Context(), p, o); !errors.Is(err, backing.ErrBusy) || !strings.Contains(err.Error(), p) {
				t.Errorf("second open of %s with %+v: %v, want ErrBusy", p, o, err)
			}
		}
	}
	if err := first.WriteAt(t.Context(), make([]byte, 4096), 0); err != nil {
		t.Errorf("the first open after the others were refused: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	// Readers keep writers away, and not each other.
	r1 := open(t, path, backing.OpenOptions{Exclusive: true, ReadOnly: true})
	r2 := open(t, path, backing.OpenOptions{Exclusive: true, ReadOnly: true})
	if _, err := file.Open(t.Context(), path, backing.OpenOptions{Exclusive: true}); !errors.Is(err, backing.ErrBusy) {
		t.Errorf("writer beside readers: %v, want ErrBusy", err)
	}
	r1.Close()
	r2.Close()
	open(t, path, backing.OpenOptions{Exclusive: true}).Close()
}

func TestFIFO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Skip(err)
	}
	if _, err := file.Open(t.Context(), path, backing.OpenOptions{}); err == nil {
		t.Error("a FIFO was opened")
	}
}

func TestReadOnlyFileSystem(t *testing.T) {
	dir := tmpfs(t, "1m")
	path := sparse(t, filepath.Join(dir, "disk.img"), 4096)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Skip(err)
	}
	if _, err := file.Open(t.Context(), path, backing.OpenOptions{}); !errors.Is(err, backing.ErrReadOnly) {
		t.Errorf("open for writing: %v, want ErrReadOnly", err)
	}
	if _, err := file.Open(t.Context(), path+"2", backing.OpenOptions{Create: true, CreateSize: 4096}); !errors.Is(err, backing.ErrReadOnly) {
		t.Errorf("create: %v, want ErrReadOnly", err)
	}
	open(t, path, backing.OpenOptions{ReadOnly: true}).Close()
}

// A full file system fails the writes that need space, by every path, and
// leaves the store as it was: what needs none goes on, and after a discard all does.
func TestNoSpace(t *testing.T) {
	ctx := t.Context()
	dir := tmpfs(t, "256k")
	s := open(t, filepath.Join(dir, "disk.img"), backing.OpenOptions{Create: true, CreateSize: 1 << 30})
	defer s.Close()
	p := make([]byte, 64<<10)
	p[0] = 1
	full := int64(-1)
	for off := int64(0); off < 1<<20; off += int64(len(p)) {
		if err := s.WriteAt(ctx, p, off); err != nil {
			if !errors.Is(err, backing.ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) || errors.Is(err, backing.ErrFailed) {
				t.Fatalf("write to a full file system: %v, want ErrNoSpace", err)
			}
			full = off
			break
		}
	}
	if full < 0 {
		t.Fatal("1 MiB fitted into 256 KiB")
	}
	const far = 512 << 20
	if err := s.(backing.FUAWriter).WriteFUA(ctx, p, far); !errors.Is(err, backing.ErrNoSpace) || errors.Is(err, backing.ErrFailed) {
		t.Errorf("WriteFUA: %v, want ErrNoSpace", err)
	}
	if done, err := s.(backing.TryWriter).TryWriteAt(p, far); done || err != nil {
		t.Errorf("TryWriteAt = %v, %v; want not done", done, err)
	}
	if err := s.(backing.ZeroWriter).WriteZeroes(ctx, far, 1<<20, false); !errors.Is(err, backing.ErrNoSpace) {
		t.Errorf("WriteZeroes of allocated space: %v, want ErrNoSpace", err)
	}
	if err := s.WriteAt(ctx, p, 0); err != nil {
		t.Errorf("overwrite: %v", err)
	}
	if err := s.Flush(ctx); err != nil {
		t.Errorf("Flush: %v", err)
	}
	if err := s.(backing.Discarder).Discard(ctx, 0, s.Size()); err != nil {
		t.Fatalf("Discard: %v", err)
	}
	if err := s.WriteAt(ctx, p, far); err != nil {
		t.Errorf("write after a discard: %v", err)
	}
}

func TestCreateNoSpace(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("blockgate-test", dir, "tmpfs", 0, "size=64k,nr_inodes=2"); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	sparse(t, filepath.Join(dir, "last"), 0)
	if _, err := file.Open(t.Context(), filepath.Join(dir, "disk.img"), backing.OpenOptions{Create: true, CreateSize: 4096}); !errors.Is(err, backing.ErrNoSpace) {
		t.Errorf("create without inodes: %v, want ErrNoSpace", err)
	}
}

// On a file system in memory reads and writes are done where the caller stands,
// although it does not know RWF_NOWAIT.
func TestTryInMemory(t *testing.T) {
	s := open(t, filepath.Join(tmpfs(t, "1m"), "disk.img"), backing.OpenOptions{Create: true, CreateSize: 1 << 20})
	defer s.Close()
	want, got := bytes.Repeat([]byte("in memory"), 100), make([]byte, 900)
	if done, err := s.(backing.TryWriter).TryWriteAt(want, 8192); !done || err != nil {
		t.Errorf("TryWriteAt = %v, %v; want done", done, err)
	}
	if done, err := s.(backing.TryReader).TryReadAt(got, 8192); !done || err != nil || !bytes.Equal(got, want) {
		t.Errorf("TryReadAt = %v, %v; want done with what was written", done, err)
	}
}

// What is in the page cache is read without waiting; with O_DIRECT and O_DSYNC,
// where a call waits for the medium in any case, it is not claimed.
func TestTry(t *testing.T) {
	s, _ := create(t, 1<<20, backing.OpenOptions{})
	defer s.Close()
	if err := s.WriteAt(t.Context(), []byte("cached"), 4096); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 6)
	if done, err := s.(backing.TryReader).TryReadAt(p, 4096); err != nil || done && string(p) != "cached" {
		t.Errorf("TryReadAt = %v, %v, %q", done, err, p)
	} else if !done {
		t.Log("RWF_NOWAIT does not read here")
	}
	for _, o := range []backing.OpenOptions{{Direct: true}, {Sync: true}} {
		o.Create, o.CreateSize = true, 1<<20
		s, err := file.Open(t.Context(), filepath.Join(t.TempDir(), "x"), o)
		if errors.Is(err, backing.ErrNotSupported) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := backing.As[backing.TryWriter](s); ok {
			t.Errorf("%+v: claims TryWriter", o)
		}
		if _, ok := backing.As[backing.TryReader](s); ok && o.Direct {
			t.Errorf("%+v: claims TryReader", o)
		}
		s.Close()
	}
}

func TestDirectWantsAlignedSize(t *testing.T) {
	_, err := file.Open(t.Context(), filepath.Join(t.TempDir(), "x"), backing.OpenOptions{Direct: true, Create: true, CreateSize: 1<<20 + 100})
	if !errors.Is(err, backing.ErrNotSupported) || !strings.Contains(err.Error(), "O_DIRECT") {
		t.Errorf("odd size: %v, want an error about O_DIRECT", err)
	}
}

func TestSparse(t *testing.T) {
	s, path := create(t, 64<<20, backing.OpenOptions{})
	defer s.Close()
	if _, ok := backing.As[backing.Discarder](s); !ok {
		t.Skip("this file system punches no holes")
	}
	if !backing.InfoOf(s).Thin {
		t.Error("a file with holes is not called thin")
	}
	blocks := func() int64 {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	if n := blocks(); n > 1<<20 {
		t.Errorf("a new file takes %d bytes", n)
	}
	if err := s.WriteAt(t.Context(), make([]byte, 8<<20), 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := blocks(); n < 8<<20 {
		t.Errorf("8 MiB written take %d bytes", n)
	}
	if err := s.(backing.Discarder).Discard(t.Context(), 0, 8<<20); err != nil {
		t.Fatal(err)
	}
	if n := blocks(); n > 1<<20 {
		t.Errorf("%d bytes taken after all was discarded", n)
	}
	if err := s.(backing.ZeroWriter).WriteZeroes(t.Context(), 0, 8<<20, false); err != nil {
		t.Fatal(err)
	}
	if n := blocks(); n < 8<<20 {
		t.Errorf("8 MiB zeroed without unmapping take %d bytes", n)
	}
}

// setCapacity makes a loop device take over its file's new size.
func setCapacity(t *testing.T, device string) {
	t.Helper()
	if out, err := exec.Command("losetup", "--set-capacity", device).CombinedOutput(); err != nil {
		t.Skipf("losetup --set-capacity: %v: %s", err, out)
	}
}

func TestUsage(t *testing.T) {
	s, err := file.Open(t.Context(), filepath.Join(t.TempDir(), "disk"), backing.OpenOptions{Create: true, CreateSize: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	u, ok := backing.As[backing.Usager](s)
	if !ok {
		t.Fatal("no Usager")
	}
	empty, err := u.Usage(t.Context())
	if err != nil || empty.Used >= 1<<20 || empty.Available <= 0 {
		t.Fatalf("sparse: %+v, %v", empty, err)
	}
	if err := s.WriteAt(t.Context(), make([]byte, 4<<20), 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if full, err := u.Usage(t.Context()); err != nil || full.Used < 4<<20 || full.Used > 6<<20 {
		t.Errorf("with 4 MiB written: %+v, %v", full, err)
	}
}
