//go:build !linux

package conndrive

import (
	"errors"
	"net"
	"syscall"
)

// SetCongestion does nothing on this system.
func SetCongestion(net.Conn, string) {}

// ListenCongestion cannot choose on this system.
func ListenCongestion(net.Listener, string) error {
	return errors.New("congestion control cannot be chosen on this system")
}

const canPoll = false

func pollIn(uintptr, int) bool { return false }

func takenBytes(syscall.RawConn) (uint64, bool) { return 0, false }
