//go:build !linux

package server

import (
	"net"
	"syscall"
)

func setCongestion(*net.TCPConn, string) {}

func takenBytes(syscall.RawConn) (uint64, bool) { return 0, false }

func isTooManyFiles(error) bool { return false }
