package file_test

import (
	"bytes"
	"testing"
)

// Short reads of a file in memory are lent where a window shows them, take windows
// that show nothing after some reading, and none from others.
func TestShortLoans(t *testing.T) {
	const short = 4 << 10
	s, path := lending(t, tmpfs(t, "32M"), 2, 16*mib)
	for range 1024 {
		if s.LendMapped(0, short) != nil {
			t.Fatal("a short read of a file with holes is lent, which fills them")
		}
	}
	data := fill(t, s)
	// lent tells after how many reads of a place one is lent, if ever.
	lent := func(off int64) int {
		for i := range 2048 {
			if p := s.LendMapped(off, short); p != nil {
				if !bytes.Equal(p, data[off:off+short]) {
					t.Fatalf("the loan of %d bytes at %d is something else", short, off)
				}
				s.ReturnMapped(p, off)
				return i
			}
		}
		return -1
	}
	if n := lent(4096); n < 16 {
		t.Fatalf("the first short read that is lent has %d before it: a window was taken too soon, or never", n)
	}
	if n := lent(2*mib - short); n != 0 {
		t.Fatalf("a short read of what a window shows is lent after %d others", n)
	}
	if n := lent(4 * mib); n < 16 {
		t.Fatalf("the first short read of another window is lent after %d others", n)
	}
	before := mapped(t, path)
	if n := lent(8 * mib); n >= 0 {
		t.Fatalf("a short read took a window from others, after %d", n)
	}
	if n := mapped(t, path); n != before || before != 2*window {
		t.Fatalf("%d bytes are mapped, and %d before", n, before)
	}
	// Long ones may, and then the place that had it is asked for in vain.
	for off := int64(8 * mib); off < 16*mib; off += mib {
		s.ReturnMapped(borrow(t, s, off, mib), off)
	}
	if n := lent(4096); n >= 0 {
		t.Fatalf("a short read took its window back from a long one, after %d", n)
	}
}
