package ram

import (
	"bytes"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// mapMemory reserves n bytes of zeroes outside the garbage collector's heap.
// They take memory page by page, as they are written, if huge by huge pages as
// far as there are any.
func mapMemory(n int, huge bool) ([]byte, error) {
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	advice := unix.MADV_NOHUGEPAGE // whatever the system's habit is
	if huge {
		advice = unix.MADV_HUGEPAGE
	}
	_ = unix.Madvise(mem, advice) // a kernel without huge pages does not know either
	return mem, nil
}

func unmapMemory(mem []byte) {
	// Fails only for a range that is not a mapping.
	_ = unix.Munmap(mem)
}

// releasePages gives whole pages back; they read as zeroes.
func releasePages(mem []byte) {
	if unix.Madvise(mem, unix.MADV_DONTNEED) != nil {
		// Locked memory cannot be given back.
		clear(mem)
	}
}

// releaseChunk reports whether a chunk's memory can be dropped as a whole: not
// here, where it is a part of a mapping.
func releaseChunk([]byte) bool { return false }

// availableMemory is how much memory could be taken without swapping, in bytes.
func availableMemory() (int64, bool) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, false
	}
	_, rest, ok := bytes.Cut(text, []byte("\nMemAvailable:"))
	fields := bytes.Fields(rest)
	if !ok || len(fields) == 0 {
		return 0, false
	}
	kib, err := strconv.ParseInt(string(fields[0]), 10, 50)
	return kib << 10, err == nil && kib >= 0
}
