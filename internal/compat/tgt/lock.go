package tgt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// errLocked: another daemon holds the lock.
var errLocked = errors.New("locked by another process")

// lockSocket takes the lock file beside a control socket, for as long as the
// file is open. The file stays when the daemon ends: removing it would let two
// daemons lock two files of one name.
func lockSocket(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := lockFile(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}
