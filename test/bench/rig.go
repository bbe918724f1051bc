//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"blockgate/test/bench/limit"
)

// rig is where the servers run: the disk, a folder for their files, and those
// that are up.
type rig struct {
	binary  string // blockgate
	other   string // another one; may be empty
	self    string // this program
	dir     string
	disk    string
	size    int64 // bytes
	servers []*server
}

func newRig(o *options) (r *rig, err error) {
	r = &rig{size: o.size}
	if r.binary, err = filepath.Abs(o.binary); err != nil {
		return nil, err
	}
	if _, err = os.Stat(r.binary); err != nil {
		return nil, fmt.Errorf("%w; make build makes it", err)
	}
	if o.other != "" {
		if r.other, err = filepath.Abs(o.other); err != nil {
			return nil, err
		}
		if _, err = os.Stat(r.other); err != nil {
			return nil, err
		}
	}
	if r.self, err = os.Executable(); err != nil {
		return nil, err
	}
	have, err := availableMemory()
	if err != nil {
		return nil, err
	}
	// The file, the RAM store and room to work.
	want := 2*o.size + 1<<30
	if o.other != "" {
		want += 2 * o.size
	}
	if have < want {
		return nil, fmt.Errorf("it takes %d MiB of memory, and %d are free: choose a smaller -size", want>>20, have>>20)
	}
	if r.dir, err = os.MkdirTemp("/dev/shm", "blockgate-bench-"); err != nil {
		return nil, err
	}
	r.disk = filepath.Join(r.dir, "disk.img")
	err = r.makeDisk(r.disk)
	if err == nil && r.other != "" {
		err = r.makeDisk(r.otherDisk()) // Blockgate locks the file that it serves
	}
	if err != nil {
		os.RemoveAll(r.dir)
		return nil, err
	}
	return r, nil
}

func (r *rig) otherDisk() string { return filepath.Join(r.dir, "other.img") }

// makeDisk writes all of it: a hole would be read faster than data.
func (r *rig) makeDisk(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(rand.Uint32())
	}
	for done := int64(0); done < r.size; done += int64(len(block)) {
		if _, err := f.Write(block); err != nil {
			f.Close()
			return err
		}
	}
	return f.Close()
}

// start brings a target up.
func (r *rig) start(ctx context.Context, t target) (*server, error) {
	for _, c := range t.needs {
		if _, err := exec.LookPath(c); err != nil {
			return nil, fmt.Errorf("%s is not installed: test/packages.sh bench", c)
		}
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s := &server{name: t.Name, port: port, log: filepath.Join(r.dir, t.Name+".log")}
	r.servers = append(r.servers, s)
	if err := t.start(ctx, r, s); err != nil {
		return nil, fmt.Errorf("%s: %w", t.Name, err)
	}
	return s, nil
}

// close ends every server and removes their files. It tells which ports are
// still taken.
func (r *rig) close() error {
	var errs []error
	for _, s := range r.servers {
		errs = append(errs, s.stop())
	}
	return errors.Join(append(errs, os.RemoveAll(r.dir))...)
}

// freePort finds a port that is free, as the one a hundred above it is: istgt
// wants two.
func freePort() (int, error) {
	for range 50 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		port := l.Addr().(*net.TCPAddr).Port
		second, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+100))
		l.Close()
		if err == nil {
			second.Close()
			return port, nil
		}
	}
	return 0, errors.New("no free port found")
}

// server is a process that serves the disk.
type server struct {
	name string
	port int
	url  string
	env  []string
	log  string
	deaf bool // SIGTERM does not end it

	cmd  *exec.Cmd
	dead chan struct{} // closed when the process has ended
}

func (s *server) addr() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }

// startTime is how long a server may take to listen.
const startTime = 20 * time.Second

// run starts the process and waits until it listens.
func (s *server) run(ctx context.Context, name string, args ...string) error {
	return s.runUntil(ctx, "tcp", s.addr(), name, args...)
}

// runUntil is run for a server that listens somewhere else first.
func (s *server) runUntil(ctx context.Context, network, address, name string, args ...string) error {
	log, err := os.Create(s.log)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = exec.Command(name, args...)
	s.cmd.Env = append(os.Environ(), s.env...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // ^C is for this program: it ends them in order
	if err := s.cmd.Start(); err != nil {
		s.cmd = nil
		return err
	}
	s.dead = make(chan struct{})
	go func() {
		s.cmd.Wait()
		close(s.dead)
	}()
	deadline := time.NewTimer(startTime)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if c, err := net.Dial(network, address); err == nil {
			return c.Close()
		}
		select {
		case <-tick.C:
		case <-s.dead:
			return fmt.Errorf("it ended: %s", s.said())
		case <-deadline.C:
			return fmt.Errorf("it does not listen: %s", s.said())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// tell runs a command beside the server, with its environment.
func (s *server) tell(ctx context.Context, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	c.Env = append(os.Environ(), s.env...)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// said is the end of its log.
func (s *server) said() string {
	b, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(b[max(0, len(b)-400):]))
}

// stop ends the process and says so if its port is still taken.
func (s *server) stop() error {
	if s.cmd == nil {
		return nil
	}
	if !s.deaf {
		s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.dead:
		case <-time.After(5 * time.Second):
		}
	}
	s.cmd.Process.Kill()
	<-s.dead
	if c, err := net.Dial("tcp", s.addr()); err == nil {
		c.Close()
		return fmt.Errorf("%s has ended, but port %d still answers", s.name, s.port)
	}
	return nil
}

// clientResult is what a client has measured, and the CPU it took for it.
type clientResult struct {
	limit.Result
	cpu float64 // seconds
}

// client runs a load generator, for d and what it takes to begin and end.
func (r *rig) client(ctx context.Context, s *server, command []string, d time.Duration) (*clientResult, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*d+30*time.Second, errors.New("the client does not end"))
	defer cancel()
	c := exec.CommandContext(ctx, command[0], command[1:]...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = 5 * time.Second
	if err := c.Run(); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %s", err, bytes.TrimSpace(errs.Bytes())), context.Cause(ctx))
	}
	res := &clientResult{cpu: (c.ProcessState.UserTime() + c.ProcessState.SystemTime()).Seconds()}
	if err := json.Unmarshal(out.Bytes(), &res.Result); err != nil {
		return nil, fmt.Errorf("the client's answer: %w", err)
	}
	if res.All.Count == 0 {
		return nil, errors.New("not one I/O")
	}
	return res, nil
}
