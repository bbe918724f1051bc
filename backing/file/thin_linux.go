package file

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A thin volume of device mapper takes BLKDISCARD and has no write zeroes with
// unmap, so the kernel makes no hole in it. What is discarded there reads as
// zeroes all the same: whole blocks of the pool are unmapped, and an unmapped
// block is zeroes. That holds neither where the volume has an external origin,
// which would show again, nor where the pool does not zero the blocks that it
// hands out, whose old content would show at the next small write.

// thinBlock is the size in bytes of the pool's blocks if the device is such a
// thin volume, else 0. It takes the right to ask device mapper (CAP_SYS_ADMIN).
func thinBlock(dev uint64) int {
	if _, err := os.Stat(filepath.Join(deviceDir(dev), "dm")); err != nil {
		return 0
	}
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return 0
	}
	defer control.Close()
	return thinBlockOf(dev, func(dev uint64) ([]dmTarget, error) { return dmTable(control, dev) })
}

func thinBlockOf(dev uint64, table func(dev uint64) ([]dmTarget, error)) int {
	volume, err := table(dev)
	if err != nil || len(volume) != 1 || volume[0].kind != "thin" {
		return 0
	}
	p := strings.Fields(volume[0].params) // POOL ID [EXTERNAL ORIGIN]
	if len(p) != 2 {
		return 0
	}
	pool, ok := parseDev(p[0])
	if !ok {
		return 0
	}
	of, err := table(pool)
	if err != nil || len(of) != 1 || of[0].kind != "thin-pool" {
		return 0
	}
	p = strings.Fields(of[0].params) // METADATA DATA SECTORS LOW [COUNT FEATURE…]
	if len(p) < 4 || slices.Contains(p[4:], "skip_block_zeroing") {
		return 0
	}
	n, err := strconv.Atoi(p[2])
	if err != nil || n <= 0 || n > 1<<21 { // the kernel's own bound is 1 GiB
		return 0
	}
	return n * 512
}

// parseDev reads MAJOR:MINOR.
func parseDev(s string) (uint64, bool) {
	major, minor, ok := strings.Cut(s, ":")
	a, err := strconv.ParseUint(major, 10, 12)
	b, err2 := strconv.ParseUint(minor, 10, 20)
	return unix.Mkdev(uint32(a), uint32(b)), ok && err == nil && err2 == nil
}

// dmTarget is one line of a device mapper table.
type dmTarget struct{ kind, params string }

// The kernel's struct dm_ioctl and struct dm_target_spec (linux/dm-ioctl.h), and
// DM_TABLE_STATUS with the flag that asks for the table.
const (
	dmHeader      = 312
	dmSpec        = 40
	dmTableStatus = 0xc138fd0c
	dmStatusTable = 1 << 4
	dmBufferFull  = 1 << 8
)

func dmTable(control *os.File, dev uint64) ([]dmTarget, error) {
	b := make([]byte, 16<<10) // a table of one line, with much room
	e := binary.NativeEndian
	e.PutUint32(b, 4) // version 4.0.0
	e.PutUint32(b[12:], uint32(len(b)))
	e.PutUint32(b[16:], dmHeader)
	e.PutUint32(b[28:], dmStatusTable)
	e.PutUint64(b[40:], dev)
	if err := ioctl(handle(control.Fd()), dmTableStatus, unsafe.Pointer(&b[0])); err != nil {
		return nil, err
	}
	return parseTable(b)
}

var errTable = errors.New("device mapper's answer is damaged or too long")

func parseTable(b []byte) ([]dmTarget, error) {
	if len(b) < dmHeader {
		return nil, errTable
	}
	e := binary.NativeEndian
	start, count := int64(e.Uint32(b[16:])), e.Uint32(b[20:])
	if e.Uint32(b[28:])&dmBufferFull != 0 || start < dmHeader || start > int64(len(b)) {
		return nil, errTable
	}
	b = b[start:]
	var list []dmTarget
	for at := int64(0); count > 0; count-- {
		if at+dmSpec > int64(len(b)) {
			return nil, errTable
		}
		spec := b[at:]
		next := int64(e.Uint32(spec[20:])) // counted from the first
		list = append(list, dmTarget{text(spec[24:dmSpec]), text(spec[dmSpec:])})
		if count > 1 && next < at+dmSpec {
			return nil, errTable
		}
		at = next
	}
	return list, nil
}

func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

// discardBlocks is BLKDISCARD, which drops the range from the page cache too.
func discardBlocks(h handle, off, n int64) error {
	r := [2]uint64{uint64(off), uint64(n)}
	return ioctl(h, unix.BLKDISCARD, unsafe.Pointer(&r))
}

func ioctl(h handle, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(h), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
