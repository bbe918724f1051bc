package initiator

import "syscall"

// congestionHook returns a hook for net.Dialer that sets the TCP congestion control. One
// that the kernel does not have is ignored: the connection works without it.
func congestionHook(congestion string) func(network, addr string, c syscall.RawConn) error {
	if congestion == "-" {
		return nil
	}
	return func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			syscall.SetsockoptString(int(fd), syscall.IPPROTO_TCP, syscall.TCP_CONGESTION, congestion)
		})
	}
}
