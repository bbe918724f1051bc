package backing_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"

	"blockgate/backing"
)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "1": 1, "4096": 4096, "512B": 512, "1k": 1 << 10, "1K": 1 << 10, "3KiB": 3 << 10, "3kb": 3 << 10,
		"64M": 64 << 20, "10G": 10 << 30, "10GiB": 10 << 30, "10GB": 10 << 30, "2T": 2 << 40, "1P": 1 << 50, "7E": 7 << 60,
		"9223372036854775807": math.MaxInt64, "007": 7,
	} {
		if got, err := backing.ParseSize(s); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "G", "-1", "+1", "1.5G", "10 G", " 1", "1X", "1iB", "1Ki", "1KiBs", "1Gb/s",
		"8E", "9223372036854775808", "9007199254740992K", "0x10", "١"} {
		got, err := backing.ParseSize(s)
		if err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", s, got)
		} else if !strings.Contains(err.Error(), s) {
			t.Errorf("ParseSize(%q): error %q does not name it", s, err)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"10G", "1KiB", "9223372036854775807", "8E", "-1", "", "1EiB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := backing.ParseSize(s); n < 0 || err != nil && n != 0 {
			t.Errorf("ParseSize(%q) = %d, %v", s, n, err)
		}
	})
}

func TestCheckRange(t *testing.T) {
	for _, c := range []struct {
		off, n, size int64
		ok           bool
	}{
		{0, 0, 0, true}, {0, 10, 10, true}, {10, 0, 10, true}, {9, 1, 10, true},
		{0, 11, 10, false}, {10, 1, 10, false}, {11, 0, 10, false}, {-1, 1, 10, false}, {1, -1, 10, false},
		{math.MaxInt64, math.MaxInt64, math.MaxInt64, false}, {5, math.MaxInt64, 10, false}, {math.MinInt64, 1, 10, false},
	} {
		err := backing.CheckRange(c.off, c.n, c.size)
		if c.ok != (err == nil) || err != nil && !errors.Is(err, backing.ErrOutOfRange) {
			t.Errorf("CheckRange(%d, %d, %d) = %v", c.off, c.n, c.size, err)
		}
	}
}

func TestSplitURL(t *testing.T) {
	for url, want := range map[string][2]string{
		"file:/srv/a.img":     {"file", "/srv/a.img"},
		"/srv/a:b.img":        {"file", "/srv/a:b.img"},
		"./disk.img":          {"file", "./disk.img"},
		"RAM:1G":              {"ram", "1G"},
		"nbd://host/export":   {"nbd", "//host/export"},
		"sheepdog:unix:/s:v":  {"sheepdog", "unix:/s:v"},
		"disk one.img:backup": {"file", "disk one.img:backup"},
		":x":                  {"file", ":x"},
	} {
		scheme, rest := backing.SplitURL(url)
		if scheme != want[0] || rest != want[1] {
			t.Errorf("SplitURL(%q) = %q, %q; want %q", url, scheme, rest, want)
		}
	}
}

func FuzzSplitURL(f *testing.F) {
	for _, s := range []string{"file:/srv/a.img", "ram:1G", ":", "", "a:b:c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, url string) {
		scheme, rest := backing.SplitURL(url)
		if scheme == "" || !strings.HasSuffix(url, rest) {
			t.Errorf("SplitURL(%q) = %q, %q", url, scheme, rest)
		}
	})
}

// plain has the core and one capability; wide has it too, but denies it.
type plain struct{ size int64 }

func (plain) ReadAt(context.Context, []byte, int64) error  { return nil }
func (plain) WriteAt(context.Context, []byte, int64) error { return nil }
func (plain) Flush(context.Context) error                  { return nil }
func (p plain) Size() int64                                { return p.size }
func (plain) Close() error                                 { return nil }
func (plain) Discard(context.Context, int64, int64) error  { return nil }
func (plain) TryReadAt([]byte, int64) (bool, error)        { return true, nil }
func (plain) Refresh(context.Context) (int64, error)       { return 0, nil }

type wide struct{ plain }

func (wide) Capabilities() backing.Caps { return backing.CapRefresh | backing.CapResize }

func TestAs(t *testing.T) {
	if _, ok := backing.As[backing.Discarder](plain{}); !ok {
		t.Error("a store that denies nothing has what its type has")
	}
	if d, ok := backing.As[backing.Discarder](wide{}); ok || d != nil {
		t.Error("a store has what it denies")
	}
	if _, ok := backing.As[backing.Resizer](wide{}); ok {
		t.Error("a store has a capability without its methods")
	}
	if _, ok := backing.As[backing.Informer](plain{}); ok {
		t.Error("a store without Info is an Informer")
	}
	if got, want := backing.CapsOf(plain{}), backing.CapTryRead|backing.CapDiscard|backing.CapRefresh; got != want {
		t.Errorf("CapsOf = %v, want %v", got, want)
	}
	if got := backing.CapsOf(wide{}); got != backing.CapRefresh {
		t.Errorf("CapsOf = %v, want refresh", got)
	}
	if backing.IsPrompt(plain{}) || backing.InfoOf(plain{}).Engine != "" {
		t.Error("a store without Prompt and Info has some")
	}
	if got := (backing.CapTryRead | backing.CapCompareAndWrite).String(); got != "try-read,compare-and-write" {
		t.Errorf("String = %q", got)
	}
	if n := strings.Count(backing.CapsAll.String(), ","); n != 13 {
		t.Errorf("%d commas in %q, want 13", n, backing.CapsAll)
	}
}
