package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"blockgate/backing/plugin/internal/control"
)

// process is one run of the program, with the store open in it.
type process struct {
	cmd    *exec.Cmd
	client *control.Client
	answer control.OpenAnswer
	began  time.Time
	stderr *lines

	// replace has why the process is to be replaced, once.
	replace chan string

	dead   chan struct{} // closed when it has ended
	stalls sync.Mutex    // held while it is told of a limit
	stall  time.Duration // the limit that it knows
	data   net.Conn      // gets one end of each data connection
	given  atomic.Int32  // how many there were
	mu     sync.Mutex
	status *control.Status // of the last event
	state  error           // how it ended
}

// startProcess starts the program and opens the store in it. The process is
// dead when it returns an error.
func (s *Store) startProcess(ctx context.Context, again bool) (*process, error) {
	path, err := s.cfg.find()
	if err != nil {
		return nil, err
	}
	p := &process{
		cmd: exec.Command(path), began: time.Now(), dead: make(chan struct{}), replace: make(chan string, 1),
		stderr: &lines{log: s.log},
	}
	ctl, theirCtl, err := pair("control")
	if err != nil {
		return nil, err
	}
	data, theirData, err := pair("data")
	if err != nil {
		ctl.Close()
		theirCtl.Close()
		return nil, err
	}
	p.data = data
	p.cmd.ExtraFiles = []*os.File{theirCtl, theirData}
	p.cmd.Stdout, p.cmd.Stderr = p.stderr, p.stderr
	p.cmd.Env = environment(os.Environ())
	p.cmd.SysProcAttr = childAttributes()
	// A grandchild may hold the standard error open.
	p.cmd.WaitDelay = time.Second
	err = p.run()
	theirCtl.Close()
	theirData.Close()
	if err != nil {
		ctl.Close()
		data.Close()
		return nil, fmt.Errorf("the plugin %s: %w", path, err)
	}
	p.client = control.NewClient(control.NewConn(ctl), func(m control.Message) { s.event(p, m) })
	if err := s.greet(ctx, p, again); err != nil {
		p.kill()
		if errors.Is(err, control.ErrGone) {
			err = p.obituary(path)
		}
		return nil, err
	}
	return p, nil
}

// run starts the program. The kernel kills it when the thread that started it
// ends, so that thread lives as long as the program does.
func (p *process) run() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := p.cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		// What it has started, as a shell does that is in between, must not outlive
		// it: it could still write.
		awaitExit(p.cmd.Process.Pid)
		killGroup(p.cmd.Process.Pid)
		err := p.cmd.Wait()
		p.stderr.end()
		p.mu.Lock()
		p.state = err
		p.mu.Unlock()
		close(p.dead)
	}()
	return <-started
}

// environment is what of our environment a program gets: not what is said to us
// alone, by a service manager or as a secret.
func environment(ours []string) []string {
	return slices.DeleteFunc(ours, func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "BLOCKGATE_CHAP_SECRET":
			return true
		}
		return false
	})
}

// greet makes sure that the program is what it should be, and opens the store.
func (s *Store) greet(ctx context.Context, p *process, again bool) error {
	var hello control.HelloAnswer
	hctx, cancel := context.WithTimeout(ctx, 4*s.cfg.Ping)
	err := p.client.Call(hctx, control.OpHello, control.Hello{Protocol: control.Protocol}, &hello)
	cancel()
	path := p.cmd.Path
	switch {
	case errors.Is(err, control.ErrFrame):
		return fmt.Errorf("%s is not a plugin of blockgate: %w", path, err)
	case err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the plugin %s does not answer", path)
	case err != nil:
		return err
	case hello.Protocol != control.Protocol:
		return fmt.Errorf("%s (version %s) speaks version %d of the plugin protocol and this program version %d: install both from the same release",
			path, hello.Version, hello.Protocol, control.Protocol)
	case hello.Name != s.cfg.Name:
		return fmt.Errorf("%s is the plugin for %q, not for %q", path, hello.Name, s.cfg.Name)
	}
	o := s.options
	p.stall = s.limit()
	in := control.Open{
		Location: s.location, ReadOnly: o.ReadOnly, Create: o.Create && !again, CreateSize: o.CreateSize,
		Direct: o.Direct, Sync: o.Sync, Exclusive: o.Exclusive, Stall: p.stall, Again: again,
	}
	if again {
		in.CreateSize = 0 // it may have been resized since
	}
	return p.client.Call(ctx, control.OpOpen, in, &p.answer)
}

// kill ends the process at once and waits until it is gone, which an
// uninterruptible system call can delay: then it is left to itself.
func (p *process) kill() {
	p.cmd.Process.Kill()
	select {
	case <-p.dead:
	case <-time.After(killTime):
	}
	// What it has answered before it ended is read first.
	select {
	case <-p.client.Done():
	case <-time.After(lastWords):
	}
	p.client.Close()
	p.data.Close()
}

// lastWords is how long it may take to read what a dead process has left in its
// socket; somebody else may hold the other end.
const lastWords = time.Second

// killTime is how long a killed process may take to be gone.
const killTime = 5 * time.Second

// obituary says how the process ended, with its last words.
func (p *process) obituary(path string) error {
	select {
	case <-p.dead:
	default:
		return fmt.Errorf("the plugin %s closed its control channel", path)
	}
	p.mu.Lock()
	how := "exit status 0"
	if p.state != nil {
		how = p.state.Error()
	}
	p.mu.Unlock()
	if last := p.stderr.lastLine(); last != "" {
		return fmt.Errorf("the plugin %s ended: %s: %s", path, how, last)
	}
	return fmt.Errorf("the plugin %s ended: %s", path, how)
}

// pair is a pair of connected stream sockets: one end for us and one to be
// inherited.
func pair(name string) (net.Conn, *os.File, error) {
	syscall.ForkLock.RLock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return c, theirs, nil
}
