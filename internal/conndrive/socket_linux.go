package conndrive

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// SetCongestion chooses the congestion control of a TCP connection; other
// connections are left alone, and a name that the kernel does not offer leaves its
// default. Some kernels default to one that paces loopback and local networks
// with timers (bbr), which costs more than half of the bandwidth there.
func SetCongestion(nc net.Conn, name string) {
	c, ok := nc.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	})
}

// ListenCongestion chooses the congestion control of the connections that a TCP
// listener will accept, as SetCongestion does, but says why if it cannot.
func ListenCongestion(ln net.Listener, name string) error {
	l, ok := ln.(*net.TCPListener)
	if !ok {
		return errors.New("not a TCP listener")
	}
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	}); e != nil {
		return e
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("this kernel does not have the congestion control %q; /proc/sys/net/ipv4/tcp_available_congestion_control lists those that it has loaded", name)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("the congestion control %q is not in /proc/sys/net/ipv4/tcp_allowed_congestion_control", name)
	}
	return err
}

// takenBytes is a number that changes when the other end takes something: of TCP,
// how much the peer's system has acknowledged, which it does not once its
// buffer is full; of a Unix socket, how much is not read yet.
func takenBytes(raw syscall.RawConn) (n uint64, ok bool) {
	err := raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n, ok = info.Bytes_acked, true
		} else if q, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err == nil {
			n, ok = uint64(q), true
		}
	})
	return n, ok && err == nil
}

const canPoll = true

// pollIn waits for input, the end of the stream or an error, for so many
// milliseconds, and reports whether there is one.
func pollIn(fd uintptr, millis int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, millis)
	return err == nil && n > 0
}
