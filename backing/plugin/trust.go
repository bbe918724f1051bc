package plugin

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// trusted reports why a program that was found may be another user's work: it would
// run with our rights. A program downloaded to /tmp looks for its plugins there,
// where anybody may have put one.
func trusted(path string) error {
	owners := map[uint32]bool{0: true, uint32(os.Geteuid()): true}
	if self, err := os.Executable(); err == nil {
		if st, err := os.Stat(self); err == nil {
			owners[owner(st)] = true
		}
	}
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return err
	}
	if dir.Mode()&0o002 != 0 && dir.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("%s is not used, as anybody may write to %s", path, filepath.Dir(path))
	}
	link, err := os.Lstat(path)
	if err != nil {
		return err
	}
	file, err := os.Stat(path)
	if err != nil {
		return err
	}
	if file.Mode()&0o002 != 0 {
		return fmt.Errorf("%s is not used, as anybody may write to it", path)
	}
	for _, st := range []fs.FileInfo{link, file} {
		if !owners[owner(st)] {
			return fmt.Errorf("%s is not used, as it belongs to user %d, who is neither root nor runs or owns this program", path, owner(st))
		}
	}
	return nil
}

func owner(st fs.FileInfo) uint32 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Uid
	}
	return ^uint32(0)
}
