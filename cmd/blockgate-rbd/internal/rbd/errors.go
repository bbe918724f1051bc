package rbd

import (
	"errors"
	"fmt"
	"syscall"

	"blockgate/backing"
)

// wrap makes an error of librbd's that of a store, with what was done and to
// which image.
func (s *Store) wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	var no syscall.Errno
	if !errors.As(err, &no) {
		return err
	}
	return fmt.Errorf("rbd: %s of %s: %w", what, s.spec, translate(no))
}

// translate gives an error number of the library's its meaning for a store.
func translate(no syscall.Errno) error {
	kind := map[syscall.Errno]error{
		syscall.ENOENT:     backing.ErrNotExist,
		syscall.EROFS:      backing.ErrReadOnly,
		syscall.ENOSPC:     backing.ErrNoSpace,
		syscall.EDQUOT:     backing.ErrNoSpace,
		syscall.EBUSY:      backing.ErrBusy,
		syscall.EEXIST:     backing.ErrExist,
		syscall.EOPNOTSUPP: backing.ErrNotSupported,
		syscall.ENOSYS:     backing.ErrNotSupported,
		syscall.ESHUTDOWN:  backing.ErrFailed,
	}[no]
	if kind == nil {
		return no
	}
	return fmt.Errorf("%w (%w)", kind, no)
}
