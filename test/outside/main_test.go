// Package outside runs the blockgate binary against tools that nobody of this
// project wrote: libiscsi, QEMU, Wireshark's dissector, a Linux guest. They run
// when BLOCKGATE_OUTSIDE is set (test/run.sh and test/outside/run.sh do), need
// the packages of test/packages.sh and root, and use 127.0.0.1 only.
//
// BLOCKGATE_OUTSIDE=all adds the longer ones, =soak the crash rounds for
// BLOCKGATE_SOAK_SECONDS. BLOCKGATE_BIN names a binary to test instead of one
// that is built here.
package outside

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// blockgate is the binary under test, bindir has its other names (tgtd, tgtadm).
var blockgate, bindir string

func TestMain(m *testing.M) {
	if os.Getenv("BLOCKGATE_OUTSIDE") == "" {
		os.Exit(m.Run()) // only what needs no binary
	}
	dir, err := os.MkdirTemp("", "blockgate-outside-")
	if err == nil {
		err = buildBinary(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "outside:", err)
		os.RemoveAll(dir)
		os.Exit(1)
	}
	status := m.Run()
	os.RemoveAll(dir)
	os.Exit(status)
}

func buildBinary(dir string) error {
	bindir = dir
	blockgate = filepath.Join(dir, "blockgate")
	if named := os.Getenv("BLOCKGATE_BIN"); named != "" {
		abs, err := filepath.Abs(named)
		if err != nil {
			return err
		}
		if err := os.Symlink(abs, blockgate); err != nil {
			return err
		}
	} else {
		if err := build(blockgate, "blockgate/cmd/blockgate"); err != nil {
			return err
		}
	}
	for _, name := range []string{"blockgate-rbd", "blockgate-gluster"} {
		if err := build(filepath.Join(dir, name), "blockgate/cmd/"+name); err != nil {
			return err
		}
		// A binary that was named does not look here.
		variable := strings.ToUpper(strings.ReplaceAll(strings.Replace(name, "-", "_PLUGIN_", 1), "-", "_"))
		if err := os.Setenv(variable, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for _, name := range []string{"tgtd", "tgtadm", "tgt-admin", "tgt-setup-lun", "tgtimg"} {
		if err := os.Symlink("blockgate", filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func build(path, pkg string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

// needsTools skips a test when only unit tests are wanted.
func needsTools(t *testing.T) {
	t.Helper()
	if os.Getenv("BLOCKGATE_OUTSIDE") == "" {
		t.Skip("outside tests run with BLOCKGATE_OUTSIDE=1 (make test)")
	}
}

// needsAll skips a test of the longer set.
func needsAll(t *testing.T) {
	t.Helper()
	if os.Getenv("BLOCKGATE_OUTSIDE") != "all" {
		t.Skip("part of the longer set (make judge)")
	}
}
