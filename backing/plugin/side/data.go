package side

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"blockgate/backing"
	"blockgate/backing/plugin/internal/control"
	"blockgate/nbd"
	"blockgate/nbd/server"
)

// newServer is the NBD server of a store. An error is told with its text, which
// goes to the gateway's log as well.
func newServer(store backing.Store) *server.Server {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	export := server.ForStore(store, server.StoreOptions{
		Workers: workers,
		Fail: func(r *nbd.Request, err error) (nbd.Errno, string) {
			if errors.Is(err, backing.ErrFailed) {
				return control.ErrnoFailed, err.Error()
			}
			return server.ErrnoOf(err), err.Error()
		},
	})
	return server.New(server.Config{Directory: only{export}, Logger: log, Memory: memory, Congestion: "-", StallTimeout: stallTimeout})
}

// Bounds of the server.
const (
	workers = 128
	memory  = 256 << 20 // bytes of payload
	// stallTimeout is for a gateway that takes nothing off its socket; as both
	// end together otherwise, it is long.
	stallTimeout = 5 * time.Minute
)

// only is a directory of one export.
type only struct{ export server.Export }

func (o only) Exports(*server.Client) []nbd.ServerEntry { return []nbd.ServerEntry{{}} }

func (o only) Export(name string, _ *server.Client) (server.Export, error) {
	if name != "" {
		return nil, fmt.Errorf("there is only one export")
	}
	return o.export, nil
}

// arrivals is a listener whose connections come as descriptors, one with each
// byte of a socket.
type arrivals struct{ c *net.UnixConn }

// Accept implements net.Listener.
func (a arrivals) Accept() (net.Conn, error) {
	for {
		var b [1]byte
		oob := make([]byte, syscall.CmsgSpace(4))
		n, oobn, _, _, err := a.c.ReadMsgUnix(b[:], oob)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, net.ErrClosed // the gateway has gone
		}
		messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(messages) != 1 {
			continue
		}
		fds, err := syscall.ParseUnixRights(&messages[0])
		if err != nil {
			continue
		}
		var c net.Conn
		for _, fd := range fds {
			syscall.CloseOnExec(fd)
			f := os.NewFile(uintptr(fd), "data")
			if c == nil {
				c, err = net.FileConn(f)
			}
			f.Close()
		}
		if err == nil && c != nil {
			return c, nil
		}
	}
}

// Close implements net.Listener.
func (a arrivals) Close() error { return a.c.Close() }

// Addr implements net.Listener.
func (a arrivals) Addr() net.Addr { return a.c.LocalAddr() }
