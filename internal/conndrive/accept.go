package conndrive

import (
	"errors"
	"syscall"
)

// MayAccept reports that accept failed, but may do better: file descriptors or
// memory are short, a firewall or security module has refused one connection, or
// the network had an error for it, which accept passes on (accept(2)). What is
// wrong with the listening socket itself stays so.
func MayAccept(err error) bool {
	e, ok := errors.AsType[syscall.Errno](err)
	switch e {
	case syscall.EBADF, syscall.EINVAL, syscall.ENOTSOCK, syscall.EFAULT, syscall.ENOSYS:
		return false
	}
	return ok
}
