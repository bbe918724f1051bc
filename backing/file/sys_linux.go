package file

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"blockgate/backing"
)

// platformCaps is what Linux offers on top of the portable calls.
const platformCaps = backing.CapTryRead | backing.CapTryWrite | backing.CapDiscard |
	backing.CapExtents | backing.CapCopyRange | backing.CapCopyFrom | backing.CapUsage

// openFlags are the flags beside the access mode. On a block device O_EXCL
// without O_CREAT claims the device against mounts and other claimants.
func openFlags(o backing.OpenOptions, device bool) int {
	flags := 0
	if o.Direct {
		flags |= unix.O_DIRECT
	}
	if o.Sync {
		flags |= unix.O_DSYNC
	}
	if o.Exclusive && device {
		flags |= unix.O_EXCL
	}
	return flags
}

// lockFile locks the whole file by an open file description lock: a second open
// by this process conflicts too, it goes with the descriptor when the process
// dies, it reaches other hosts over NFS, and it meets QEMU's locks of images.
func lockFile(f *os.File, write bool) error {
	l := unix.Flock_t{Type: unix.F_RDLCK}
	if write {
		l.Type = unix.F_WRLCK
	}
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES):
			return fmt.Errorf("%s is locked by another program or another volume: %w", f.Name(), backing.ErrBusy)
		default:
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

// handle is what the calls below name a file by. It is good while the file is
// open, which the gate sees to.
type handle int

func handleOf(f *os.File) handle { return handle(f.Fd()) }

func pread(h handle, p []byte, off int64) (int, error)  { return unix.Pread(int(h), p, off) }
func pwrite(h handle, p []byte, off int64) (int, error) { return unix.Pwrite(int(h), p, off) }
func fdatasync(h handle) error                          { return unix.Fdatasync(int(h)) }

func preadNowait(h handle, p []byte, off int64) (int, error) {
	return unix.Preadv2(int(h), [][]byte{p}, off, unix.RWF_NOWAIT)
}

func pwriteNowait(h handle, p []byte, off int64) (int, error) {
	return unix.Pwritev2(int(h), [][]byte{p}, off, unix.RWF_NOWAIT)
}

func pwriteDSync(h handle, p []byte, off int64) (int, error) {
	return unix.Pwritev2(int(h), [][]byte{p}, off, unix.RWF_DSYNC)
}

func punchHole(h handle, off, n int64) error {
	return unix.Fallocate(int(h), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func zeroRange(h handle, off, n int64) error {
	return unix.Fallocate(int(h), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func copyFileRange(to, from handle, dst, src, n int64) (int64, error) {
	m, err := unix.CopyFileRange(int(from), &src, int(to), &dst, int(n), 0)
	return int64(m), err
}

// seekData finds the first run of data at or after off: [data, hole), cut to
// end. If there is none both are end.
func seekData(h handle, off, end int64) (data, hole int64, err error) {
	data, err = unix.Seek(int(h), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return end, end, nil
	case errors.Is(err, unix.EINVAL):
		return off, end, nil // no such thing here: all of it is data
	case err != nil:
		return 0, 0, err
	case data >= end:
		return end, end, nil
	}
	hole, err = unix.Seek(int(h), data, unix.SEEK_HOLE)
	switch {
	case errors.Is(err, unix.ENXIO):
		return data, data, nil // cut off meanwhile; the next look sees it
	case err != nil:
		return 0, 0, err
	}
	return data, min(hole, end), nil
}

// syncParent makes a new name durable.
func syncParent(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if errors.Is(err, os.ErrPermission) {
		return nil // one may be allowed to make a name and not to list names
	}
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

// usageOf tells what a regular file takes of its file system, and what is left
// there for those without privileges.
func usageOf(h handle) (backing.Usage, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(h), &st); err != nil {
		return backing.Usage{}, err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(h), &fs); err != nil {
		return backing.Usage{}, err
	}
	return backing.Usage{
		Used:      st.Blocks * 512,
		Available: int64(min(fs.Bavail, 1<<62/uint64(max(fs.Bsize, 1)))) * int64(fs.Bsize),
	}, nil
}
