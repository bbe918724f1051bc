package outside

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const tgtIQN = "iqn.2013-10.com.example"

// tgt is a tgtd of ours with a state directory and a control socket of its own.
type tgt struct {
	dir, port string
	env       []string
	daemon    *process
}

func newTgt(t *testing.T) *tgt {
	t.Helper()
	needsTools(t)
	// A unix socket's path is short: 107 bytes.
	dir, err := os.MkdirTemp("", "bgtgt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &tgt{dir: dir, port: freePort(t), env: []string{
		"TGT_IPC_SOCKET=" + filepath.Join(dir, "socket"),
		"BLOCKGATE_STATE=" + filepath.Join(dir, "state"),
	}}
}

func (g *tgt) portal() string { return "127.0.0.1:" + g.port }

func (g *tgt) url(lun int) string {
	return fmt.Sprintf("iscsi://%s/%s/%d", g.portal(), tgtIQN, lun)
}

// start runs tgtd in the foreground and waits until tgtadm reaches it.
func (g *tgt) start(t *testing.T) {
	t.Helper()
	g.daemon = spawn(t, g.env, filepath.Join(bindir, "tgtd"), "-f", "--iscsi", "portal="+g.portal())
	eventually(t, 20*time.Second, "tgtadm reaches tgtd", func() bool {
		if !g.daemon.alive() {
			t.Fatalf("tgtd ended: %s", g.daemon.err.String())
		}
		return g.try("--op", "show", "--mode", "target").code == 0
	})
}

func (g *tgt) try(args ...string) result {
	r, err := runErr(20*time.Second, g.env, filepath.Join(bindir, "tgtadm"), append([]string{"--lld", "iscsi"}, args...)...)
	if err != nil {
		return result{code: -1, stderr: err.Error()}
	}
	return r
}

// adm runs tgtadm, which must succeed, and gives what it printed.
func (g *tgt) adm(t *testing.T, args ...string) string {
	t.Helper()
	r := g.try(args...)
	if r.code != 0 {
		t.Fatalf("tgtadm %s: exit %d: %s", strings.Join(args, " "), r.code, r.both())
	}
	return r.stdout
}

// tgtd as an init script or a guide starts it: it goes to the background, and
// everything made through tgtadm outlives kill -9.
func TestTgtRecipe(t *testing.T) {
	g := newTgt(t)
	file := filepath.Join(g.dir, "disk.img")
	sparse(t, file, 64<<20)
	pidfile := filepath.Join(g.dir, "pid")
	background := func() int {
		t.Helper()
		r := runEnv(t, 20*time.Second, g.env, filepath.Join(bindir, "tgtd"), "--iscsi", "portal="+g.portal(), "--pid-file", pidfile)
		if r.code != 0 || r.timedOut {
			t.Fatalf("tgtd: exit %d: %s", r.code, r.both())
		}
		b, err := os.ReadFile(pidfile)
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil || pid <= 1 {
			t.Fatalf("pid file says %q", b)
		}
		t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
		return pid
	}
	pid := background()
	// It has returned, so it must answer at once: no waiting here.
	g.adm(t, "--op", "new", "--mode", "target", "--tid", "1", "-T", tgtIQN)
	g.adm(t, "--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", file)
	g.adm(t, "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")

	ok(t, 20*time.Second, "qemu-io", "-f", "raw", "-c", "write -P 0x5a 1M 64k", "-c", "flush", g.url(1))
	client := holdSession(t, g.url(1))
	shown := g.adm(t, "--op", "show", "--mode", "conn", "--tid", "1")
	for _, want := range []string{"Session: ", "Connection: ", "Initiator: ", "IP Address: 127.0.0.1"} {
		if !strings.Contains(shown, want) {
			t.Errorf("show --mode conn with a client logged in lacks %q:\n%s", want, shown)
		}
	}
	client.kill()
	before := g.adm(t, "--op", "show", "--mode", "target")
	for _, want := range []string{"Target 1: " + tgtIQN + "\n", "        LUN: 1\n", file, "ALL"} {
		if !strings.Contains(before, want) {
			t.Errorf("show --mode target lacks %q:\n%s", want, before)
		}
	}

	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the killed tgtd is gone", func() bool { return syscall.Kill(pid, 0) != nil || zombie(pid) })
	pid = background()
	after := g.adm(t, "--op", "show", "--mode", "target")
	if a, b := configured(after), configured(before); a != b {
		t.Errorf("after kill -9 the targets differ:\n%s\nbefore:\n%s", a, b)
	}
	ok(t, 20*time.Second, "qemu-io", "-f", "raw", "-c", "read -P 0x5a 1M 64k", g.url(1))

	if r := g.try("--op", "new", "--mode", "target", "--tid", "1", "-T", tgtIQN); r.code == 0 || !strings.Contains(r.stderr, "this target already exists") {
		t.Errorf("a target made twice: exit %d, %q", r.code, r.stderr)
	}
	if r := g.try("--op", "show", "--mode", "conn", "--tid", "7"); r.code == 0 || !strings.Contains(r.stderr, "can't find the target") {
		t.Errorf("connections of a target that is not there: exit %d, %q", r.code, r.stderr)
	}
	syscall.Kill(pid, syscall.SIGTERM)
	eventually(t, 10*time.Second, "tgtd ends after SIGTERM though it has targets", func() bool { return syscall.Kill(pid, 0) != nil || zombie(pid) })
}

// configured is "show --mode target" without what changes as initiators come
// and go.
func configured(show string) string {
	var keep []string
	nexus := false
	for line := range strings.Lines(show) {
		switch {
		case strings.HasPrefix(line, "    I_T nexus information:"):
			nexus = true
		case strings.HasPrefix(line, "    LUN information:"):
			nexus = false
		}
		if !nexus {
			keep = append(keep, line)
		}
	}
	return strings.Join(keep, "")
}

// zombie tells whether a process has ended and waits for its parent: in a
// container the first process may not reap.
func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

// holdSession logs a libiscsi client in and keeps it so until it is killed.
func holdSession(t *testing.T, url string) *process {
	t.Helper()
	// qemu-io logs in, reads, and then waits for the next command on its input.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close(); r.Close() })
	p := spawnWith(t, nil, r, "stdbuf", "-oL", "qemu-io", "-f", "raw", url)
	if _, err := w.WriteString("read 0 4096\n"); err != nil {
		t.Fatal(err)
	}
	p.expect(t, &p.out, "first read", 20*time.Second, func(s string) string {
		if strings.Contains(s, "read 4096/4096") {
			return s
		}
		return ""
	})
	return p
}
