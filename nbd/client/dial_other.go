//go:build !linux

package client

import "syscall"

// control has nothing to add elsewhere.
func control(string, string, syscall.RawConn) error { return nil }
