//go:build unix && !linux

package plugin

import "syscall"

// childAttributes: signals from a terminal go to us alone. That we have gone the
// program learns from the end of its control channel.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
