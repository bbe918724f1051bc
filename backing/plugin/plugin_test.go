package plugin_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"blockgate/backing"
	"blockgate/backing/plugin"
	"blockgate/backing/plugin/internal/control"
	"blockgate/backing/storetest"
)

// host opens toys.
type host struct {
	cfg plugin.Config
	log *logged
	dir string
}

// logged collects a log.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func newHost(t *testing.T, kind string) *host {
	t.Helper()
	t.Setenv(toyVariable, kind)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{log: new(logged), dir: t.TempDir()}
	h.cfg = plugin.Config{
		Name: "toy", Path: self, Logger: slog.New(slog.NewTextHandler(h.log, nil)),
		Grace: 2 * time.Second, Ping: 300 * time.Millisecond, Backoff: 5 * time.Millisecond,
	}
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		goleak.VerifyNone(t, leaks)
		if t.Failed() {
			t.Logf("log:\n%s", h.log)
		}
	})
	return h
}

const toySize = 4 << 20

func (h *host) open(ctx context.Context, params string, stall time.Duration) (*plugin.Store, error) {
	return plugin.Open(ctx, h.cfg, filepath.Join(h.dir, "disk")+params, backing.OpenOptions{Create: true, CreateSize: toySize, Stall: stall})
}

func (h *host) mustOpen(t *testing.T, params string) *plugin.Store {
	t.Helper()
	s, err := h.open(t.Context(), params, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestStore(t *testing.T) {
	h := newHost(t, "ok")
	n := 0
	storetest.Run(t, func(t *testing.T) backing.Store {
		n++
		s, err := plugin.Open(t.Context(), h.cfg, filepath.Join(h.dir, fmt.Sprint(n)), backing.OpenOptions{Create: true, CreateSize: storetest.Size})
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

// Programs that are not what they should be are one line, and leave nothing.
func TestPluginsThatCannotBe(t *testing.T) {
	for _, c := range []struct{ kind, want string }{
		{"other", `is the plugin for "other", not for "toy"`},
		{"library", `no engine "toy": libtoy.so.1 is not there: install the package libtoy1`},
		{"garbage", "is not a plugin of blockgate: not a frame of the plugin protocol"},
		{"huge", "is not a plugin of blockgate: not a frame of the plugin protocol: a length of 2147483647 bytes"},
		{"exit", "ended: exit status 7: the last words"},
		{"old", "(version v9) speaks version 99 of the plugin protocol and this program version 1: install both from the same release"},
		{"silent", "does not answer"},
	} {
		t.Run(c.kind, func(t *testing.T) {
			h := newHost(t, c.kind)
			s, err := h.open(t.Context(), "", 0)
			if err == nil {
				s.Close()
				t.Fatal("it was opened")
			}
			if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v; want one line with %q", err, c.want)
			}
			if missing := c.kind == "library"; errors.Is(err, plugin.ErrMissing) != missing || errors.Is(err, backing.ErrNotSupported) != missing {
				t.Errorf("%v: missing is %v", err, !missing)
			}
		})
	}
	t.Run("no program", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		_, err := plugin.Engine("not-there")(t.Context(), "x", backing.OpenOptions{})
		if !errors.Is(err, plugin.ErrMissing) || !strings.Contains(err.Error(), `no engine "not-there": the program blockgate-not-there is not there: install the package blockgate-not-there, or name it in BLOCKGATE_PLUGIN_NOT_THERE`) {
			t.Error(err)
		}
	})
	t.Run("no store", func(t *testing.T) {
		h := newHost(t, "ok")
		_, err := plugin.Open(t.Context(), h.cfg, filepath.Join(h.dir, "none"), backing.OpenOptions{})
		if !errors.Is(err, backing.ErrNotExist) {
			t.Error(err)
		}
	})
}

// A program is found beside ours, by its variable, and in PATH.
func TestSearch(t *testing.T) {
	h := newHost(t, "ok")
	dir := t.TempDir()
	if err := os.Symlink(h.cfg.Path, filepath.Join(dir, "blockgate-toy")); err != nil {
		t.Fatal(err)
	}
	open := func() {
		t.Helper()
		s, err := plugin.Engine("toy")(t.Context(), filepath.Join(h.dir, "disk"), backing.OpenOptions{Create: true, CreateSize: toySize})
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	t.Setenv("BLOCKGATE_PLUGIN_TOY", h.cfg.Path)
	open()
	t.Setenv("BLOCKGATE_PLUGIN_TOY", "")
	t.Setenv("PATH", dir)
	open()
	t.Setenv("BLOCKGATE_PLUGIN_TOY", filepath.Join(dir, "none"))
	if _, err := plugin.Engine("toy")(t.Context(), filepath.Join(h.dir, "disk"), backing.OpenOptions{}); err == nil {
		t.Error("a variable that names nothing is ignored")
	}
}

// load writes and reads back from several goroutines while something happens.
func load(t *testing.T, s *plugin.Store, rounds int) {
	t.Helper()
	var work sync.WaitGroup
	for w := range 8 {
		work.Go(func() {
			region := int64(w) * toySize / 8
			p, got := make([]byte, 4096), make([]byte, 4096)
			for i := range rounds {
				off := region + int64(i%100)*4096
				for k := range p {
					p[k] = byte(w ^ i ^ k)
				}
				if err := s.WriteAt(context.Background(), p, off); err != nil {
					t.Errorf("write %d of %d: %v", i, w, err)
					return
				}
				if err := s.ReadAt(context.Background(), got, off); err != nil || !bytes.Equal(p, got) {
					t.Errorf("read %d of %d: %v, the same: %v", i, w, err, bytes.Equal(p, got))
					return
				}
			}
		})
	}
	work.Wait()
}

// Whatever ends a process, calls are held and done by the next one.
func TestProcessIsLost(t *testing.T) {
	for _, c := range []struct{ params, said string }{
		{"?crash=200", "signal: killed: libtoy: assertion failed"},
		{"?stop=200", "does not answer"},
		{"?restart=200", "nobody knows"},
		{"?crash=200&volatile=1", "signal: killed"},
	} {
		t.Run(c.params, func(t *testing.T) {
			h := newHost(t, "ok")
			s := h.mustOpen(t, c.params)
			var mu sync.Mutex
			var states []backing.State
			stop := s.Notify(func(backing.Change) {
				mu.Lock()
				defer mu.Unlock()
				states = append(states, s.Health().State)
			})
			load(t, s, 60)
			if err := s.Flush(t.Context()); err != nil {
				t.Error(err)
			}
			wait(t, "it is healthy again", func() bool { return s.Health().State == backing.Healthy })
			stop()
			mu.Lock()
			defer mu.Unlock()
			if len(states) == 0 || states[0] != backing.Stalled {
				t.Errorf("states told: %v", states)
			}
			if !strings.Contains(h.log.String(), c.said) {
				t.Errorf("the log does not say %q", c.said)
			}
			if strings.Count(h.log.String(), "plugin started again") != 1 {
				t.Error("it was not started again exactly once")
			}
		})
	}
}

// wait polls for what no event announces to this test.
func wait(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// A store that was fenced off, or is somebody else's when the process is back, has
// failed: nothing is sent again, and no process is left.
func TestFenced(t *testing.T) {
	for _, c := range []struct{ params, reason string }{
		{"?fence=3", "fenced by gateway b"},
		{"?crash=3&again=busy", "taken over by gateway b"},
	} {
		t.Run(c.params, func(t *testing.T) {
			h := newHost(t, "ok")
			s := h.mustOpen(t, c.params)
			p := make([]byte, 4096)
			var err error
			for i := range int64(3) {
				if err = s.WriteAt(t.Context(), p, i*4096); err != nil {
					break
				}
			}
			if !errors.Is(err, backing.ErrFailed) || !strings.Contains(err.Error(), c.reason) {
				t.Errorf("write: %v", err)
			}
			wait(t, "the store has failed", func() bool { return s.Health().State == backing.Failed })
			if r := s.Health().Reason; !strings.Contains(r, c.reason) {
				t.Errorf("reason %q, want %q", r, c.reason)
			}
			for _, err := range []error{s.ReadAt(t.Context(), p, 0), s.WriteAt(t.Context(), p, 0), s.Flush(t.Context()), s.Resize(t.Context(), toySize+512)} {
				if !errors.Is(err, backing.ErrFailed) || !strings.Contains(err.Error(), c.reason) {
					t.Errorf("after that: %v", err)
				}
			}
		})
	}
}

// A call that the process keeps is given up after the stall limit, and that
// process is ended.
func TestHang(t *testing.T) {
	h := newHost(t, "ok")
	s, err := h.open(t.Context(), "?hang=1", 300*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.WriteAt(t.Context(), make([]byte, 512), 0); err == nil {
		t.Fatal("a write that hangs succeeded")
	}
	wait(t, "another process", func() bool { return strings.Contains(h.log.String(), "plugin started again") })
	wait(t, "it writes again", func() bool { return s.WriteAt(t.Context(), make([]byte, 512), 0) == nil })
}

// With no process to be had calls end after the stall limit.
func TestNoProcessAnyMore(t *testing.T) {
	h := newHost(t, "ok")
	dir := t.TempDir()
	link := filepath.Join(dir, "blockgate-toy")
	if err := os.Symlink(h.cfg.Path, link); err != nil {
		t.Fatal(err)
	}
	h.cfg.Path = link
	s, err := h.open(t.Context(), "?crash=2", 300*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.WriteAt(t.Context(), make([]byte, 512), 0); err != nil {
		t.Fatal(err)
	}
	os.Remove(link)
	if err := s.WriteAt(t.Context(), make([]byte, 512), 0); err == nil {
		t.Fatal("a write was done by nobody")
	}
	if _, err := s.Refresh(t.Context()); !errors.Is(err, backing.ErrStalled) {
		t.Errorf("refresh: %v", err)
	}
	if hl := s.Health(); hl.State != backing.Stalled || !strings.Contains(hl.Reason, "blockgate-toy") {
		t.Errorf("health %+v", hl)
	}
	if err := os.Symlink(os.Args[0], link); err != nil {
		t.Fatal(err)
	}
	wait(t, "it writes again", func() bool { return s.WriteAt(t.Context(), make([]byte, 512), 0) == nil })
}

func TestControl(t *testing.T) {
	h := newHost(t, "ok")
	s := h.mustOpen(t, "?grow=1&full=1")
	ctx := t.Context()
	sizes := make(chan int64, 8)
	stop := s.Notify(func(c backing.Change) {
		if c&backing.SizeChanged != 0 {
			sizes <- s.Size()
		}
	})
	defer stop()
	if err := s.WriteAt(ctx, make([]byte, 512), 0); err != nil {
		t.Fatal(err)
	}
	select {
	case n := <-sizes:
		if n != toySize+1<<20 {
			t.Errorf("size %d", n)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nothing is told of the new size")
	}
	if err := s.WriteAt(ctx, make([]byte, 512), toySize); !errors.Is(err, backing.ErrNoSpace) {
		t.Errorf("write to a full store: %v", err)
	}
	if err := s.Resize(ctx, toySize+2<<20); err != nil || s.Size() != toySize+2<<20 {
		t.Errorf("resize: %v, %d", err, s.Size())
	}
	if err := s.Resize(ctx, 512); !errors.Is(err, backing.ErrNotSupported) {
		t.Errorf("shrink: %v", err)
	}
	if u, err := s.Usage(ctx); err != nil || u.Available != 1<<40 {
		t.Errorf("usage %+v, %v", u, err)
	}
	big := make([]byte, 1<<20)
	if at, err := s.CompareAndWrite(ctx, big, bytes.Repeat([]byte{7}, len(big)), 4096); err != nil || at != -1 {
		t.Errorf("compare and write: %d, %v", at, err)
	}
	if at, err := s.CompareAndWrite(ctx, big, big, 4096-100); err != nil || at != 100 {
		t.Errorf("compare and write: %d, %v", at, err)
	}
	// More at once than a plugin takes.
	var counted sync.WaitGroup
	var wrote atomic.Int32
	for range 200 {
		counted.Go(func() {
			at, err := s.CompareAndWrite(ctx, make([]byte, 512), bytes.Repeat([]byte{9}, 512), 3<<20)
			if err != nil || at > 0 {
				t.Errorf("compare and write: %d, %v", at, err)
			} else if at < 0 {
				wrote.Add(1)
			}
		})
	}
	counted.Wait()
	if wrote.Load() != 1 {
		t.Errorf("%d of 200 found zeroes", wrote.Load())
	}
	made, err := s.CreateSnapshot(ctx, "a")
	if err != nil || made.Name != "a" || made.Pause != time.Millisecond {
		t.Errorf("%+v, %v", made, err)
	}
	if _, err := s.CreateSnapshot(ctx, "a"); !errors.Is(err, backing.ErrExist) {
		t.Errorf("again: %v", err)
	}
	if l, err := s.Snapshots(ctx); err != nil || len(l) != 1 || l[0].Name != "a" || l[0].Size != toySize+2<<20 || !l[0].Created.Equal(time.Unix(1700000000, 0)) {
		t.Errorf("%+v, %v", l, err)
	}
	if where, err := s.Clone(ctx, "a", "b"); err != nil || where != "b" {
		t.Errorf("clone %q, %v", where, err)
	}
	if err := s.DeleteSnapshot(ctx, "a"); err != nil {
		t.Error(err)
	}
	if err := s.DeleteSnapshot(ctx, "a"); !errors.Is(err, backing.ErrNotExist) {
		t.Error(err)
	}
}

// An answer that is too long is an error, and no reason to end the process.
func TestLongAnswer(t *testing.T) {
	h := newHost(t, "ok")
	s := h.mustOpen(t, "")
	pid := s.PID()
	for i := range 2 {
		if _, err := s.CreateSnapshot(t.Context(), strings.Repeat(fmt.Sprint(i), control.MaxMessage/3)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Snapshots(t.Context()); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("error %v", err)
	}
	if _, err := s.CreateSnapshot(t.Context(), strings.Repeat("x", control.MaxMessage)); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("error %v", err)
	}
	if s.PID() != pid {
		t.Error("the process was replaced")
	}
}

func TestInfoIsPlausible(t *testing.T) {
	h := newHost(t, "ok")
	i := h.mustOpen(t, "?info=bad").Info()
	if len(i.Location) > 4096 {
		t.Errorf("a location of %d bytes", len(i.Location))
	}
	i.Location = ""
	if want := (backing.Info{Engine: "toy"}); i != want {
		t.Errorf("%+v, want %+v", i, want)
	}
}

// What a program writes without end does not fill the log.
func TestNoise(t *testing.T) {
	h := newHost(t, "ok")
	h.mustOpen(t, "?noise=1")
	if n := len(h.log.String()); n > 1<<20 {
		t.Errorf("%d bytes in the log", n)
	}
	if !strings.Contains(h.log.String(), "noise 1 xxx") || !strings.Contains(h.log.String(), "plugin wrote too much") {
		t.Error("the log does not say what was written and that it was too much")
	}
}

// The process ends with the gateway, also when that is killed.
func TestDiesWithGateway(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), toyVariable+"=gateway", "DISK="+filepath.Join(t.TempDir(), "disk"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscanln(out, &pid); err != nil || syscall.Kill(pid, 0) != nil {
		t.Fatalf("plugin %d: %v", pid, err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	wait(t, "the plugin has gone", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(b), ") Z ")
	})
}
