//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// insideArgument starts the part that runs within the namespaces.
const insideArgument = "inside-namespaces"

// childError is the exit status of that part, which has said what was wrong.
type childError struct{ status int }

func (e *childError) Error() string { return fmt.Sprintf("exit status %d", e.status) }

// isolate runs the bench again in namespaces of its own. When that process ends,
// however it ends, the kernel ends the servers and unmounts the disk.
func isolate(ctx context.Context, args []string) error {
	// The death signal comes when the thread that started the child ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c := exec.CommandContext(ctx, "/proc/self/exe", append([]string{insideArgument}, args...)...)
	c.Stdin, c.Stdout, c.Stderr = nil, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = 15 * time.Second
	err := c.Run()
	var status *exec.ExitError
	switch {
	case errors.As(err, &status) && ctx.Err() == nil:
		return &childError{max(status.ExitCode(), 1)}
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("making namespaces: %w; run it as root, or with -shared", err)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return err
}

// settle makes the namespaces a place to work in.
func settle(ctx context.Context, congestion string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=100%"); err != nil {
		return fmt.Errorf("mounting /dev/shm: %w", err)
	}
	// The sysctl takes only unrestricted algorithms outside of the first network
	// namespace. A route's congestion control binds both ends: the one that
	// connects and the one that accepts look up the route to their peer.
	for _, args := range []string{
		"link set lo up",
		"route replace table local local 127.0.0.0/8 dev lo proto kernel scope host src 127.0.0.1 congctl " + congestion,
		"route replace table local local 127.0.0.1 dev lo proto kernel scope host src 127.0.0.1 congctl " + congestion,
	} {
		if out, err := exec.CommandContext(ctx, "ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	return nil
}
