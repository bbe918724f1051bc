//go:build !linux

package initiator

import "syscall"

// congestionHook: congestion control cannot be chosen here.
func congestionHook(string) func(network, addr string, c syscall.RawConn) error { return nil }
