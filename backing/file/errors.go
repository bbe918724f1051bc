package file

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"blockgate/backing"
)

// failure is the sticky error after which nothing is written any more.
type failure struct{ err error }

// fail makes the store fail for good: the kernel reports a lost write once, marks
// the pages clean and lets the next fdatasync succeed, so what was written
// before can no longer be told durable.
func (s *Store) fail(op string, err error) error {
	f := &failure{fmt.Errorf("%w: %s %s: %w", backing.ErrFailed, op, s.path, err)}
	if s.failed.CompareAndSwap(nil, f) {
		return f.err
	}
	return s.failed.Load().err
}

// ioError names the file and the place, and adds the error of package backing
// that the system's error means.
func (s *Store) ioError(op string, off int64, err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		err = pe.Err
	}
	return fmt.Errorf("%s %s at %d: %w", op, s.path, off, classify(err))
}

func classify(err error) error {
	switch {
	case isNoSpace(err):
		return fmt.Errorf("%w (%w)", backing.ErrNoSpace, err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w (%w)", backing.ErrReadOnly, err)
	}
	return err
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// openError does the same for Open, whose errors name the path already.
func openError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w (%w)", backing.ErrNotExist, err)
	case errors.Is(err, syscall.EBUSY):
		return fmt.Errorf("%w: it is mounted, or another program has it (%w)", backing.ErrBusy, err)
	}
	return classify(err)
}
