package state_test

import (
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"blockgate/internal/state"
)

// What cannot last is not promised.
func TestFileTakenAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	b := bolt(t, path)
	s := open(t, b)
	apply(t, s, volume("a"))
	other, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for what, do := range map[string]func() error{
		"is gone":      func() error { return os.Remove(path) },
		"was replaced": func() error { os.Remove(path); return os.WriteFile(path, other, 0o600) },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
		_, err := b.Txn(t.Context(), state.Txn{})
		wantCode(t, err, state.CodeStateFailed, state.Refused)
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %q", err, what)
		}
	}
}

// A first start that fails leaves no empty file, which the next one would refuse.
func TestFailedFirstStartLeavesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 0, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	_, err := state.OpenBolt(path)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err == nil {
		t.Fatal("a state file was made though nothing can be written")
	}
	b, err := state.OpenBolt(path)
	if err != nil {
		t.Fatalf("after there was room again: %v", err)
	}
	b.Close()
}
