package tgt

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate gives a file its size and its blocks; a file system that cannot do
// that ahead gives the size alone.
func allocate(f *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP):
			return f.Truncate(size)
		}
		return err
	}
}
