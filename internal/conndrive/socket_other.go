//go:build !linux

package conndrive

import (
	"net"
	"syscall"
)

// SetCongestion does nothing on this system.
func SetCongestion(net.Conn, string) {}

func takenBytes(syscall.RawConn) (uint64, bool) { return 0, false }

// OutOfFiles reports that accept failed for want of something that comes back by
// itself.
func OutOfFiles(error) bool { return false }
