package file

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"blockgate/backing"
)

// On a thin volume whole blocks of the pool are discarded and the ends zeroed,
// for which no space is taken where there are zeroes already. A loop device
// discards as such a volume does.
func TestThinDiscard(t *testing.T) {
	const size, block = 4 << 20, 192 << 10 // a pool's block is no power of two
	for name, o := range map[string]backing.OpenOptions{"Buffered": {}, "Direct": {Direct: true}} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			image := filepath.Join(t.TempDir(), "disk.img")
			if err := os.WriteFile(image, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(image, size); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("losetup", "--find", "--show", image).Output()
			if err != nil {
				t.Skipf("needs a loop device: losetup: %v", err)
			}
			device := strings.TrimSpace(string(out))
			t.Cleanup(func() { exec.Command("losetup", "--detach", device).Run() })
			opened, err := Open(ctx, device, o)
			if err != nil {
				t.Fatal(err)
			}
			s := opened.(*Store)
			defer s.Close()
			if !s.geo.punch {
				t.Skip("the loop device's file system has no holes")
			}
			s.geo.thin, s.geo.granularity = true, block

			// Zeroes over a hole: nothing is written.
			used := func() int64 {
				if err := s.Flush(ctx); err != nil {
					t.Fatal(err)
				}
				var st syscall.Stat_t
				if err := syscall.Stat(image, &st); err != nil {
					t.Fatal(err)
				}
				return st.Blocks * 512
			}
			if err := s.Discard(ctx, 1000, size-2000); err != nil {
				t.Fatal(err)
			}
			if n := used(); n != 0 {
				t.Errorf("a discard of nothing has taken %d bytes", n)
			}

			for _, r := range [][2]int64{{0, size}, {block - 700, 2*block + 1400}, {100, 50}, {4096, block}, {size - 5000, 5000}, {block, 0}} {
				want := bytes.Repeat([]byte{0xa5}, size)
				if err := s.WriteAt(ctx, want, 0); err != nil {
					t.Fatal(err)
				}
				full := used()
				if err := s.WriteZeroes(ctx, r[0], r[1], true); err != nil {
					t.Fatal(err)
				}
				clear(want[r[0] : r[0]+r[1]])
				got := make([]byte, size)
				if err := s.ReadAt(ctx, got, 0); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%v: not what was to be zeroed has been", r)
				}
				whole := max((r[0]+r[1])/block-(r[0]+block-1)/block, 0) * block
				if back := full - used(); back < whole {
					t.Errorf("%v: %d bytes have come back, want %d", r, back, whole)
				}
			}
			if s.noPunch.Load() {
				t.Error("discards have been given up")
			}
		})
	}
}

func TestThinBlock(t *testing.T) {
	const volume, pool = 254<<8 | 5, 254<<8 | 3
	for name, c := range map[string]struct {
		volume, pool []dmTarget
		want         int
	}{
		"Thin":           {[]dmTarget{{"thin", "254:3 1"}}, []dmTarget{{"thin-pool", "254:1 254:2 128 0 0 "}}, 65536},
		"Features":       {[]dmTarget{{"thin", "254:3 1"}}, []dmTarget{{"thin-pool", "254:1 254:2 384 0 1 error_if_no_space "}}, 192 << 10},
		"NotZeroed":      {[]dmTarget{{"thin", "254:3 1"}}, []dmTarget{{"thin-pool", "254:1 254:2 128 0 2 no_discard_passdown skip_block_zeroing "}}, 0},
		"ExternalOrigin": {[]dmTarget{{"thin", "254:3 1 254:9"}}, []dmTarget{{"thin-pool", "254:1 254:2 128 0 0"}}, 0},
		"Linear":         {[]dmTarget{{"linear", "254:3 0"}}, []dmTarget{{"thin-pool", "254:1 254:2 128 0 0"}}, 0},
		"TwoParts":       {[]dmTarget{{"thin", "254:3 1"}, {"linear", "7:0 2048"}}, []dmTarget{{"thin-pool", "254:1 254:2 128 0 0"}}, 0},
		"NoPool":         {[]dmTarget{{"thin", "254:3 1"}}, []dmTarget{{"linear", "7:0 2048"}}, 0},
		"NoTable":        {[]dmTarget{{"thin", "254:3 1"}}, nil, 0},
		"Odd":            {[]dmTarget{{"thin", "pool 1"}}, []dmTarget{{"thin-pool", "254:1 254:2 128 0 0"}}, 0},
		"Short":          {[]dmTarget{{"thin", "254:3 1"}}, []dmTarget{{"thin-pool", "254:1"}}, 0},
		"Huge":           {[]dmTarget{{"thin", "254:3 1"}}, []dmTarget{{"thin-pool", "254:1 254:2 99999999999 0 0"}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			got := thinBlockOf(volume, func(dev uint64) ([]dmTarget, error) {
				switch {
				case dev == volume:
					return c.volume, nil
				case dev == pool && c.pool != nil:
					return c.pool, nil
				}
				return nil, errors.New("no such device")
			})
			if got != c.want {
				t.Errorf("block of %d bytes, want %d", got, c.want)
			}
		})
	}
}

