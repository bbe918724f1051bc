package file

import (
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"blockgate/backing"
)

// probe asks the kernel about an open file. What it does not tell stays zero.
func probe(f *os.File, fi os.FileInfo, o backing.OpenOptions) geometry {
	var st unix.Stat_t
	fd := int(f.Fd())
	if unix.Fstat(fd, &st) != nil {
		return geometry{unit: 1}
	}
	var g geometry
	if fi.Mode().IsRegular() {
		g = probeFile(fd, &st, o)
	} else {
		g = probeDevice(fd, &st)
	}
	if o.Direct {
		g.dioMem, g.dioOff = probeDirect(fd, g)
	}
	return g
}

func probeFile(fd int, st *unix.Stat_t, o backing.OpenOptions) geometry {
	g := geometry{unit: 1, physical: 4096}
	block := 0
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) == nil {
		block = int(fs.Frsize)
		kind := uint32(fs.Type) // of another type on each architecture
		g.inMemory = kind == unix.TMPFS_MAGIC || kind == unix.RAMFS_MAGIC
	}
	if !powerOfTwo(block) || block > 1<<20 {
		block = 4096
	}
	// Large blocks, as of network file systems, are advice and not physics.
	g.physical = min(block, 4096)
	g.granularity = block
	if n := int(st.Blksize); n > g.physical && powerOfTwo(n) {
		g.optimal = n
	}
	if q := queueDir(uint64(st.Dev)); q != "" {
		g.rotational = sysfs(q, "rotational") == 1
	}
	// A hole punched beyond the end changes nothing, and tells whether it can be.
	g.punch = !o.ReadOnly && punchHole(handle(fd), st.Size, 1) == nil
	return g
}

func probeDevice(fd int, st *unix.Stat_t) geometry {
	g := geometry{device: true, unit: 512}
	if n, err := unix.IoctlGetUint32(fd, unix.BLKSSZGET); err == nil && powerOfTwo(int(n)) {
		g.unit = int64(n)
	}
	if n, err := unix.IoctlGetUint32(fd, unix.BLKPBSZGET); err == nil && powerOfTwo(int(n)) {
		g.physical = int(n)
	}
	if n, err := unix.IoctlGetUint32(fd, unix.BLKIOOPT); err == nil {
		g.optimal = int(n)
	}
	q := queueDir(uint64(st.Rdev))
	if q == "" {
		return g
	}
	g.rotational = sysfs(q, "rotational") == 1
	g.granularity = int(sysfs(q, "discard_granularity"))
	g.alignment = int(sysfs(deviceDir(uint64(st.Rdev)), "discard_alignment"))
	// BLKDISCARD promises nothing about what is read afterwards, a punched hole
	// does; the kernel makes one from write zeroes with the unmap bit.
	g.punch = sysfs(q, "discard_max_bytes") > 0 && sysfs(q, "write_zeroes_max_bytes") > 0
	if !g.punch && sysfs(q, "discard_max_bytes") > 0 {
		if n := thinBlock(uint64(st.Rdev)); n > 0 && int64(n)%g.unit == 0 {
			g.punch, g.thin, g.granularity, g.alignment = true, true, n, 0
		}
	}
	return g
}

// probeDirect is what O_DIRECT wants of addresses and of offsets, in bytes.
func probeDirect(fd int, g geometry) (mem, off int) {
	var sx unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &sx)
	if err == nil && sx.Mask&unix.STATX_DIOALIGN != 0 {
		return int(sx.Dio_mem_align), int(sx.Dio_offset_align)
	}
	// Kernels before 6.1 and some file systems do not say.
	if g.device {
		return int(g.unit), int(g.unit)
	}
	return 4096, 4096
}

func deviceDir(dev uint64) string {
	if unix.Major(dev) == 0 {
		return "" // a file system without one device of its own
	}
	return fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev))
}

// queueDir is the sysfs folder of the device's queue, a partition's being that
// of its disk; "" if there is none.
func queueDir(dev uint64) string {
	dir := deviceDir(dev)
	if dir == "" {
		return ""
	}
	// A symbolic link: ".." must be that of what it points to.
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return ""
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	}
	return filepath.Join(dir, "queue")
}

// sysfs reads a number, 0 if it cannot.
func sysfs(dir, name string) int64 {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func powerOfTwo(n int) bool { return n >= 512 && bits.OnesCount(uint(n)) == 1 }
