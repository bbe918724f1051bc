package rbd

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"blockgate/backing"
)

func TestParseLocation(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Location
	}{
		{"image", Location{Pool: "rbd", Image: "image"}},
		{"pool/image@snap", Location{Pool: "pool", Image: "image", Snap: "snap"}},
		{"pool/ns/image", Location{Pool: "pool", Namespace: "ns", Image: "image"}},
		{"p/i?conf=/etc/ceph/b.conf&id=tgt&cluster=b", Location{Pool: "p", Image: "i", Conf: "/etc/ceph/b.conf", ID: "tgt", Cluster: "b"}},
		{"p/i?id=a%26b&steal=yes&lock=no&cache=yes", Location{Pool: "p", Image: "i", ID: "a&b", Steal: true, NoLock: true, Cache: true}},
		{"p/i?secret=11-22&steal=no", Location{Pool: "p", Image: "i", Secret: "11-22"}},
	} {
		got, err := ParseLocation(c.in)
		if err != nil || got != c.want {
			t.Errorf("%q: %+v, %v; want %+v", c.in, got, err, c.want)
		}
	}
	for _, in := range []string{"", "/", "p/", "/i", "p//i", "a/b/c/d", "i@", "i@a@b", "i?x=1", "i?id=", "i?steal=1", "i?id=%zz",
		"i?secret=../x", "i?id=%00", "a\x00b", strings.Repeat("x", 5000)} {
		if l, err := ParseLocation(in); err == nil {
			t.Errorf("%q is %+v", in, l)
		}
	}
}

func FuzzParseLocation(f *testing.F) {
	for _, s := range []string{"image", "p/n/i@s", "p/i?conf=/a%20b&id=c&cluster=d&secret=e&lock=no&cache=yes&steal=yes"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLocation(s)
		if err != nil {
			return
		}
		// Where a clone is said to be it is found, in the same cluster.
		again, err := ParseLocation(l.Clone("copy"))
		want := l
		want.Image, want.Snap, want.Steal = "copy", "", false
		if len(l.Clone("copy")) <= 4096 && (err != nil || again != want) {
			t.Errorf("%q: the clone of %+v is %q: %+v, %v", s, l, l.Clone("copy"), again, err)
		}
	})
}

func TestErrnos(t *testing.T) {
	s := &Store{spec: "rbd/i"}
	for no, want := range map[syscall.Errno]error{
		syscall.ENOENT: backing.ErrNotExist, syscall.ENOSPC: backing.ErrNoSpace, syscall.EDQUOT: backing.ErrNoSpace,
		syscall.ESHUTDOWN: backing.ErrFailed, syscall.EROFS: backing.ErrReadOnly, syscall.EBUSY: backing.ErrBusy,
		syscall.EEXIST: backing.ErrExist, syscall.EIO: syscall.EIO,
	} {
		err := s.wrap("read", no)
		if !errors.Is(err, want) || !errors.Is(err, no) || !strings.HasPrefix(err.Error(), "rbd: read of rbd/i: ") {
			t.Errorf("%v: %v", no, err)
		}
	}
}

// A mark tells whether the process that left it has ended, where that can be known.
func TestMark(t *testing.T) {
	us := ourMark()
	if us.PID != os.Getpid() || us.Boot == "" || us.Space == "" || us.Start == "" {
		t.Fatalf("%+v", us)
	}
	if us.dead(us) {
		t.Error("this process counts as dead")
	}
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	gone := us
	gone.PID = cmd.Process.Pid
	if !gone.dead(us) {
		t.Error("a process that has ended does not count as dead")
	}
	reused := us
	reused.Start = "1"
	if !reused.dead(us) {
		t.Error("a process whose number was used again does not count as dead")
	}
	for _, far := range []mark{{}, {Boot: "other", Space: us.Space, PID: gone.PID}, {Boot: us.Boot, Space: "pid:[1]", PID: gone.PID}} {
		if far.dead(us) {
			t.Errorf("%+v counts as dead, which cannot be known", far)
		}
	}
}

func TestAddresses(t *testing.T) {
	for in, want := range map[string]string{"127.0.0.1:0/12": "127.0.0.1:0/12", "v1:127.0.0.1:0/12": "127.0.0.1:0/12",
		"v2:[::1]:0/3": "[::1]:0/3", "[::1]:0/3": "[::1]:0/3", "": ""} {
		if got := bare(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
