package ram_test

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"blockgate/backing"
)

// resident is the memory of this process in bytes.
func resident(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// TestPages: what a store takes for scattered blocks, and that a discard of all
// of it gives all of it back, whatever the pages.
func TestPages(t *testing.T) {
	const size = 256 << 20
	for _, c := range []struct {
		options string
		most    int64
	}{{",pages=small", 16 << 20}, {",pages=huge", size}, {"", size}} {
		s := open(t, "256M"+c.options, backing.OpenOptions{})
		before := resident(t)
		for off := int64(0); off < size; off += 1 << 20 {
			if err := s.WriteAt(t.Context(), make([]byte, 512), off); err != nil {
				t.Fatal(err)
			}
		}
		took := resident(t) - before
		if err := s.(backing.Discarder).Discard(t.Context(), 0, size); err != nil {
			t.Fatal(err)
		}
		left := resident(t) - before
		t.Logf("256 blocks of 512 bytes%s: %d KiB, after the discard %d", c.options, took>>10, left>>10)
		if took > c.most+8<<20 || left > 8<<20 {
			t.Errorf("%q takes %d bytes and keeps %d after a discard", c.options, took, left)
		}
		s.Close()
	}
}
