package outside

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// qemuIO runs commands of qemu-io, every one of which must succeed and verify.
func qemuIO(t *testing.T, url string, commands ...string) {
	t.Helper()
	args := []string{"-f", "raw"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	r := run(t, time.Minute, "qemu-io", append(args, url)...)
	// Failed commands do not always show in qemu-io's exit status.
	if r.code != 0 || regexp.MustCompile(`(?i)failed|error|cannot|can't`).MatchString(r.both()) {
		t.Errorf("qemu-io %q: exit %d\n%s", commands, r.code, r.both())
	}
	want := 0
	for _, c := range commands {
		if strings.HasPrefix(c, "read ") {
			want++
		}
	}
	if got := strings.Count(r.stdout, "\nread ") + strings.Count(r.stdout[:min(5, len(r.stdout))], "read "); got != want {
		t.Errorf("qemu-io %q reports %d of %d reads:\n%s", commands, got, want, r.both())
	}
}

// QEMU's block layer on every kind of unit it can meet.
func TestQEMU(t *testing.T) {
	needsTools(t)
	for _, unit := range []struct {
		name string
		args func(dir string) []string
		// holes: read what was unmapped. QEMU 7.2 stops at an assertion of its own
		// (iscsi_co_block_status) on blocks of 4096 bytes.
		holes bool
	}{
		{"ram", func(string) []string { return []string{"ram:128M"} }, true},
		{"file", func(dir string) []string { return []string{filepath.Join(dir, "d.img"), "--size", "128M"} }, true},
		{"file with 4096-byte blocks", func(dir string) []string {
			return []string{filepath.Join(dir, "d.img"), "--size", "128M", "--block-size", "4096"}
		}, false},
	} {
		t.Run(unit.name, func(t *testing.T) {
			qemuChecks(t, serve(t, unit.args(t.TempDir())...), unit.holes)
		})
	}
}

func qemuChecks(t *testing.T, e *export, holes bool) {
	const size = 128 << 20
	u := e.url
	dir := t.TempDir()
	src, back := filepath.Join(dir, "src"), filepath.Join(dir, "back")
	data := make([]byte, 48<<20)
	rand.Read(data)
	if err := os.WriteFile(src, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(src, size); err != nil {
		t.Fatal(err)
	}
	step := func(name string, f func(t *testing.T)) { t.Run(name, f) }
	step("size", func(t *testing.T) {
		var info struct {
			Size int64 `json:"virtual-size"`
		}
		if err := json.Unmarshal([]byte(ok(t, time.Minute, "qemu-img", "info", "--output=json", u)), &info); err != nil || info.Size != size {
			t.Errorf("virtual size %d, %v", info.Size, err)
		}
	})
	same := func(t *testing.T) {
		t.Helper()
		ok(t, time.Minute, "qemu-img", "compare", "-f", "raw", "-F", "raw", src, u)
	}
	step("convert onto the LUN", func(t *testing.T) {
		ok(t, time.Minute, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", src, u)
		same(t)
	})
	step("convert back", func(t *testing.T) {
		ok(t, time.Minute, "qemu-img", "convert", "-f", "raw", "-O", "raw", u, back)
		ok(t, time.Minute, "cmp", src, back)
	})
	step("parallel convert out of order", func(t *testing.T) {
		qemuIO(t, u, "write -P 0xcc 0 64M")
		ok(t, time.Minute, "qemu-img", "convert", "-n", "-m", "16", "-W", "-f", "raw", "-O", "raw", src, u)
		same(t)
	})
	step("pattern, flush, read", func(t *testing.T) {
		qemuIO(t, u, "write -P 0xab 1M 3M", "flush", "read -P 0xab 1M 3M")
	})
	step("unaligned write", func(t *testing.T) {
		qemuIO(t, u, "write -P 0x11 4M 2M", "write -P 0x5c 5000001 777", "read -P 0x5c 5000001 777", "read -P 0x11 4999000 1001", "read -P 0x11 5000778 1000")
	})
	step("FUA", func(t *testing.T) {
		qemuIO(t, u, "write -f -P 0x22 8M 64k", "read -P 0x22 8M 64k")
	})
	step("write zeroes", func(t *testing.T) {
		qemuIO(t, u, "write -P 0xff 16M 4M", "write -z 17M 1M", "read -P 0 17M 1M", "read -P 0xff 16M 1M", "read -P 0xff 18M 2M")
	})
	if holes {
		step("write zeroes that may unmap", func(t *testing.T) {
			qemuIO(t, u, "write -P 0xff 24M 4M", "write -z -u 25M 1M", "read -P 0 25M 1M", "read -P 0xff 24M 1M", "read -P 0xff 26M 2M")
		})
		step("discard and its neighbours", func(t *testing.T) {
			qemuIO(t, u, "write -P 0xee 32M 4M", "discard 33M 1M", "read -P 0 33M 1M", "read -P 0xee 32M 1M", "read -P 0xee 34M 2M")
		})
	}
	step("queued writes", func(t *testing.T) {
		var c []string
		for i := range 8 {
			c = append(c, fmt.Sprintf("aio_write -P %d %dM 1M", i+1, 40+i))
		}
		c = append(c, "aio_flush")
		for i := range 8 {
			c = append(c, fmt.Sprintf("read -P %d %dM 1M", i+1, 40+i))
		}
		qemuIO(t, u, c...)
	})
	step("reads at depth 32", func(t *testing.T) {
		ok(t, time.Minute, "qemu-img", "bench", "-f", "raw", "-t", "none", "-c", "2000", "-d", "32", "-s", "4096", u)
	})
	step("writes at depth 32 with flushes", func(t *testing.T) {
		ok(t, time.Minute, "qemu-img", "bench", "-f", "raw", "-t", "none", "-w", "-c", "2000", "-d", "32", "-s", "4096", "--flush-interval=100", u)
	})
	step("map", func(t *testing.T) {
		qemuIO(t, u, "write -P 1 64M 64M", "discard 96M 16M")
		var m []struct {
			Start, Length int64
			Data          bool
		}
		if err := json.Unmarshal([]byte(ok(t, time.Minute, "qemu-img", "map", "-f", "raw", "--output=json", u)), &m); err != nil {
			t.Fatal(err)
		}
		data := func(at int64) bool {
			for _, x := range m {
				if at >= x.Start && at < x.Start+x.Length {
					return x.Data
				}
			}
			t.Errorf("the map has nothing at %d", at)
			return false
		}
		if !data(80<<20) || data(100<<20) || !data(120<<20) {
			t.Errorf("map of a unit with a hole from 96M to 112M: %+v", m)
		}
	})
	step("header digest", func(t *testing.T) {
		if !strings.HasPrefix(u, "iscsi:") {
			t.Skip("it is iSCSI's")
		}
		ok(t, time.Minute, "qemu-img", "info", "--image-opts", fmt.Sprintf(
			"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=%s,file.target=%s,file.lun=0,file.header-digest=crc32c", e.addr(), e.iqn()))
	})
	step("past the end", func(t *testing.T) {
		r := run(t, time.Minute, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("read %d 512", size), u)
		if strings.Contains(r.stdout, "read 512/512") {
			t.Errorf("read beyond the end:\n%s", r.both())
		}
	})
}
