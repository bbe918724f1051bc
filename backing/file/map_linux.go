package file

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reserve takes n bytes of addresses, with nothing behind them.
func reserve(n int) (unsafe.Pointer, error) {
	return unix.MmapPtr(-1, 0, nil, uintptr(n), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
}

// show maps a window's span of the file at off to the address p, in place of what
// was there, whose page tables go with it. It is mapped elsewhere first: kernels
// before 6.12 take away what is there before they ask the file system, and if
// that refuses then, as ext4 does once it is shut down, the addresses are anybody's.
func show(p unsafe.Pointer, h handle, off int64) error {
	q, err := unix.MmapPtr(int(h), off, nil, windowSpan, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	// No part of the disk in a dump of the process.
	_ = unix.Madvise(unsafe.Slice((*byte)(q), windowSpan), unix.MADV_DONTDUMP)
	if _, err := unix.MremapPtr(q, windowSpan, p, windowSpan, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED); err != nil {
		_ = unix.MunmapPtr(q, windowSpan)
		return err
	}
	return nil
}

// hide leaves only the addresses of a window.
func hide(p unsafe.Pointer) {
	// This cannot fail but for want of a kernel structure, and then the old
	// mapping stays, which nobody looks at.
	_, _ = unix.MmapPtr(-1, 0, p, windowSpan, unix.PROT_NONE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE|unix.MAP_FIXED)
}

// populate makes page table entries for p at once, whose pages are there: that
// takes half as long as a fault for every sixteen pages.
func populate(p []byte) { _ = unix.Madvise(p, unix.MADV_POPULATE_READ) }

// resident reports whether all pages of p, no longer than maxLoan, are in memory.
func resident(p []byte) bool {
	const page = 4 << 10 // the smallest there is
	var there [maxLoan/page + 1]byte
	from := address(p) &^ (uintptr(pageSize) - 1)
	n := address(p) + uintptr(len(p)) - from
	_, _, errno := syscall.Syscall(unix.SYS_MINCORE, from, n, uintptr(unsafe.Pointer(&there[0])))
	if errno != 0 {
		return false
	}
	for _, b := range there[:(n+uintptr(pageSize)-1)/uintptr(pageSize)] {
		if b&1 == 0 {
			return false
		}
	}
	return true
}

var pageSize = os.Getpagesize()

// whole reports whether a file in memory has no holes: mapped, those would be
// filled by reading them.
func whole(h handle) bool {
	var st unix.Stat_t
	return unix.Fstat(int(h), &st) == nil && st.Blocks*512 >= st.Size
}

// mappable reports whether loans of a file are worth a try: a file system of this
// machine, through the page cache, and mincore tells us the truth, which it
// does to the owner of a file and to who may write to it.
func mappable(h handle, g geometry, writable bool) bool {
	var st unix.Stat_t
	if unix.Fstat(int(h), &st) != nil || !writable && int(st.Uid) != os.Geteuid() {
		return false
	}
	if g.device || g.inMemory {
		return true
	}
	var fs unix.Statfs_t
	if unix.Fstatfs(int(h), &fs) != nil {
		return false
	}
	switch uint32(fs.Type) { // of another type on each architecture
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC:
		return true
	}
	return false
}
