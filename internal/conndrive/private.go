package conndrive

import (
	"context"
	"net"
	"os"
	"syscall"
)

// ListenPrivate listens on a Unix socket at path that only its owner can reach
// (mode 0600), whatever the process's umask is, also at the moment when it
// appears.
func ListenPrivate(ctx context.Context, path string) (net.Listener, error) {
	// Linux gives the file the mode that the socket has before it is bound. Elsewhere
	// a socket may have none, and the directory has to keep others out meanwhile.
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), 0o600) })
	}}
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if st, err := os.Lstat(path); err == nil && st.Mode().Perm() == 0o600 {
		return ln, nil
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}
