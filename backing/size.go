package backing

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ErrSizeMismatch: Open with Create found a store of another size than asked.
var ErrSizeMismatch = errors.New("store exists with another size")

// ParseSize reads a size in bytes: digits, then optionally one of K, M, G, T, P
// or E in either case (powers of 1024), then optionally B or iB: "4096", "10G",
// "10GiB". Signs, fractions and spaces are errors; so is what does not fit in an
// int64. The error names the string.
func ParseSize(s string) (int64, error) {
	digits := 0
	for digits < len(s) && s[digits] >= '0' && s[digits] <= '9' {
		digits++
	}
	if digits == 0 {
		return 0, fmt.Errorf("size %q: want a number of bytes such as 4096, 512M or 10G", s)
	}
	n, err := strconv.ParseInt(s[:digits], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("size %q: larger than 2^63-1 bytes", s)
	}
	unit := strings.ToLower(s[digits:])
	if unit == "" || unit == "b" {
		return n, nil
	}
	power := strings.IndexByte("kmgtpe", unit[0]) + 1
	if rest := unit[1:]; power == 0 || rest != "" && rest != "b" && rest != "ib" {
		return 0, fmt.Errorf("size %q: unknown unit %q, want K, M, G, T, P or E", s, s[digits:])
	}
	shift := uint(10 * power)
	if n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("size %q: larger than 2^63-1 bytes", s)
	}
	return n << shift, nil
}

// CheckRange returns ErrOutOfRange unless [off, off+n) lies within [0, size).
// It does not allocate.
func CheckRange(off, n, size int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return ErrOutOfRange
	}
	return nil
}

// SizeFromURL is the size of a store that exists only while it is open: s, as
// ParseSize reads it, or CreateSize if s is empty. Both, and different, is
// ErrSizeMismatch; neither, zero and less are errors.
func SizeFromURL(s string, o OpenOptions) (int64, error) {
	wanted := int64(0)
	if o.Create {
		wanted = o.CreateSize
	}
	size := wanted
	if s != "" {
		n, err := ParseSize(s)
		if err != nil {
			return 0, err
		}
		if wanted != 0 && wanted != n {
			return 0, fmt.Errorf("%w: %d bytes asked for, but %s is %d bytes", ErrSizeMismatch, wanted, s, n)
		}
		size = n
	}
	if size <= 0 {
		return 0, fmt.Errorf("size %q: a store needs at least one block", s)
	}
	return size, nil
}
