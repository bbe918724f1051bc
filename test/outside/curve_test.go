package outside

import (
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"blockgate/backing/curve"
	"blockgate/backing/curve/nebdfake"
)

// nebd is a nebd-server in this process where guides have it, with a volume.
type nebd struct {
	*nebdfake.Server
	socket string
}

// newNebd serves a volume at nebd's default socket. Where something of nebd is
// there already the test is skipped.
func newNebd(t *testing.T, volume string, size int64) *nebd {
	t.Helper()
	needsTools(t)
	dir := filepath.Dir(curve.DefaultSocket)
	for _, path := range []string{dir, curve.DefaultClientConf} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Skipf("%s is there (%v): this test would be in its way", path, err)
		}
	}
	// What is made here goes again, and nothing else.
	for _, d := range []string{filepath.Dir(dir), dir, filepath.Join(dir, "lock")} {
		if err := os.Mkdir(d, 0o755); err == nil {
			t.Cleanup(func() {
				if d != filepath.Dir(dir) {
					os.RemoveAll(d)
				}
				os.Remove(d)
			})
		} else if !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	n := &nebd{nebdfake.New(nebdfake.Options{Shuffle: true}), curve.DefaultSocket}
	n.Create(volume, size, 4096)
	n.start(t)
	t.Cleanup(func() {
		n.Stop()
		if err := n.Check(); err != nil {
			t.Errorf("a real nebd-server would have crashed: %v", err)
		}
	})
	return n
}

func (n *nebd) start(t *testing.T) {
	t.Helper()
	if err := n.Start(n.socket); err != nil {
		t.Fatal(err)
	}
}

// The guide's command line as it stands: attached, written, and read back after a
// restart of either side.
func TestCurveRecipe(t *testing.T) {
	const volume = "cbd:pool//iscsi_test_"
	n := newNebd(t, volume, 1<<30)
	g := newTgt(t)
	g.start(t)
	g.adm(t, "--op", "new", "--mode", "target", "--tid", "1", "-T", tgtIQN)
	g.adm(t, "--op", "new", "--mode", "lu", "--tid", "1", "--lun", "2", "--bstype", "curve", "--backing-store", volume)
	g.adm(t, "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
	// Parts of Curve's blocks too.
	qemuIO(t, g.url(2), "write -P 0x5a 1M 64k", "write -P 0x77 1052160 512", "flush",
		"read -P 0x5a 1M 3584", "read -P 0x77 1052160 512", "read -P 0x5a 1052672 61440")
	if open := n.Open(); len(open) != 1 || open[0] != volume {
		t.Errorf("nebd-server has %v open, want the volume", open)
	}
	// Other clients of nebd on this host are kept away.
	lock, err := os.Open(filepath.Join(filepath.Dir(n.socket), "lock", "cbd:pool++iscsi_test_"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != syscall.EWOULDBLOCK {
		t.Errorf("locking the volume that is served: %v", err)
	}

	// nebd-server ends in the middle of a write, and comes back.
	var writes atomic.Int32
	var once sync.Once
	restarted := make(chan struct{})
	n.SetFault(func(q nebdfake.Request) nebdfake.Fault {
		if q.Method == "Write" && writes.Add(1) > 20 {
			once.Do(func() {
				go func() {
					defer close(restarted)
					n.Stop()
					if err := n.Start(n.socket); err != nil {
						t.Error(err)
					}
				}()
			})
		}
		return nebdfake.Fault{}
	})
	qemuIO(t, g.url(2), "write -P 0x33 8M 64M", "flush", "read -P 0x33 8M 64M", "read -P 0x77 1052160 512")
	select {
	case <-restarted:
	case <-time.After(20 * time.Second):
		t.Fatal("nebd-server was not restarted: the test tests nothing")
	}

	// We end, and come back.
	g.daemon.kill()
	g.start(t)
	qemuIO(t, g.url(2), "read -P 0x5a 1M 3584", "read -P 0x77 1052160 512", "read -P 0x33 8M 64M", "write -P 0x44 512 1024", "read -P 0x44 512 1024")
	got := make([]byte, 4096)
	n.Content(volume, got, 0)
	for i, b := range got {
		want := byte(0)
		if i >= 512 && i < 1536 {
			want = 0x44
		}
		if b != want {
			t.Fatalf("byte %d of the volume is %#x, want %#x", i, b, want)
		}
	}
	g.adm(t, "--op", "delete", "--mode", "logicalunit", "--tid", "1", "--lun", "2")
	if open := n.Open(); len(open) != 0 {
		t.Errorf("nebd-server has %v open after the unit was deleted", open)
	}
}

// kill -9 while nebd-server is at a write. That write must not come after what is
// written once we are back.
func TestCurveKilledDuringWrite(t *testing.T) {
	const volume = "cbd:pool//iscsi_test_"
	n := newNebd(t, volume, 1<<30)
	g := newTgt(t)
	g.start(t)
	g.adm(t, "--op", "new", "--mode", "target", "--tid", "1", "-T", tgtIQN)
	g.adm(t, "--op", "new", "--mode", "lu", "--tid", "1", "--lun", "2", "--bstype", "curve", "--backing-store", volume)
	g.adm(t, "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")

	held, release := make(chan struct{}), make(chan struct{})
	var writes, waiting sync.Once
	n.SetFault(func(q nebdfake.Request) (f nebdfake.Fault) {
		switch q.Method {
		case "Write":
			writes.Do(func() {
				f = nebdfake.Fault{Kind: nebdfake.Late, Before: true, Until: release}
				close(held)
			})
		case "CloseFile":
			// Ours, of the start after the kill: it waits for the write.
			waiting.Do(func() { close(release) })
		}
		return f
	})
	client := spawn(t, nil, "qemu-io", "-f", "raw", "-c", "write -P 0x11 1M 4k", g.url(2))
	select {
	case <-held:
	case <-time.After(20 * time.Second):
		t.Fatalf("no write arrived: %s", client.err.String())
	}
	g.daemon.kill()
	client.kill()
	g.start(t)
	qemuIO(t, g.url(2), "write -P 0x22 1M 4k", "read -P 0x22 1M 4k")
	select {
	case <-release:
	default:
		t.Error("the volume was opened without waiting for the write that was under way")
	}
	n.Stop() // all that it does is done
	got := make([]byte, 1)
	n.Content(volume, got, 1<<20)
	if got[0] != 0x22 {
		t.Errorf("the volume has %#x in the end, want 0x22", got[0])
	}
}

// iscsi-test-cu's SCSI family on a volume of Curve that gives space back.
func TestCurveConformance(t *testing.T) {
	const (
		volume = "cbd:pool//conform_test_"
		iqn    = "iqn.2025-01.io.blockgate.test:curve"
	)
	newNebd(t, volume, 1<<30)
	d := newDaemon(t)
	d.start(t, "--listen", "127.0.0.1:0")
	d.cli(t, "volume", "create", "vol", "curve:"+volume+"?discard=yes")
	d.cli(t, "target", "create", iqn, "--volume", "vol", "--allow", "all")
	patterns := []string{"SCSI.[^S]*", "SCSI.S[^a]*"}
	if os.Getenv("BLOCKGATE_OUTSIDE") == "all" {
		patterns = []string{"SCSI.*"} // Sanitize too, whose tool sleeps
	}
	conform(t, d.process, "curve", "iscsi://"+d.portal(t)+"/"+iqn+"/0", patterns...)
}
