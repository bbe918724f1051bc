//go:build !linux

package server

import "net"

func setCongestion(*net.TCPConn, string) {}

func isTooManyFiles(error) bool { return false }
