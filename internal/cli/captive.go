package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/term"

	"blockgate/internal/state"
)

// captive runs a command, hands signals on to it, and gives its exit status, or
// 128 and the signal's number if one ended it, as shells do.
func (a *app) captive(command, env []string, signals <-chan os.Signal) (int, error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.Stdin, a.Stdout, a.Stderr
	if err := cmd.Start(); err != nil {
		e := &state.Error{Class: state.Usage, Code: "command_failed", Object: "command " + command[0], Reason: err.Error(), Err: err}
		switch {
		case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
			e.Class, e.Reason = state.NotFound, "does not exist"
		case errors.Is(err, fs.ErrPermission):
			e.Class, e.Reason = state.Refused, "is not executable"
		}
		return 0, e
	}
	// A terminal sends its interrupts to the command as well: not twice.
	tty := a.Stdin != nil && term.IsTerminal(int(a.Stdin.Fd()))
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			if !tty || s != os.Interrupt {
				// It may have ended at this moment, which Wait will tell.
				_ = cmd.Process.Signal(s)
			}
		case err := <-done:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return 0, fmt.Errorf("command %s: %w", command[0], err)
			}
			st := cmd.ProcessState
			if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
				return 128 + int(ws.Signal()), nil
			}
			return st.ExitCode(), nil
		}
	}
}
