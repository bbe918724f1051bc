package tgt

import (
	"errors"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// peekByte waits for the first byte of a connection and leaves it there.
func peekByte(c net.Conn) (byte, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return 0, err
	}
	var b [1]byte
	var n int
	var got error
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, _, got = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if got != unix.EINTR {
				return got != unix.EAGAIN
			}
		}
	})
	switch {
	case err != nil:
		return 0, err
	case got != nil:
		return 0, got
	case n == 0:
		return 0, io.EOF
	}
	return b[0], nil
}

// mayControl applies tgt's rule: the peer has the user and the group of the
// daemon (SO_PEERCRED). Root may do everything anyway.
func mayControl(c net.Conn) bool {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return false
	}
	var cred *unix.Ucred
	if err := raw.Control(func(fd uintptr) {
		cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || cred == nil {
		return false
	}
	return cred.Uid == 0 || int(cred.Uid) == os.Geteuid() && int(cred.Gid) == os.Getegid()
}
