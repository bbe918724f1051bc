package outside

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// gluster is a cluster of GlusterFS on 127.0.0.2, where bricks may be: they are
// refused on 127.0.0.1.
type gluster struct {
	dir    string
	bricks int
}

const glusterVol = `volume management
    type mgmt/glusterd
    option working-directory DIR/wd
    option run-directory DIR/run
    option transport-type socket
    option transport.socket.listen-port 24007
    option transport.socket.bind-address 127.0.0.2
    option transport.address-family inet
    option ping-timeout 0
    option event-threads 1
    option base-port 49152
    option max-port 49999
end-volume
`

// glusterSocket is where its tool looks for glusterd, whatever it is told: there
// is one cluster a machine.
const glusterSocket = "/var/run/glusterd.socket"

// newGluster starts a cluster without volumes, or skips the test where it is not
// to be had.
func newGluster(t *testing.T) *gluster {
	t.Helper()
	needsAll(t)
	for _, tool := range []string{"glusterd", "gluster"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not there: test/packages.sh judge installs it", tool)
		}
	}
	if r := run(t, time.Minute, "gluster", "volume", "list"); r.code == 0 {
		t.Skip("this machine has a cluster of GlusterFS: this test would be in its way")
	}
	dir, err := os.MkdirTemp("", "bggl")
	if err != nil {
		t.Fatal(err)
	}
	g := &gluster{dir: dir}
	for _, d := range []string{"wd", "run"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(dir, "wd", "groups"), os.DirFS("/var/lib/glusterd/groups")); err != nil {
		t.Fatal(err)
	}
	vol := filepath.Join(dir, "glusterd.vol")
	if err := os.WriteFile(vol, []byte(strings.ReplaceAll(glusterVol, "DIR", dir)), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.killAll()
		os.Remove(glusterSocket)
		os.RemoveAll(dir)
	})
	p := spawn(t, nil, "glusterd", "-N", "--volfile="+vol, "-p", filepath.Join(dir, "run", "pid"), "--log-file="+filepath.Join(dir, "log"))
	eventually(t, 30*time.Second, "glusterd answers", func() bool {
		if !p.alive() {
			t.Fatalf("glusterd ended: %s", p.err.String())
		}
		r, err := runErr(10*time.Second, nil, "gluster", "volume", "list")
		return err == nil && r.code == 0
	})
	return g
}

// killAll ends what glusterd has started: bricks and self-heal daemons are
// children of nobody.
func (g *gluster) killAll() {
	for _, path := range must(filepath.Glob("/proc/[0-9]*/cmdline")) {
		b, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(b), g.dir) || !strings.Contains(string(b), "gluster") {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(path, "/")[2]); err == nil && pid != os.Getpid() {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

func (g *gluster) gluster(t *testing.T, args ...string) string {
	t.Helper()
	return ok(t, 2*time.Minute, "gluster", append([]string{"--mode=script"}, args...)...)
}

// volume makes and starts one of so many bricks, which hold the same.
func (g *gluster) volume(t *testing.T, name string, bricks int, options ...string) {
	t.Helper()
	args := []string{"volume", "create", name}
	if bricks > 1 {
		args = append(args, "replica", strconv.Itoa(bricks))
	}
	for range bricks {
		g.bricks++
		args = append(args, fmt.Sprintf("127.0.0.2:%s/b%d", g.dir, g.bricks))
	}
	g.gluster(t, append(args, "force")...)
	for i := 0; i < len(options); i += 2 {
		g.gluster(t, "volume", "set", name, options[i], options[i+1])
	}
	g.gluster(t, "volume", "start", name)
	g.online(t, name, bricks)
}

// running are the processes of a volume's bricks, 0 for one that has none.
func (g *gluster) running(t *testing.T, volume string) []int {
	t.Helper()
	var pids []int
	for line := range strings.Lines(g.gluster(t, "volume", "status", volume)) {
		if f := strings.Fields(line); len(f) > 4 && f[0] == "Brick" {
			pid, _ := strconv.Atoi(f[len(f)-1])
			if pid != 0 && syscall.Kill(pid, 0) != nil {
				pid = 0
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

func (g *gluster) online(t *testing.T, volume string, bricks int) {
	t.Helper()
	eventually(t, time.Minute, "all bricks of "+volume+" are up", func() bool {
		pids := g.running(t, volume)
		return len(pids) == bricks && !slices.Contains(pids, 0)
	})
}

// killBrick kills -9 the brick of a number, and waits until glusterd has seen it.
func (g *gluster) killBrick(t *testing.T, volume string, n int) {
	t.Helper()
	pid := g.running(t, volume)[n]
	if pid == 0 {
		t.Fatalf("brick %d of %s is not running", n, volume)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the brick is gone", func() bool { return g.running(t, volume)[n] == 0 })
}

// restart starts what is missing of a volume's bricks.
func (g *gluster) restart(t *testing.T, volume string) {
	t.Helper()
	bricks := len(g.running(t, volume))
	eventually(t, time.Minute, "the bricks of "+volume+" are up again", func() bool {
		// While glusterd has not noticed the end of a brick, this does nothing.
		g.gluster(t, "volume", "start", volume, "force")
		pids := g.running(t, volume)
		return len(pids) == bricks && !slices.Contains(pids, 0)
	})
}

// url names a file to us; path has options if it wants any.
func (g *gluster) url(volume, path string) string { return "gluster:" + g.location(volume, path) }

func (g *gluster) location(volume, path string) string { return volume + "@127.0.0.2/" + path }
