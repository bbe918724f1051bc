package file_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"

	"blockgate/backing"
	"blockgate/backing/file"
	"blockgate/backing/layer/readonly"
)

// twoFiles makes files of 64 MiB: the first has data in two places.
func twoFiles(t *testing.T, a, b string, o backing.OpenOptions) (src, dst backing.Store, data []byte) {
	t.Helper()
	o.Create, o.CreateSize = true, 64<<20
	src, dst = open(t, filepath.Join(a, "src"), o), open(t, filepath.Join(b, "dst"), o)
	t.Cleanup(func() { src.Close(); dst.Close() })
	data = make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i*7 + i>>9)
	}
	for _, off := range []int64{1 << 20, 40 << 20} {
		if err := src.WriteAt(t.Context(), data, off); err != nil {
			t.Fatal(err)
		}
	}
	return src, dst, data
}

func TestCopyFrom(t *testing.T) {
	for name, o := range map[string]backing.OpenOptions{"buffered": {}, "direct": {Direct: true}, "sync": {Sync: true}} {
		for _, mayUnmap := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				ctx := t.Context()
				dir := t.TempDir()
				src, dst, data := twoFiles(t, dir, dir, o)
				old := bytes.Repeat([]byte{0xee}, 4<<20)
				for off := int64(0); off < dst.Size(); off += int64(len(old)) {
					if err := dst.WriteAt(ctx, old, off); err != nil {
						t.Fatal(err)
					}
				}
				c, ok := backing.As[backing.CopierFrom](dst)
				if !ok {
					t.Fatal("a file does not copy from others")
				}
				// From 512 bytes in, to another place, over a hole of 38 MiB.
				const n = 45 << 20
				err := c.CopyFrom(ctx, src, 3<<20, 1<<20+512, n, mayUnmap)
				if errors.Is(err, backing.ErrNotSupported) {
					t.Skip(err)
				}
				if err != nil {
					t.Fatal(err)
				}
				want, got := make([]byte, n), make([]byte, n)
				if err := src.ReadAt(ctx, want, 1<<20+512); err != nil {
					t.Fatal(err)
				}
				if err := dst.ReadAt(ctx, got, 3<<20); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) || !bytes.Equal(got[:len(data)-512], data[512:]) {
					t.Error("what was copied is not what is there")
				}
				edge := make([]byte, 1024)
				for _, off := range []int64{3<<20 - 1024, 3<<20 + n} {
					if err := dst.ReadAt(ctx, edge, off); err != nil || !bytes.Equal(edge, old[:1024]) {
						t.Errorf("at %d beyond the copy: %x…, %v", off, edge[:8], err)
					}
				}
				usage, err := dst.(backing.Usager).Usage(ctx)
				if sparse := usage.Used < 40<<20; err != nil || sparse != mayUnmap {
					t.Errorf("may unmap %v: %d bytes are used, %v", mayUnmap, usage.Used, err)
				}
			})
		}
	}
}

func TestCopyFromRefuses(t *testing.T) {
	ctx := t.Context()
	src, dst, _ := twoFiles(t, t.TempDir(), tmpfs(t, "80m"), backing.OpenOptions{})
	c := dst.(backing.CopierFrom)
	for name, s := range map[string]backing.Store{
		"another file system": src, "itself": dst, "a layer": readonly.New(src),
	} {
		if err := c.CopyFrom(ctx, s, 0, 1<<20, 4096, true); !errors.Is(err, backing.ErrNotSupported) {
			t.Errorf("%s: %v, want ErrNotSupported", name, err)
		}
	}
	for _, r := range [][3]int64{{0, 64 << 20, 1}, {64 << 20, 0, 1}, {0, -1, 1}, {0, 0, 65 << 20}} {
		if err := c.CopyFrom(ctx, src, r[0], r[1], r[2], true); !errors.Is(err, backing.ErrOutOfRange) {
			t.Errorf("%v: %v, want ErrOutOfRange", r, err)
		}
	}
	p := filepath.Join(t.TempDir(), "ro")
	sparse(t, p, 1<<20)
	ro, err := file.Open(ctx, p, backing.OpenOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	if _, ok := backing.As[backing.CopierFrom](ro); ok {
		t.Error("a read-only store copies into itself")
	}
	if err := src.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.CopyFrom(ctx, src, 0, 0, 4096, true); !errors.Is(err, backing.ErrClosed) {
		t.Errorf("from a closed store: %v, want ErrClosed", err)
	}
}
