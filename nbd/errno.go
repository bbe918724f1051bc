package nbd

import (
	"errors"
	"fmt"
	"syscall"
)

// Errno is an error of the transmission phase. The values are the protocol's and
// not the operating system's, whatever they look like.
type Errno uint32

// Error values. None is success and not an error.
const (
	None      Errno = 0
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

var errnoTexts = map[Errno]string{
	None: "no error", EPERM: "operation not permitted", EIO: "input/output error", ENOMEM: "out of memory",
	EINVAL: "invalid argument", ENOSPC: "no space left", EOVERFLOW: "request is too large", ENOTSUP: "operation not supported",
	ESHUTDOWN: "server is shutting down",
}

// Error implements error.
func (e Errno) Error() string {
	if s, ok := errnoTexts[e]; ok {
		return "nbd: " + s
	}
	return fmt.Sprintf("nbd: error %d", uint32(e))
}

// Known returns e, or EINVAL for a value that the protocol does not define, as
// which a client has to take it.
func (e Errno) Known() Errno {
	if _, ok := errnoTexts[e]; ok {
		return e
	}
	return EINVAL
}

// ErrnoOf is the value by which a server tells of err: err's own if it wraps an
// Errno, that of a system error which has one, and EIO for everything else. None
// if err is nil.
func ErrnoOf(err error) Errno {
	var n Errno
	var sys syscall.Errno
	switch {
	case err == nil:
		return None
	case errors.As(err, &n):
		if n == None {
			return EIO
		}
		return n
	case !errors.As(err, &sys):
		return EIO
	}
	switch sys {
	case syscall.EPERM, syscall.EROFS, syscall.EACCES:
		return EPERM
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return ENOSPC
	case syscall.EINVAL:
		return EINVAL
	case syscall.ENOMEM:
		return ENOMEM
	case syscall.EOVERFLOW:
		return EOVERFLOW
	case syscall.EOPNOTSUPP:
		return ENOTSUP
	}
	return EIO
}
