//go:build !linux

package api

import "net"

// peerOf cannot be told here; the socket's mode alone keeps others out.
func peerOf(net.Conn) (peer, bool) { return peer{}, true }
