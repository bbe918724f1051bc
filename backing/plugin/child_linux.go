package plugin

import "syscall"

// childAttributes: the program does not outlive us, and signals from a terminal
// go to us alone.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
