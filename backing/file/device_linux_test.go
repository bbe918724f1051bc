package file_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"blockgate/backing"
	"blockgate/backing/file"
	"blockgate/backing/storetest"
)

func TestBlockDevice(t *testing.T) {
	for name, c := range map[string]struct {
		o       backing.OpenOptions
		options []string
	}{
		"Buffered":  {},
		"Exclusive": {o: backing.OpenOptions{Exclusive: true}},
		"Direct":    {o: backing.OpenOptions{Direct: true}},
		"Direct4K":  {o: backing.OpenOptions{Direct: true}, options: []string{"--sector-size", "4096"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tmpfs(t, "16m")
			image := filepath.Join(dir, "disk.img")
			sparse(t, image, storetest.Size)
			device := loop(t, image, c.options...)
			storetest.Run(t, func(t *testing.T) backing.Store {
				s := open(t, device, c.o)
				if err := s.WriteAt(t.Context(), make([]byte, storetest.Size), 0); err != nil {
					t.Fatal(err)
				}
				caps := backing.CapsOf(s)
				if caps&(backing.CapExtents|backing.CapResize|backing.CapCopyRange) != 0 {
					t.Errorf("a block device claims %v", caps)
				}
				return s
			})
		})
	}
}

func TestBlockDeviceInfo(t *testing.T) {
	dir := tmpfs(t, "16m")
	device := loop(t, sparse(t, filepath.Join(dir, "disk.img"), 4<<20), "--sector-size", "4096")
	s := open(t, device, backing.OpenOptions{Exclusive: true})
	info := backing.InfoOf(s)
	if info.PhysicalBlock != 4096 || info.Engine != "file" || info.Location != device || info.Thin {
		t.Errorf("info = %+v", info)
	}
	if _, err := file.Open(t.Context(), device, backing.OpenOptions{Exclusive: true}); !errors.Is(err, backing.ErrBusy) {
		t.Errorf("second exclusive open: %v, want ErrBusy", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := file.Open(t.Context(), device, backing.OpenOptions{Create: true, CreateSize: 1 << 20})
	if !errors.Is(err, backing.ErrSizeMismatch) {
		t.Errorf("another size: %v, want ErrSizeMismatch", err)
	}
}

// A device whose medium loses what the page cache holds: the flush that learns of
// it fails, and from then on every write and flush does, though the kernel would
// let the next fdatasync succeed.
func TestFlushFailure(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, s backing.Store, p []byte) error{
		"Flush": func(t *testing.T, s backing.Store, p []byte) error {
			if err := s.WriteAt(t.Context(), p, 0); err != nil {
				t.Fatal(err)
			}
			return s.Flush(t.Context())
		},
		"WriteFUA": func(t *testing.T, s backing.Store, p []byte) error {
			return s.(backing.FUAWriter).WriteFUA(t.Context(), p, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			dir := tmpfs(t, "256k")
			device := loop(t, sparse(t, filepath.Join(dir, "disk.img"), 4<<20))
			s := open(t, device, backing.OpenOptions{})
			defer s.Close()
			p := make([]byte, 2<<20)
			for i := range p {
				p[i] = 0xff
			}
			if err := lose(t, s, p); !errors.Is(err, backing.ErrFailed) {
				t.Fatalf("write that cannot reach the medium: %v, want ErrFailed", err)
			}
			for what, err := range map[string]error{
				"WriteAt":  s.WriteAt(ctx, p[:4096], 0),
				"Flush":    s.Flush(ctx),
				"WriteFUA": s.(backing.FUAWriter).WriteFUA(ctx, p[:4096], 0),
				"Zeroes":   s.(backing.ZeroWriter).WriteZeroes(ctx, 0, 4096, true),
			} {
				if !errors.Is(err, backing.ErrFailed) {
					t.Errorf("%s afterwards: %v, want ErrFailed", what, err)
				}
			}
			if done, err := s.(backing.TryWriter).TryWriteAt(p[:4096], 0); done || !errors.Is(err, backing.ErrFailed) {
				t.Errorf("TryWriteAt afterwards = %v, %v; want ErrFailed", done, err)
			}
			if err := s.ReadAt(ctx, p[:4096], 3<<20); err != nil {
				t.Errorf("ReadAt afterwards: %v", err)
			}
			s2, err := file.Open(ctx, device, backing.OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer s2.Close()
			if err := s2.WriteAt(ctx, p[:4096], 0); err != nil {
				t.Errorf("WriteAt after opening anew: %v", err)
			}
		})
	}
}

func TestDeviceSizeChange(t *testing.T) {
	dir := tmpfs(t, "16m")
	image := sparse(t, filepath.Join(dir, "disk.img"), 4<<20)
	device := loop(t, image)
	s := open(t, device, backing.OpenOptions{})
	defer s.Close()
	if err := os.Truncate(image, 8<<20); err != nil {
		t.Fatal(err)
	}
	setCapacity(t, device)
	if n, err := s.(backing.Refresher).Refresh(t.Context()); err != nil || n != 8<<20 || s.Size() != n {
		t.Errorf("Refresh = %d, %v, Size = %d; want 8 MiB", n, err, s.Size())
	}
}
