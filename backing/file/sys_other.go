//go:build !linux

package file

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"blockgate/backing"
)

// platformCaps: nothing beside the portable calls.
const platformCaps backing.Caps = 0

// handle is what the calls below name a file by.
type handle = *os.File

func handleOf(f *os.File) handle { return f }

func openFlags(o backing.OpenOptions, _ bool) int {
	if o.Sync {
		return os.O_SYNC
	}
	return 0
}

func lockFile(f *os.File, _ bool) error {
	return fmt.Errorf("lock %s: exclusive use is %w on this system", f.Name(), backing.ErrNotSupported)
}

func pread(h handle, p []byte, off int64) (int, error) {
	n, err := h.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func pwrite(h handle, p []byte, off int64) (int, error) { return h.WriteAt(p, off) }
func fdatasync(h handle) error                          { return h.Sync() }

func preadNowait(handle, []byte, int64) (int, error)  { return 0, syscall.ENOSYS }
func pwriteNowait(handle, []byte, int64) (int, error) { return 0, syscall.ENOSYS }
func pwriteDSync(handle, []byte, int64) (int, error)  { return 0, syscall.ENOSYS }
func punchHole(handle, int64, int64) error            { return syscall.ENOSYS }
func discardBlocks(handle, int64, int64) error        { return syscall.ENOSYS }
func zeroRange(handle, int64, int64) error            { return syscall.ENOSYS }

func copyFileRange(handle, handle, int64, int64, int64) (int64, error) { return 0, syscall.ENOSYS }

// seekData takes everything for data.
func seekData(_ handle, off, end int64) (data, hole int64, err error) { return off, end, nil }

// syncParent: directories cannot be synced everywhere.
func syncParent(string) error { return nil }

func probe(_ *os.File, fi os.FileInfo, _ backing.OpenOptions) geometry {
	return geometry{device: !fi.Mode().IsRegular(), unit: 512}
}

func usageOf(handle) (backing.Usage, error) { return backing.Usage{}, backing.ErrNotSupported }
