//go:build unix && !linux

package plugin

import "syscall"

// childAttributes: signals from a terminal go to us alone. That we have gone the
// program learns from the end of its control channel.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

// awaitExit: there is no way to wait for a child and leave it there.
func awaitExit(int) {}

// killGroup does nothing where awaitExit does nothing: the child may be alive.
func killGroup(int) {}
