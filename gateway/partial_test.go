package gateway_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"blockgate/gateway"
	"blockgate/iscsi/initiator"
)

// A store of three blocks and a half serves three, keeps the half, and grows by
// that rule.
func TestPartialBlockIgnored(t *testing.T) {
	g, addr := newGateway(t, gateway.Config{})
	img := filepath.Join(t.TempDir(), "a")
	const odd = 3*4096 + 100
	was := bytes.Repeat([]byte{0x55}, odd)
	ok(t, os.WriteFile(img, was, 0o600))
	cfg := gateway.VolumeConfig{Name: "v", URL: "file:" + img, Unit: gateway.DefaultUnit()}
	cfg.Unit.BlockSize = 4096
	var partial *gateway.PartialBlockError
	if err := g.AddVolume(t.Context(), cfg); !errors.As(err, &partial) {
		t.Fatalf("not told to ignore it: %v", err)
	}
	cfg.IgnorePartialBlock = true
	export(t, g, cfg, gateway.TargetConfig{Name: name, ACL: gateway.Everyone()})
	s, err := login(t, addr, initiator.Config{})
	ok(t, err)
	u := s.Unit(initiator.LUN(0))
	capacity := func(want int64) {
		t.Helper()
		c, err := u.ReadCapacity(t.Context())
		if initiator.IsUnitAttention(err) {
			c, err = u.ReadCapacity(t.Context())
		}
		if err != nil || c.Bytes() != want {
			t.Errorf("capacity %v, %v; want %d bytes", c, err, want)
		}
		if i, err := g.Volume("v"); err != nil || i.Size != want {
			t.Errorf("the volume has %d bytes, %v; want %d", i.Size, err, want)
		}
	}
	capacity(3 * 4096)
	d, err := u.OpenDisk(t.Context())
	ok(t, err)
	ok(t, d.WriteAt(t.Context(), make([]byte, 3*4096), 0))
	if err := d.WriteAt(t.Context(), make([]byte, 4096), 3*4096); err == nil {
		t.Error("the half block was written")
	}
	got, err := os.ReadFile(img)
	ok(t, err)
	if !bytes.Equal(got[3*4096:], was[3*4096:]) || !bytes.Equal(got[:3*4096], make([]byte, 3*4096)) {
		t.Error("the file is not three blocks of zeros and the old rest")
	}

	ok(t, g.ResizeVolume(t.Context(), "v", 3*4096)) // as it is: nothing is cut off
	if i, err := os.Stat(img); err != nil || i.Size() != odd {
		t.Errorf("the file has %d bytes, %v", i.Size(), err)
	}
	strict := cfg
	strict.IgnorePartialBlock = false
	if err := g.UpdateVolume(t.Context(), strict); !errors.As(err, &partial) {
		t.Errorf("refused from now on: %v", err)
	}
	ok(t, os.Truncate(img, 5*4096+1))
	if n, err := g.RefreshVolume(t.Context(), "v"); err != nil || n != 5*4096 {
		t.Errorf("after growing: %d bytes, %v", n, err)
	}
	capacity(5 * 4096)
	ok(t, g.ResizeVolume(t.Context(), "v", 6*4096))
	capacity(6 * 4096)
	ok(t, g.UpdateVolume(t.Context(), strict)) // nothing is over any more
}
