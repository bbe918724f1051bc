package client

import (
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// control has what was sent and is not acknowledged end a dead connection, too:
// the probes of keepalive are not sent meanwhile.
func control(network, _ string, raw syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	return raw.Control(func(fd uintptr) {
		// Without it the connection ends later, so its error is none of ours.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadAfter.Milliseconds()))
	})
}
