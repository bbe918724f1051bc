package curve

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"blockgate/backing"
)

// fileLock is a locked file; nil is none.
type fileLock struct{ f *os.File }

// lockFile takes the lock by which nebd's clients on one host keep each other from
// a volume: a file of the volume's name in a directory. Where there is no such
// directory no client of nebd has been, and there is no lock.
func lockFile(dir, volume string) (*fileLock, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	path := filepath.Join(dir, strings.ReplaceAll(volume, "/", "+"))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	free, err := flock(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if !free {
		f.Close()
		return nil, fmt.Errorf("%w: another client of this host has locked %s", backing.ErrBusy, path)
	}
	return &fileLock{f}, nil
}

// release gives the lock up. The file stays: others may be waiting for it.
func (l *fileLock) release() {
	if l != nil {
		l.f.Close()
	}
}
