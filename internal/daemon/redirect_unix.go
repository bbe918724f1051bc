//go:build unix

package daemon

import (
	"os/exec"
	"syscall"
)

// ownGroup gives a program a process group of its own, all of which ends when
// its time is over.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
