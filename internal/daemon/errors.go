package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"syscall"

	"blockgate/backing"
	"blockgate/backing/plugin"
	"blockgate/gateway"
	"blockgate/internal/state"
	nbdclient "blockgate/nbd/client"
)

// volumeError tells why a volume's store cannot be had, and what to do.
func volumeError(v state.Volume, err error) *state.Error {
	var said *state.Error
	if errors.As(err, &said) {
		return said
	}
	e := &state.Error{Class: state.Refused, Code: state.CodeOpenFailed, Object: fmt.Sprintf("volume %q", v.Name), Reason: rootReason(v, err), Err: err}
	var partial *gateway.PartialBlockError
	switch {
	case errors.As(err, &partial):
		e.Code, e.Reason = state.CodeUnitFailed, fmt.Sprintf("%s has %d bytes, which is not a multiple of the block size, %d (%d bytes are over)",
			v.URL, partial.Size, partial.BlockSize, partial.Size%int64(partial.BlockSize))
		e.Hint = fmt.Sprintf("make it whole: truncate -s %%%d FILE", partial.BlockSize)
		if partial.Size >= int64(partial.BlockSize) {
			e.Hint += "; or serve it without them: --partial-block ignore"
		}
		if partial.BlockSize != 512 && partial.Size%512 == 0 {
			e.Hint = "use --block-size 512; or " + e.Hint
		}
	case errors.Is(err, backing.ErrSizeMismatch):
		e.Class, e.Hint = state.Conflict, "leave --size away to take it as it is"
	case errors.Is(err, backing.ErrBusy):
		e.Class, e.Hint = state.Conflict, "stop the other user of it"
	case errors.Is(err, backing.ErrNotExist), errors.Is(err, fs.ErrNotExist):
		e.Class, e.Hint = state.NotFound, "give --size to create it, for example --size 10G"
		switch scheme, _ := backing.SplitURL(v.URL); {
		case v.Size > 0 && scheme == "file":
			e.Hint = "does the directory exist, and is it mounted?"
		case strings.HasPrefix(scheme, "nbd"):
			// A server has what it has: nothing can be created there.
			e.Hint = "does the server have it by this name, and may this host use it?"
			if path := (*fs.PathError)(nil); errors.As(err, &path) {
				e.Hint = "the daemon reads this file, on its own machine: is the path right?"
			}
		}
	case errors.Is(err, nbdclient.ErrTLSRequired):
		e.Hint = "write the URL with nbds in place of nbd, and with tls-certificates=DIR or tls-psk-file=FILE if the server wants more"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Hint = "is the server running there, on this port?"
	case errors.Is(err, backing.ErrReadOnly), errors.Is(err, syscall.EROFS):
		e.Hint = "serve it with --read-only"
	case errors.Is(err, fs.ErrPermission):
		e.Hint = "give the daemon's user the right to write, or serve it with --read-only"
	case errors.Is(err, backing.ErrNoSpace), errors.Is(err, syscall.ENOSPC):
		e.Hint = "free some space, or put it elsewhere"
	case errors.Is(err, context.DeadlineExceeded):
		e.Hint = "is the storage below it reachable? try again with: blockgate volume retry " + v.Name
	case errors.Is(err, backing.ErrNotSupported):
		e.Hint = "see what there is: blockgate engine list"
		switch {
		case errors.Is(err, plugin.ErrMissing):
			e.Class, e.Code, e.Hint = state.Usage, state.CodeUnknownEngine, "install it and start the daemon again"
		case strings.Contains(err.Error(), "no engine"):
			e.Class, e.Code = state.Usage, state.CodeUnknownEngine
		}
	}
	return e
}

// rootReason is the error without the names that the object says already.
func rootReason(v state.Volume, err error) string {
	s := err.Error()
	for _, prefix := range []string{fmt.Sprintf("volume %q: ", v.Name), fmt.Sprintf("open %q: ", v.URL)} {
		s = strings.TrimPrefix(s, prefix)
	}
	return s
}

func portalError(addr string, err error) *state.Error {
	e := &state.Error{Class: state.Refused, Code: state.CodeListenFailed, Object: "portal " + addr, Reason: reason(err), Err: err}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		e.Class, e.Reason, e.Hint = state.Conflict, "the address is in use by another process", "choose another port, or stop that process (ss -ltnp shows it)"
		if ap, perr := netip.ParseAddrPort(addr); perr == nil {
			e.Hint = fmt.Sprintf("choose another port, such as %s, or stop that process: ss -ltnp sport = :%d",
				netip.AddrPortFrom(ap.Addr(), ap.Port()+1), ap.Port())
		}
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		e.Reason, e.Hint = "this machine has no such address", "ip -brief address shows those there are"
	case errors.Is(err, syscall.EINVAL) && strings.HasPrefix(addr, "[fe80:"):
		e.Hint = "a link-local address needs its interface, as in [fe80::1%eth0]:3260"
	case errors.Is(err, fs.ErrPermission):
		e.Hint = "ports below 1024 need root; iSCSI's own is 3260"
	case errors.Is(err, gateway.ErrExists):
		e.Class, e.Code = state.Conflict, state.CodePortalExists
	}
	return e
}

func targetError(name string, err error) *state.Error {
	return &state.Error{Class: state.Refused, Code: state.CodeInvalidValue, Object: fmt.Sprintf("target %q", name), Reason: err.Error(), Err: err}
}

// reason is what the system says, without the call and its arguments.
func reason(err error) string {
	if no, ok := errors.AsType[syscall.Errno](err); ok {
		return no.Error()
	}
	return err.Error()
}
