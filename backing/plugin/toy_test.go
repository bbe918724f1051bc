package plugin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/plugin"
	"blockgate/backing/plugin/internal/control"
	"blockgate/backing/plugin/side"
)

// toyVariable makes this test binary the plugin "toy"; its value says which.
const toyVariable = "BLOCKGATE_TEST_TOY"

func TestMain(m *testing.M) {
	if kind := os.Getenv(toyVariable); kind != "" {
		os.Exit(toyMain(kind))
	}
	os.Exit(m.Run())
}

func toyMain(kind string) int {
	e := side.Engine{Name: "toy", Open: openToy, Load: func() (string, error) { return "libtoy 1", nil }}
	var ctl *os.File
	if kind == "garbage" || kind == "huge" || kind == "old" {
		ctl = os.NewFile(control.FD, "control") // Main closes it in the others
	}
	switch kind {
	case "environment":
		if os.Getenv("NOTIFY_SOCKET") != "" || os.Getenv("BLOCKGATE_CHAP_SECRET") != "" {
			return 9
		}
	case "other":
		e.Name = "other"
	case "library":
		e.Load = func() (string, error) { return "", errors.New("libtoy.so.1 is not there: install the package libtoy1") }
	case "garbage":
		ctl.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
		select {}
	case "huge":
		ctl.Write([]byte{0x7f, 0xff, 0xff, 0xff})
		select {}
	case "gateway":
		os.Setenv(toyVariable, "ok")
		s, err := plugin.Open(context.Background(), plugin.Config{Name: "toy", Path: os.Args[0]}, os.Getenv("DISK"),
			backing.OpenOptions{Create: true, CreateSize: 1 << 20})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(s.PID())
		select {}
	case "exit":
		fmt.Fprintln(os.Stderr, "first line\nthe last words")
		return 7
	case "silent":
		select {}
	case "old":
		m, err := control.Read(ctl)
		if err != nil {
			return 1
		}
		b, _ := json.Marshal(control.HelloAnswer{Protocol: 99, Name: "toy", Version: "v9"})
		m.Op, m.Body = "", b
		b, _ = json.Marshal(m)
		ctl.Write(append([]byte{0, 0, 0, byte(len(b))}, b...))
		select {}
	}
	return side.Main(e)
}

// toy is a file. Its location is the file's path with what goes wrong:
// ?crash=N&stop=N&fence=N&restart=N&grow=N at the N-th write of the first process,
// again=busy at the opening of the second; with full=1 there is no space behind
// what it was created with.
type toy struct {
	f      *os.File
	params url.Values
	again  bool
	writes atomic.Int64

	mu      sync.Mutex
	fns     []func(backing.Change)
	restart func(string)
	health  backing.Health
	snaps   []backing.Snapshot
	hung    chan struct{}
}

func openToy(_ context.Context, location string, o side.Options) (backing.Store, error) {
	path, query, _ := strings.Cut(location, "?")
	params, err := url.ParseQuery(query)
	if err != nil {
		return nil, err
	}
	if o.Again && params.Get("again") == "busy" {
		return nil, fmt.Errorf("taken over by gateway b: %w", backing.ErrBusy)
	}
	if params.Get("noise") != "" {
		for i := range 100000 {
			fmt.Fprintf(os.Stderr, "noise %d %s\n", i, strings.Repeat("x", 2000))
		}
	}
	fmt.Fprintln(os.Stderr, "toy: opened with a limit of", o.Stall)
	flags := os.O_RDWR
	if o.Create {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, backing.ErrNotExist)
	} else if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err == nil && st.Size() == 0 && o.CreateSize > 0 {
		f.Truncate(o.CreateSize)
	}
	return &toy{f: f, params: params, again: o.Again, hung: make(chan struct{})}, nil
}

func (s *toy) Durable() bool { return s.params.Get("volatile") == "" }

func (s *toy) Capabilities() backing.Caps {
	return backing.CapsAll &^ (backing.CapTryRead | backing.CapTryWrite | backing.CapWriteAtomic | backing.CapCopyFrom | backing.CapCopyRange)
}

func (s *toy) Info() backing.Info {
	if s.params.Get("info") == "bad" {
		return backing.Info{Engine: "file", Location: strings.Repeat("x", 1<<20), PhysicalBlock: -7, OptimalIO: -1, DiscardGranularity: 1 << 62, DiscardAlignment: -1 << 62}
	}
	return backing.Info{Engine: "toy", Location: s.f.Name(), PhysicalBlock: 4096, OptimalIO: 1 << 20}
}

func (s *toy) Size() int64 {
	st, err := s.f.Stat()
	if err != nil {
		return 0
	}
	return st.Size()
}

func (s *toy) check(off, n int64) error {
	if off < 0 || n < 0 || off > s.Size()-n {
		return backing.ErrOutOfRange
	}
	return nil
}

func (s *toy) ReadAt(_ context.Context, p []byte, off int64) error {
	if err := s.check(off, int64(len(p))); err != nil {
		return err
	}
	_, err := s.f.ReadAt(p, off)
	return err
}

