package outside

import (
	"debug/buildinfo"
	"debug/elf"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The binary is one file that needs nothing of the system it runs on.
func TestBinaryIsStatic(t *testing.T) {
	needsTools(t)
	f, err := elf.Open(blockgate)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("it has a %v segment", p.Type)
		}
	}
	if libs, _ := f.ImportedLibraries(); len(libs) > 0 {
		t.Errorf("it wants %v", libs)
	}
	info, err := buildinfo.ReadFile(blockgate)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range info.Settings {
		if s.Key == "CGO_ENABLED" && s.Value != "0" {
			t.Errorf("built with CGO_ENABLED=%s", s.Value)
		}
	}
	st, err := os.Stat(blockgate)
	if err != nil {
		t.Fatal(err)
	}
	figure(t, "the binary has %.1f MiB", float64(st.Size())/(1<<20))

	// It runs where there is nothing else: no library, no /proc, no home.
	root := t.TempDir()
	data, err := os.ReadFile(blockgate)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "blockgate"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	if out := ok(t, 10*time.Second, "chroot", root, "/blockgate", "version"); strings.TrimSpace(out) == "" {
		t.Error("version prints nothing")
	}
}
