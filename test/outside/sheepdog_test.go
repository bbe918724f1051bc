package outside

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/sheepdog"
	"blockgate/backing/sheepdog/sheepfake"
	"blockgate/iscsi/initiator"
)

// flock is a Sheepdog cluster in this process.
type flock struct {
	*sheepfake.Cluster
	sheep   []*sheepfake.Sheep
	sockets []string
}

func newFlock(t *testing.T, sheep int, o sheepfake.Options) *flock {
	t.Helper()
	needsTools(t)
	dir, err := os.MkdirTemp("", "sheep") // short: a socket's path is
	if err != nil {
		t.Fatal(err)
	}
	f := &flock{Cluster: sheepfake.New(o)}
	t.Cleanup(func() {
		if err := f.Check(); err != nil {
			t.Errorf("dog vdi check would find: %v", err)
		}
		f.Close()
		os.RemoveAll(dir)
	})
	for i := range sheep {
		sock := filepath.Join(dir, fmt.Sprint("s", i))
		s, err := f.Start("unix", sock)
		if err != nil {
			t.Fatal(err)
		}
		f.sheep, f.sockets = append(f.sheep, s), append(f.sockets, sock)
	}
	return f
}

// vdi makes a VDI, as dog vdi create does.
func (f *flock) vdi(t *testing.T, name string, size int64) {
	t.Helper()
	s, err := sheepdog.Open(context.Background(), "unix:"+f.sockets[0]+":"+name, backing.OpenOptions{Create: true, CreateSize: size})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// monday reads what the snapshot of TestSheepdogRecipe has.
func monday(t *testing.T, url string) {
	t.Helper()
	r := run(t, 20*time.Second, "qemu-io", "-r", "-f", "raw", "-c", "read -P 0x5a 1M 64k", "-c", "read -P 0x77 9M 512", url)
	if r.code != 0 || strings.Count(r.stdout, "read ") != 2 || strings.Contains(r.both(), "verification failed") {
		t.Errorf("the snapshot %s: exit %d, %s", url, r.code, r.both())
	}
}

// The guide's command lines as they stand: attached, written, and read back after a
// restart of either side.
func TestSheepdogRecipe(t *testing.T) {
	f := newFlock(t, 1, sheepfake.Options{Locks: true, Shuffle: true})
	f.vdi(t, "tgt0", 1<<30)
	tcp, err := f.Start("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, address := tcp.Addr()
	unix, overTCP := "unix:"+f.sockets[0]+":tgt0", "tcp:"+address+":tgt0"
	g := newTgt(t)
	g.start(t)
	attach := func(lun, store string) {
		t.Helper()
		g.adm(t, "--op", "new", "--mode", "lu", "--tid", "1", "--lun", lun, "--bstype", "sheepdog", "--backing-store", store)
	}
	g.adm(t, "--op", "new", "--mode", "target", "--tid", "1", "-T", tgtIQN)
	attach("2", unix)
	g.adm(t, "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
	qemuIO(t, g.url(2), "write -P 0x5a 1M 64k", "write -P 0x77 9M 512", "flush", "read -P 0x5a 1M 64k", "read -P 0x77 9M 512")

	// A snapshot by tag and by id, over both kinds of sockets: as it was, and
	// read-only.
	s, err := sheepdog.Open(context.Background(), unix, backing.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	snap, err := s.(*sheepdog.Store).CreateSnapshot(context.Background(), "monday")
	s.Close()
	if err != nil {
		t.Fatal(err)
	}
	qemuIO(t, g.url(2), "write -P 0x33 1M 64k", "flush")
	attach("3", overTCP+":monday")
	attach("4", unix+":"+snap.ID)
	for _, lun := range []int{3, 4} {
		monday(t, g.url(lun))
		r := run(t, 20*time.Second, "qemu-io", "-f", "raw", "-c", "write -P 1 0 4k", g.url(lun))
		if r.code == 0 || !strings.Contains(r.both(), "write protected") {
			t.Errorf("LUN %d is a snapshot: exit %d, %s", lun, r.code, r.both())
		}
	}
	if shown := g.adm(t, "--op", "show", "--mode", "target"); !strings.Contains(shown, unix+"\n") || strings.Count(shown, "Readonly: Yes") != 2 {
		t.Errorf("show --mode target:\n%s", shown)
	}
	// One VDI is served once.
	if r := g.try("--op", "new", "--mode", "lu", "--tid", "1", "--lun", "5", "--bstype", "sheepdog", "--backing-store", overTCP); r.code == 0 {
		t.Error("a VDI was attached twice, through two sheep")
	}

	// The sheep ends in the middle of a write, and comes back.
	var writes atomic.Int32
	var once sync.Once
	restarted := make(chan struct{})
	f.SetFault(func(q sheepfake.Request) sheepfake.Fault {
		if q.Data() && q.Flags != 0 && writes.Add(1) > 20 {
			once.Do(func() {
				go func() {
					defer close(restarted)
					f.sheep[0].Stop()
					if err := f.sheep[0].Start(); err != nil {
						t.Error(err)
					}
				}()
			})
		}
		return sheepfake.Fault{}
	})
	qemuIO(t, g.url(2), "write -P 0x44 16M 64M", "flush", "read -P 0x44 16M 64M", "read -P 0x77 9M 512")
	select {
	case <-restarted:
	case <-time.After(20 * time.Second):
		t.Fatal("the sheep was not restarted: the test tests nothing")
	}

	// We end, and come back: the lock that was left is taken over.
	g.daemon.kill()
	if _, held := f.Owner("tgt0"); !held {
		t.Error("the VDI was not locked: the test tests nothing")
	}
	g.start(t)
	qemuIO(t, g.url(2), "read -P 0x33 1M 64k", "read -P 0x77 9M 512", "read -P 0x44 16M 64M", "write -P 0x11 512 1024", "read -P 0x11 512 1024")
	monday(t, g.url(3))
	g.adm(t, "--op", "delete", "--mode", "logicalunit", "--tid", "1", "--lun", "2")
	if _, held := f.Owner("tgt0"); held {
		t.Error("the VDI is still locked after the unit was deleted")
	}
}

// A sheep that is away when the daemon starts: initiators find the LUN not ready
// instead of gone, and can use it as soon as the sheep is back.
func TestSheepdogAwayAtStart(t *testing.T) {
	const iqn = "iqn.2025-01.io.blockgate.test:away"
	f := newFlock(t, 1, sheepfake.Options{})
	d := newDaemon(t)
	listen := "127.0.0.1:" + freePort(t)
	d.start(t, "--listen", listen)
	d.cli(t, "volume", "create", "vol", "sheepdog:unix:"+f.sockets[0]+":disk", "--size", "64M")
	d.cli(t, "target", "create", iqn, "--volume", "vol", "--allow", "all")
	url := "iscsi://" + listen + "/" + iqn + "/0"
	qemuIO(t, url, "write -P 0x5a 1M 64k", "flush")
	d.kill()
	f.sheep[0].Stop()
	d.start(t, "--listen", listen)
	s, err := initiator.Dial(context.Background(), initiator.Config{Addrs: []string{listen}, TargetName: iqn})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	unit := s.Unit(0)
	if q, err := unit.Inquiry(context.Background()); err != nil || q.Qualifier != 0 || q.Type != 0 {
		t.Errorf("INQUIRY of a volume without its engine: %+v, %v", q, err)
	}
	var e *initiator.StatusError
	if err := unit.TestUnitReady(context.Background()); !errors.As(err, &e) || e.Sense.ASC != 0x04 || e.Sense.ASCQ != 0x01 {
		t.Errorf("TEST UNIT READY of a volume without its engine: %v, want LOGICAL UNIT IS IN PROCESS OF BECOMING READY", err)
	}
	if r := run(t, 20*time.Second, "qemu-io", "-f", "raw", "-c", "read 0 4k", url); r.code == 0 {
		t.Errorf("read without the engine: %s", r.both())
	}
	if err := f.sheep[0].Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the volume runs again", func() bool {
		v, err := d.api.Volume(context.Background(), "vol")
		return err == nil && v.Status.State == "online"
	})
	// The session from before need not log in anew.
	if disk, err := unit.OpenDisk(context.Background()); err != nil || disk.Size() != 64<<20 {
		t.Errorf("the unit once its engine is back: %v", err)
	}
	qemuIO(t, url, "read -P 0x5a 1M 64k")
}

// iscsi-test-cu's SCSI family on a VDI.
func TestSheepdogConformance(t *testing.T) {
	const iqn = "iqn.2025-01.io.blockgate.test:sheepdog"
	f := newFlock(t, 1, sheepfake.Options{Locks: true, Shuffle: true})
	d := newDaemon(t)
	d.start(t, "--listen", "127.0.0.1:0")
	d.cli(t, "volume", "create", "vol", "sheepdog:unix:"+f.sockets[0]+":disk", "--size", "1G")
	d.cli(t, "target", "create", iqn, "--volume", "vol", "--allow", "all")
	patterns := []string{"SCSI.[^S]*", "SCSI.S[^a]*"}
	if os.Getenv("BLOCKGATE_OUTSIDE") == "all" {
		patterns = []string{"SCSI.*"} // Sanitize too, whose tool sleeps
	}
	conform(t, d.process, "sheepdog", "iscsi://"+d.portal(t)+"/"+iqn+"/0", patterns...)
}
