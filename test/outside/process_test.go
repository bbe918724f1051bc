package outside

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// output collects what a process writes and wakes those who wait for it.
type output struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{} // closed and replaced at every write
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf.Write(p)
	if o.more != nil {
		close(o.more)
		o.more = nil
	}
	return len(p), nil
}

func (o *output) state() (text string, more <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.more == nil {
		o.more = make(chan struct{})
	}
	return o.buf.String(), o.more
}

func (o *output) String() string { s, _ := o.state(); return s }

// process is a child in a process group of its own, killed when the test ends.
type process struct {
	cmd      *exec.Cmd
	out, err output
	done     chan struct{} // closed when it has ended
}

// spawn starts a program with the environment of this process and env on top.
func spawn(t *testing.T, env []string, name string, args ...string) *process {
	t.Helper()
	return spawnWith(t, env, nil, name, args...)
}

// spawnWith is spawn with an input; nil is an empty one.
func spawnWith(t *testing.T, env []string, stdin *os.File, name string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(name, args...), done: make(chan struct{})}
	if stdin != nil {
		p.cmd.Stdin = stdin
	}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.err
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// A grandchild that keeps the pipes must not keep us.
	p.cmd.WaitDelay = 5 * time.Second
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() && p.err.String() != "" {
			t.Logf("%s said on stderr:\n%s", filepath.Base(name), tail(p.err.String(), 40))
		}
	})
	return p
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// kill ends the process and its children at once and waits for it.
func (p *process) kill() {
	syscall.Kill(-p.pid(), syscall.SIGKILL)
	<-p.done
}

func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// ended waits for the end and gives the exit status, -1 for a signal.
func (p *process) ended(t *testing.T, limit time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		t.Fatalf("%s is still running after %v", p.cmd.Args, limit)
		return 0
	}
}

// expect waits until find gives something for what the process has written.
func (p *process) expect(t *testing.T, o *output, what string, limit time.Duration, find func(string) string) string {
	t.Helper()
	late := time.After(limit)
	for {
		text, more := o.state()
		if s := find(text); s != "" {
			return s
		}
		select {
		case <-more:
		case <-p.done:
			if s := find(o.String()); s != "" {
				return s
			}
			t.Fatalf("%s ended with %v before %s; stdout:\n%s\nstderr:\n%s", p.cmd.Args, p.cmd.ProcessState, what, p.out.String(), p.err.String())
		case <-late:
			t.Fatalf("%s: no %s within %v; stdout:\n%s\nstderr:\n%s", p.cmd.Args, what, limit, p.out.String(), p.err.String())
		}
	}
}

// result is how a program ended.
type result struct {
	stdout, stderr string
	code           int // exit status; -1: a signal
	signal         syscall.Signal
	timedOut       bool
	took           time.Duration
}

func (r result) both() string { return r.stdout + r.stderr }

// run runs a program to its end, which must come within limit: some tools spin
// for ever when a target is gone.
func run(t *testing.T, limit time.Duration, name string, args ...string) result {
	t.Helper()
	return runEnv(t, limit, nil, name, args...)
}

func runEnv(t *testing.T, limit time.Duration, env []string, name string, args ...string) result {
	t.Helper()
	r, err := runErr(limit, env, name, args...)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return r
}

// runErr is run for other goroutines than the test's own.
func runErr(limit time.Duration, env []string, name string, args ...string) (result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	start := time.Now()
	err := cmd.Run()
	r := result{stdout: stdout.String(), stderr: stderr.String(), took: time.Since(start), timedOut: ctx.Err() != nil}
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		r.code = exit.ExitCode()
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			r.signal = ws.Signal()
		}
	case r.timedOut || errors.Is(err, exec.ErrWaitDelay):
		r.code = -1
	default:
		return r, err
	}
	return r, nil
}

// ok runs a program that must succeed, and gives what it printed.
func ok(t *testing.T, limit time.Duration, name string, args ...string) string {
	t.Helper()
	r := run(t, limit, name, args...)
	if r.code != 0 || r.timedOut {
		t.Fatalf("%s %s: exit %d (timed out: %v) after %v\n%s", name, strings.Join(args, " "), r.code, r.timedOut, r.took, tail(r.both(), 20))
	}
	return r.stdout
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return strings.Join(all, "\n")
}

// eventually polls a condition that no event announces.
func eventually(t *testing.T, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}
