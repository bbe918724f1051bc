package engines_test

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"blockgate/backing"
	"blockgate/backing/engines"
)

func TestDefault(t *testing.T) {
	r := engines.Default()
	if got, want := r.Schemes(), []string{"curve", "file", "gluster", "nbd", "nbd+unix", "nbds", "nbds+unix", "null", "ram", "rbd", "sheepdog"}; !slices.Equal(got, want) {
		t.Errorf("schemes = %v, want %v", got, want)
	}
	path := filepath.Join(t.TempDir(), "disk.img")
	for url, engine := range map[string]string{"file:" + path: "file", path: "file", "ram:1M": "ram", "null:1M": "null"} {
		s, err := r.Open(t.Context(), url, backing.OpenOptions{Create: true, CreateSize: 1 << 20})
		if err != nil {
			t.Errorf("Open(%q): %v", url, err)
			continue
		}
		if info := backing.InfoOf(s); info.Engine != engine || s.Size() != 1<<20 {
			t.Errorf("Open(%q): %+v of %d bytes", url, info, s.Size())
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	_, err := r.Open(t.Context(), "tape:0", backing.OpenOptions{})
	if !errors.Is(err, backing.ErrNotSupported) || !strings.Contains(err.Error(), "tape") || !strings.Contains(err.Error(), "curve, file, gluster, nbd, nbd+unix, nbds, nbds+unix, null, ram, rbd") {
		t.Errorf("unknown engine: %v; want an error that names those there are", err)
	}
	// A registry of one's own does not change another's.
	r.Register("tape", nil)
	if slices.Contains(engines.Default().Schemes(), "tape") {
		t.Error("two registries share their engines")
	}
}