// dmReply is what DM_TABLE_STATUS answers.
func dmReply(flags uint32, targets ...dmTarget) []byte {
	e := binary.NativeEndian
	b := make([]byte, dmHeader)
	e.PutUint32(b[16:], dmHeader)
	e.PutUint32(b[20:], uint32(len(targets)))
	e.PutUint32(b[28:], flags)
	for _, t := range targets {
		spec := make([]byte, dmSpec, dmSpec+len(t.params)+8)
		copy(spec[24:], t.kind)
		spec = append(append(spec, t.params...), 0)
		spec = append(spec, make([]byte, -len(spec)&7)...)
		e.PutUint32(spec[20:], uint32(len(b)-dmHeader+len(spec)))
		b = append(b, spec...)
	}
	return b
}

func TestParseTable(t *testing.T) {
	want := []dmTarget{{"thin", "254:3 1"}, {"linear", "7:0 2048"}}
	got, err := parseTable(dmReply(0, want...))
	if err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if got, err := parseTable(dmReply(dmBufferFull, want...)); err == nil {
		t.Errorf("a cut table: %v", got)
	}
}

func FuzzParseTable(f *testing.F) {
	f.Add(dmReply(0, dmTarget{"thin", "254:3 1"}))
	f.Add(dmReply(0, dmTarget{"thin-pool", "254:1 254:2 128 0 0"}, dmTarget{"linear", "7:0 2048"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseTable(b)
		if err == nil && len(list)*dmSpec > len(b) {
			t.Errorf("%d targets in %d bytes", len(list), len(b))
		}
	})
}

// What the kernel cannot discard is zeroed. A file system is not asked again; a
// device is, since a snapshot of it that forbids discards goes some day.
func TestDiscardUnsupported(t *testing.T) {
	for name, device := range map[string]bool{"File": false, "Device": true} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			opened, err := Open(ctx, filepath.Join(t.TempDir(), "disk.img"), backing.OpenOptions{Create: true, CreateSize: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			s := opened.(*Store)
			defer s.Close()
			s.geo.device = device
			asked := 0
			discard := func(handle, int64, int64) error { asked++; return syscall.EOPNOTSUPP }
			for range 2 {
				if err := s.WriteAt(ctx, bytes.Repeat([]byte{1}, 8192), 0); err != nil {
					t.Fatal(err)
				}
				if err := s.space(ctx, 0, 8192, 512, discard, &s.noPunch); err != nil {
					t.Fatal(err)
				}
				p := make([]byte, 8192)
				if err := s.ReadAt(ctx, p, 0); err != nil || !isZero(p) {
					t.Errorf("not zeroed (%v)", err)
				}
			}
			want := 1
			if device {
				want = 2
			}
			if asked != want {
				t.Errorf("asked %d times, want %d", asked, want)
			}
		})
	}
}
