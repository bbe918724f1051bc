//go:build !linux

package tgt

import (
	"errors"
	"net"
)

// peekByte: tgt's protocol is that of Linux.
func peekByte(net.Conn) (byte, error) { return 0, errors.ErrUnsupported }

func mayControl(net.Conn) bool { return false }