// at reports whether this is the write at which something is to happen.
func (s *toy) at(what string, n int64) bool {
	return !s.again && s.params.Get(what) == fmt.Sprint(n)
}

func (s *toy) WriteAt(_ context.Context, p []byte, off int64) error {
	if err := s.check(off, int64(len(p))); err != nil {
		return err
	}
	n := s.writes.Add(1)
	switch {
	case s.params.Get("poison") != "":
		os.Exit(8)
	case s.at("crash", n):
		fmt.Fprintln(os.Stderr, "libtoy: assertion failed")
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case s.at("stop", n):
		syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	case s.at("hang", n):
		<-s.hung
	case s.at("fence", n):
		// Who it was is found out later.
		time.AfterFunc(300*time.Millisecond, func() {
			s.change(func() { s.health = backing.Health{State: backing.Failed, Reason: "fenced by gateway b"} }, backing.HealthChanged)
		})
		return backing.ErrFailed
	case s.at("restart", n):
		s.mu.Lock()
		fn := s.restart
		s.mu.Unlock()
		fn("nobody knows")
		select {}
	case s.at("grow", n):
		s.change(func() { s.f.Truncate(s.Size() + 1<<20) }, backing.SizeChanged)
	case s.params.Get("full") != "" && off >= toySize:
		return fmt.Errorf("toy: %w", backing.ErrNoSpace)
	}
	_, err := s.f.WriteAt(p, off)
	return err
}

func (s *toy) WriteFUA(ctx context.Context, p []byte, off int64) error { return s.WriteAt(ctx, p, off) }
func (s *toy) Flush(context.Context) error                             { return nil }
func (s *toy) Close() error                                            { return s.f.Close() }

func (s *toy) Discard(ctx context.Context, off, n int64) error {
	return s.WriteZeroes(ctx, off, n, true)
}

func (s *toy) WriteZeroes(_ context.Context, off, n int64, _ bool) error {
	if err := s.check(off, n); err != nil {
		return err
	}
	_, err := s.f.WriteAt(make([]byte, n), off)
	return err
}

func (s *toy) Extents(_ context.Context, off, n int64, fn func(backing.Extent) bool) error {
	if err := s.check(off, n); err != nil {
		return err
	}
	// What holds zeroes only is told as a hole.
	block := make([]byte, 4096)
	for n > 0 {
		p := block[:min(n, 4096-off%4096)]
		if _, err := s.f.ReadAt(p, off); err != nil {
			return err
		}
		if !fn(backing.Extent{Off: off, Len: int64(len(p)), Allocated: len(bytes.Trim(p, "\x00")) > 0}) {
			return nil
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

func (s *toy) Resize(_ context.Context, size int64) error {
	if size < s.Size() {
		return backing.ErrNotSupported
	}
	return s.f.Truncate(size)
}

func (s *toy) Refresh(context.Context) (int64, error) { return s.Size(), nil }

func (s *toy) Usage(context.Context) (backing.Usage, error) {
	return backing.Usage{Used: s.Size(), Available: 1 << 40}, nil
}

func (s *toy) CompareAndWrite(ctx context.Context, old, new []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := make([]byte, len(old))
	if err := s.ReadAt(ctx, now, off); err != nil {
		return -1, err
	}
	for i := range now {
		if now[i] != old[i] {
			return i, nil
		}
	}
	return -1, s.WriteAt(ctx, bytes.Clone(new), off)
}

func (s *toy) CreateSnapshot(_ context.Context, name string) (backing.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.snaps {
		if x.Name == name {
			return x, fmt.Errorf("snapshot %s: %w", name, backing.ErrExist)
		}
	}
	x := backing.Snapshot{Name: name, ID: name, Created: time.Unix(1700000000, 0).UTC(), Size: s.Size(), Pause: time.Millisecond}
	s.snaps = append(s.snaps, x)
	return x, nil
}

func (s *toy) Snapshots(context.Context) ([]backing.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snaps, nil
}

func (s *toy) DeleteSnapshot(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, x := range s.snaps {
		if x.Name == name {
			s.snaps = append(s.snaps[:i], s.snaps[i+1:]...)
			return nil
		}
	}
	return backing.ErrNotExist
}

func (s *toy) Clone(_ context.Context, _, name string) (string, error) { return name, nil }

func (s *toy) change(do func(), c backing.Change) {
	s.mu.Lock()
	do()
	fns := s.fns
	s.mu.Unlock()
	for _, fn := range fns {
		fn(c)
	}
}

func (s *toy) Notify(fn func(backing.Change)) (stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fns = append(s.fns, fn)
	return func() {}
}

func (s *toy) Health() backing.Health {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.health
}

func (s *toy) SetStall(limit time.Duration) {
	fmt.Fprintln(os.Stderr, "toy: the limit is", limit)
}

func (s *toy) NotifyRestart(fn func(string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restart = fn
}
