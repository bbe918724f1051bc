package server

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// setCongestion chooses the congestion control of a connection. Some kernels
// default to one that paces loopback and local networks with timers (bbr),
// which costs more than half of the bandwidth there. A name that the kernel does
// not offer leaves its default.
func setCongestion(c *net.TCPConn, name string) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	})
}

// takenBytes is how much of what was sent the peer's system has acknowledged, which
// it does not once its buffer is full.
func takenBytes(raw syscall.RawConn) (n uint64, ok bool) {
	err := raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n, ok = info.Bytes_acked, true
		}
	})
	return n, ok && err == nil
}

func isTooManyFiles(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)
}
