//go:build !linux

package api

import "net"

// peerUID cannot be told here; the socket's mode alone keeps others out.
func peerUID(net.Conn) (uint32, bool) { return 0, true }
