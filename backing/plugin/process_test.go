package plugin_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/plugin"
)

// What another user may have put there is not run.
func TestSearchIsSafe(t *testing.T) {
	h := newHost(t, "ok")
	b, err := os.ReadFile(h.cfg.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("BLOCKGATE_PLUGIN_TOY", "")
	for name, c := range map[string]struct {
		prepare func(t *testing.T, dir, program string) error
		path    string // PATH; empty: the directory
		want    string
	}{
		"directory": {func(_ *testing.T, dir, _ string) error { return os.Chmod(dir, 0o777) }, "", "anybody may write to"},
		"program":   {func(_ *testing.T, _, program string) error { return os.Chmod(program, 0o777) }, "", "anybody may write to it"},
		"owner": {func(t *testing.T, dir, program string) error {
			if os.Getuid() != 0 {
				t.Skip("only root can give a file away")
			}
			return errors.Join(os.Chmod(dir, 0o777|os.ModeSticky), os.Chown(program, 12345, 12345))
		}, "", "belongs to user 12345"},
		"relative": {func(t *testing.T, dir, _ string) error { t.Chdir(dir); return nil }, "." + string(os.PathListSeparator), "is not there"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			program := filepath.Join(dir, "blockgate-toy")
			if err := errors.Join(os.WriteFile(program, b, 0o755), c.prepare(t, dir, program)); err != nil {
				t.Fatal(err)
			}
			if c.path == "" {
				c.path = dir
			}
			t.Setenv("PATH", c.path)
			s, err := plugin.Engine("toy")(t.Context(), filepath.Join(h.dir, "disk"), backing.OpenOptions{Create: true, CreateSize: toySize})
			if err == nil {
				s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// What is said to the gateway alone is not passed on.
func TestEnvironment(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/none")
	t.Setenv("BLOCKGATE_CHAP_SECRET", "x")
	newHost(t, "environment").mustOpen(t, "")
}

// Processes that come and go leave nothing behind.
func TestRestartsLeaveNothing(t *testing.T) {
	h := newHost(t, "ok")
	h.cfg.Backoff = time.Millisecond
	s := h.mustOpen(t, "")
	fds := func() int {
		l, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(l)
	}
	replace := func() int {
		pid := s.PID()
		syscall.Kill(pid, syscall.SIGKILL)
		wait(t, "another process", func() bool { return s.PID() != 0 && s.PID() != pid })
		if err := s.WriteAt(t.Context(), make([]byte, 512), 0); err != nil {
			t.Fatal(err)
		}
		return pid
	}
	replace()
	before := fds()
	for range 20 {
		pid := replace()
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			t.Errorf("process %d is still there", pid)
		}
	}
	if after := fds(); after > before {
		t.Errorf("%d descriptors, and there were %d", after, before)
	}
}

// A request that ends every process that gets it has them started ever less often.
func TestPoison(t *testing.T) {
	h := newHost(t, "ok")
	h.cfg.Backoff = 20 * time.Millisecond
	s, err := h.open(t.Context(), "?poison=1", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.WriteAt(t.Context(), make([]byte, 512), 0); !errors.Is(err, backing.ErrStalled) {
		t.Errorf("write: %v", err)
	}
	if n := strings.Count(h.log.String(), "plugin started again"); n == 0 || n > 7 {
		t.Errorf("started again %d times in a second", n)
	}
}

// What a program has started, as a shell in its place does, ends with it.
func TestProgramBehindAShell(t *testing.T) {
	h := newHost(t, "ok")
	script := filepath.Join(t.TempDir(), "blockgate-toy")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nsleep 100 3<&- 4<&- &\n'"+h.cfg.Path+"'\nexit $?\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.cfg.Path = script
	s := h.mustOpen(t, "")
	pid := s.PID()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wait(t, "nothing is left of the group", func() bool { return syscall.Kill(-pid, 0) == syscall.ESRCH })
}

// The limit can be changed while the store is open; it holds here, in the plugin
// and in the plugins that come after it.
func TestSetStall(t *testing.T) {
	h := newHost(t, "ok")
	s, err := h.open(t.Context(), "?hang=1", -1)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	backing.SetStall(s, 300*time.Millisecond)
	wait(t, "the plugin is told", func() bool { return strings.Contains(h.log.String(), "toy: the limit is 300ms") })
	if err := s.WriteAt(t.Context(), make([]byte, 512), 0); !errors.Is(err, backing.ErrStalled) {
		t.Fatalf("a write that hangs: %v", err)
	}
	wait(t, "another process", func() bool { return strings.Contains(h.log.String(), "toy: opened with a limit of 300ms") })
	wait(t, "it writes again", func() bool { return s.WriteAt(t.Context(), make([]byte, 512), 0) == nil })
	backing.SetStall(s, time.Hour)
	wait(t, "the plugin is told again", func() bool { return strings.Contains(h.log.String(), "toy: the limit is 1h0m0s") })
	syscall.Kill(s.PID(), syscall.SIGSTOP)
	// The stop is noticed after longer than the former limit.
	if err := s.WriteAt(t.Context(), make([]byte, 512), 0); err != nil {
		t.Errorf("a write while the plugin is replaced: %v", err)
	}
	wait(t, "the next one knows", func() bool { return strings.Contains(h.log.String(), "toy: opened with a limit of 1h0m0s") })
}
