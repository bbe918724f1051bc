package plugin

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// childAttributes: the program does not outlive us, and signals from a terminal
// go to us alone.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

// awaitExit waits until a child has ended, and leaves it as a zombie, so that its
// number, which is that of its group too, stays its own.
func awaitExit(pid int) {
	for {
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			return
		}
	}
}

// killGroup kills what is left of the group of a child that has ended, and is not
// waited for yet.
func killGroup(pid int) { _ = syscall.Kill(-pid, syscall.SIGKILL) }
