package outside

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"blockgate/iscsi"
)

// The first minute of a new user: one line, then the tools at hand.
func TestTour(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.img")
	e := serve(t, disk, "--size", "96M")

	t.Run("discovery", func(t *testing.T) {
		// Debian's iscsi-ls spins for ever on some errors: always with a limit.
		out := ok(t, 15*time.Second, "iscsi-ls", "-s", "iscsi://"+e.addr())
		if !strings.Contains(out, "Target:"+e.iqn()+" Portal:"+e.addr()) {
			t.Errorf("iscsi-ls does not list %s at %s:\n%s", e.iqn(), e.addr(), out)
		}
		if !strings.Contains(out, "Lun:0") {
			t.Errorf("iscsi-ls -s does not list LUN 0:\n%s", out)
		}
	})
	t.Run("inquiry", func(t *testing.T) {
		out := ok(t, 15*time.Second, "iscsi-inq", e.url)
		if !strings.Contains(out, "DIRECT_ACCESS") {
			t.Errorf("no disk:\n%s", out)
		}
	})
	t.Run("capacity", func(t *testing.T) {
		out := ok(t, 15*time.Second, "iscsi-readcapacity16", e.url)
		for _, want := range []string{
			`(?m)^RETURNED LOGICAL BLOCK ADDRESS:196607$`, `(?m)^LOGICAL BLOCK LENGTH IN BYTES:512$`,
			`(?m)^Total size:100663296$`,
		} {
			if !regexp.MustCompile(want).MatchString(out) {
				t.Errorf("no line %s:\n%s", want, out)
			}
		}
	})
	t.Run("copy", func(t *testing.T) {
		src := filepath.Join(dir, "src.raw")
		data := make([]byte, 96<<20)
		rand.Read(data[:64<<20])
		if err := os.WriteFile(src, data, 0o600); err != nil {
			t.Fatal(err)
		}
		ok(t, time.Minute, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", src, e.url)
		ok(t, time.Minute, "qemu-img", "compare", "-f", "raw", "-F", "raw", src, e.url)
		ok(t, time.Minute, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", e.url, filepath.Join(dir, "back.qcow2"))
		ok(t, time.Minute, "qemu-img", "compare", src, filepath.Join(dir, "back.qcow2"))
		// What the initiator wrote is what the file holds once serve has ended.
		e.signal(syscall.SIGTERM)
		if code := e.ended(t, 20*time.Second); code != 0 {
			t.Errorf("serve ended with %d after SIGTERM", code)
		}
		got, err := os.ReadFile(disk)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, data) {
			t.Error("the file differs from what was written through the LUN")
		}
	})
}

func TestSeveralDisksAndCHAP(t *testing.T) {
	dir := t.TempDir()
	e := serve(t, filepath.Join(dir, "a.img"), filepath.Join(dir, "b.img"), "--size", "16M", "--chap", "joe:a-long-secret-1")
	open := fmt.Sprintf("iscsi://%s/%s/", e.addr(), e.iqn())
	closed := fmt.Sprintf("iscsi://joe%%a-long-secret-1@%s/%s/", e.addr(), e.iqn())
	for _, lun := range []string{"0", "1"} {
		ok(t, 15*time.Second, "iscsi-inq", closed+lun)
	}
	ok(t, 20*time.Second, "qemu-io", "-f", "raw", "-c", "write -P 7 0 1M", closed+"1")
	ok(t, 20*time.Second, "qemu-io", "-f", "raw", "-c", "read -P 0 0 1M", closed+"0")
	for what, url := range map[string]string{
		"no credentials":     open + "0",
		"a wrong secret":     strings.Replace(closed, "secret-1", "secret-2", 1) + "0",
		"another user":       strings.Replace(closed, "joe", "jim", 1) + "0",
		"a LUN not there":    closed + "2",
		"a target not there": strings.Replace(closed, e.iqn(), e.iqn()+"x", 1) + "0",
	} {
		if r := run(t, 15*time.Second, "iscsi-inq", url); r.code == 0 {
			t.Errorf("%s was accepted:\n%s", what, r.both())
		}
	}
	if strings.Contains(e.err.String(), "a-long-secret-1") {
		t.Error("the secret is in the log")
	}
}

func TestCaptive(t *testing.T) {
	needsTools(t)
	serveAnd := func(command string) result {
		return run(t, 30*time.Second, blockgate, "serve", "ram:64M", "--listen", "127.0.0.1:0", "--", "sh", "-c", command)
	}
	if r := serveAnd("iscsi-inq $BLOCKGATE_URL"); r.code != 0 || !strings.Contains(r.stdout, "DIRECT_ACCESS") {
		t.Errorf("exit %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
	if r := serveAnd("test $BLOCKGATE_URL = $BLOCKGATE_URL_0 && exit 7"); r.code != 7 {
		t.Errorf("the command's exit status 7 became %d: %s", r.code, r.both())
	}
	if r := serveAnd("echo only this"); r.stdout != "only this\n" {
		t.Errorf("stdout is not the command's alone: %q", r.stdout)
	}
	if r := run(t, 30*time.Second, blockgate, "serve", "ram:64M", "--listen", "127.0.0.1:0", "--", "/nonexistent"); r.code == 0 || !strings.Contains(r.stderr, "/nonexistent") {
		t.Errorf("a command that is not there: exit %d, %s", r.code, r.stderr)
	}
	// A signal reaches the command.
	p := spawn(t, nil, blockgate, "serve", "ram:64M", "--listen", "127.0.0.1:0", "--", "sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do read -t 1 x; done")
	p.expect(t, &p.out, "ready", 20*time.Second, func(s string) string { return regexp.MustCompile("ready").FindString(s) })
	syscall.Kill(p.pid(), syscall.SIGTERM)
	if code := p.ended(t, 20*time.Second); code != 5 {
		t.Errorf("SIGTERM to serve: exit %d, the command's trap says 5", code)
	}
}

func TestSignals(t *testing.T) {
	e := serve(t, "ram:64M")
	start := time.Now()
	e.signal(syscall.SIGTERM)
	if code := e.ended(t, 5*time.Second); code != 0 {
		t.Errorf("idle, SIGTERM: exit %d", code)
	}
	figure(t, "SIGTERM while idle: ended after %v", time.Since(start).Round(time.Millisecond))

	// An initiator that logs out when asked.
	e = serve(t, "ram:64M")
	holdSession(t, e.url)
	start = time.Now()
	e.signal(syscall.SIGTERM)
	e.ended(t, 15*time.Second)
	figure(t, "SIGTERM with QEMU logged in: ended after %v", time.Since(start).Round(time.Millisecond))

	// One that takes no notice: in time after one signal, at once after two.
	e = serve(t, "ram:64M")
	askedToLogOut(t, e)
	start = time.Now()
	e.ended(t, 15*time.Second)
	figure(t, "SIGTERM with an initiator that stays: ended after %v", time.Since(start).Round(time.Millisecond))

	e = serve(t, "ram:64M")
	askedToLogOut(t, e)
	if !e.alive() {
		t.Fatal("it did not wait for the initiator")
	}
	start = time.Now()
	e.signal(syscall.SIGTERM)
	e.ended(t, 2*time.Second)
	figure(t, "second SIGTERM: ended after %v", time.Since(start).Round(time.Millisecond))
}

// askedToLogOut sends SIGTERM to e and waits until a session of it hears of that.
func askedToLogOut(t *testing.T, e *export) {
	t.Helper()
	raw := rawLogin(t, e)
	e.signal(syscall.SIGTERM)
	raw.SetDeadline(time.Now().Add(5 * time.Second))
	p, err := raw.Recv()
	if err != nil {
		t.Fatalf("SIGTERM: %v", err)
	}
	const logoutRequested = 1 // RFC 7143 §11.9.1
	if p.Opcode() != iscsi.OpAsync || p.BHS[36] != logoutRequested {
		t.Fatalf("SIGTERM: the session got opcode %#x, event %d", p.BHS[0], p.BHS[36])
	}
}

// An error names the object, the reason and what to do; the exit status is not 0.
func TestErrors(t *testing.T) {
	needsTools(t)
	dir := t.TempDir()
	odd := filepath.Join(dir, "odd.img")
	sparse(t, odd, 1<<20+100)
	half := filepath.Join(dir, "half.img")
	sparse(t, half, 1<<20)
	busy := filepath.Join(dir, "busy.img")
	serve(t, busy, "--size", "16M")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	any0 := "--listen=127.0.0.1:0"
	missing := filepath.Join(dir, "missing.img")
	for _, c := range []struct {
		name string
		args []string
		want []string // each must be in stderr
	}{
		{"missing path", []string{missing, any0}, []string{missing, "--size"}},
		{"missing folder", []string{filepath.Join(dir, "no", "x.img"), "--size", "1M", any0}, []string{filepath.Join(dir, "no")}},
		{"busy file", []string{busy, any0}, []string{busy, "use"}},
		{"not a multiple of the block size", []string{odd, any0}, []string{odd, "512"}},
		{"another size than the file's", []string{half, "--size", "2M", any0}, []string{half}},
		{"port in use", []string{"ram:1M", "--listen", l.Addr().String()}, []string{l.Addr().String(), "use"}},
		{"bad address", []string{"ram:1M", "--listen", "127.0.0.1:notaport"}, []string{"notaport"}},
		{"bad size", []string{missing, "--size", "10X", any0}, []string{"10X"}},
		{"unknown engine", []string{"tape:1", any0}, []string{"tape"}},
		{"bad block size", []string{"ram:1M", "--block-size", "513", any0}, []string{"513"}},
		{"unknown flag", []string{"ram:1M", "--frobnicate"}, []string{"--frobnicate"}},
		{"a folder", []string{dir, any0}, []string{dir}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := run(t, 15*time.Second, blockgate, append([]string{"serve"}, c.args...)...)
			if r.timedOut {
				t.Fatalf("it serves instead:\n%s", r.both())
			}
			if r.code <= 0 {
				t.Errorf("exit status %d", r.code)
			}
			if r.stdout != "" {
				t.Errorf("an error on stdout: %q", r.stdout)
			}
			for _, w := range c.want {
				if !strings.Contains(r.stderr, w) {
					t.Errorf("%q is not in:\n%s", w, r.stderr)
				}
			}
			if strings.Contains(r.stderr, "goroutine ") {
				t.Errorf("a stack trace:\n%s", r.stderr)
			}
		})
	}
	if _, err := os.Stat(missing); err == nil {
		t.Error("a failed serve left a file behind")
	}
	for path, size := range map[string]int64{odd: 1<<20 + 100, half: 1 << 20} {
		if st, err := os.Stat(path); err != nil || st.Size() != size {
			t.Errorf("a failed serve changed %s: %v, %v", path, st, err)
		}
	}
}
