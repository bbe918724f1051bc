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
	"syscall"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/plugin"
	"blockgate/backing/storetest"
	"blockgate/iscsi/initiator"
)

// GlusterFS as Debian ships it, with a volume of one brick and one of three
// replicas. One cluster serves all: it takes its time to start.
func TestGluster(t *testing.T) {
	g := newGluster(t)
	g.volume(t, "one", 1, "performance.write-behind", "off")
	g.volume(t, "three", 3, "performance.write-behind", "off")
	g.volume(t, "shards", 1, "features.shard", "on", "features.shard-block-size", "4MB", "performance.write-behind", "off")
	g.volume(t, "plain", 1) // as a volume comes
	g.volume(t, "fence", 1, "performance.write-behind", "off", "locks.mandatory-locking", "optimal", "features.enforce-mandatory-lock", "on")

	for _, volume := range []string{"one", "three", "shards"} {
		t.Run("Store/"+volume, func(t *testing.T) { glusterStore(t, g, volume) })
		t.Run("QEMU/"+volume, func(t *testing.T) {
			e := serve(t, g.url(volume, "qemu.img"), "--size", "128M")
			if volume == "shards" { // which cannot tell a map
				qemuIO(t, e.url, "write -P 0xee 2M 8M", "discard 3M 4M", "read -P 0 3M 4M", "read -P 0xee 2M 1M", "read -P 0xee 7M 3M")
				return
			}
			qemuChecks(t, e, true)
		})
	}
	t.Run("WriteBehind", func(t *testing.T) { glusterWriteBehind(t, g) })
	t.Run("Locks", func(t *testing.T) { glusterLocks(t, g) })
	t.Run("Recipe", func(t *testing.T) { glusterRecipe(t, g) })
	t.Run("Mounted", func(t *testing.T) { glusterMounted(t, g) })
	t.Run("Killed/one", func(t *testing.T) { glusterKilled(t, g, "one") })
	t.Run("Killed/three", func(t *testing.T) { glusterKilled(t, g, "three") })
	t.Run("Resize", func(t *testing.T) { glusterResize(t, g) })
	t.Run("Conformance", func(t *testing.T) {
		e := serve(t, g.url("one", "conformance.img"), "--size", "1G")
		conform(t, e.process, "gluster", e.url, "SCSI.[^S]*", "SCSI.S[^a]*", "SCSI.Sanitize")
	})
	t.Run("NoLibrary", glusterNoLibrary)
}

// open opens a file without a gateway.
func (g *gluster) open(t *testing.T, location string, o backing.OpenOptions) (*plugin.Store, error) {
	t.Helper()
	return plugin.Open(t.Context(), plugin.Config{Name: "gluster", Path: filepath.Join(bindir, "blockgate-gluster")}, location, o)
}

// glusterStore: what the engine promises as a store.
func glusterStore(t *testing.T, g *gluster, volume string) {
	n := 0
	storetest.Run(t, func(t *testing.T) backing.Store {
		n++
		s, err := g.open(t, g.location(volume, fmt.Sprintf("store%d", n)), backing.OpenOptions{Create: true, CreateSize: storetest.Size, Exclusive: true})
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
	s, err := g.open(t, g.location(volume, "store1"), backing.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Discard(t.Context(), 0, storetest.Size)
	if size, rerr := s.Refresh(t.Context()); err != nil || rerr != nil || size != storetest.Size {
		t.Errorf("all given back: %v; then %d bytes, %v", err, size, rerr)
	}
	s.Close()
	s, err = g.open(t, g.location(volume, "store1"), backing.OpenOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, extents := backing.As[backing.Extenter](s)
	if extents != (volume != "shards") {
		t.Errorf("a volume with shards cannot tell holes, others can; this one: %v", extents)
	}
	if _, err := g.open(t, g.location(volume, "store1"), backing.OpenOptions{Create: true, CreateSize: 1 << 20}); !errors.Is(err, backing.ErrSizeMismatch) {
		t.Errorf("a file of another size is opened as if it were new: %v", err)
	}
}

func glusterWriteBehind(t *testing.T, g *gluster) {
	o := backing.OpenOptions{Create: true, CreateSize: 1 << 20}
	_, err := g.open(t, g.location("plain", "f"), o)
	if err == nil || !strings.Contains(err.Error(), "gluster volume set plain performance.write-behind off") {
		t.Fatalf("a volume that writes behind: %v", err)
	}
	for _, option := range []string{"on", "off"} {
		s, err := g.open(t, g.location("plain", "f"+option+"?write-behind="+option), backing.OpenOptions{Create: true, CreateSize: 1 << 20, Stall: 2 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 4096)
		if err := s.WriteAt(t.Context(), p, 0); err != nil {
			t.Fatal(err)
		}
		g.killBrick(t, "plain", 0)
		werr := s.WriteAt(t.Context(), p, 0)
		ferr := s.Flush(t.Context())
		g.restart(t, "plain")
		// What an answer is worth with it is the reason for all of this.
		if (werr == nil) != (option == "on") {
			t.Errorf("write-behind=%s: a write while no brick is up: %v", option, werr)
		}
		if ferr == nil {
			t.Errorf("write-behind=%s: a flush while no brick is up is well", option)
		}
		if err := s.WriteAt(t.Context(), p, 0); !errors.Is(err, backing.ErrFailed) {
			t.Errorf("write-behind=%s: a write after a flush that failed: %v", option, err)
		}
		s.Close()
	}
}

func glusterLocks(t *testing.T, g *gluster) {
	for _, c := range []struct{ volume, option string }{{"one", ""}, {"fence", "?lock=yes"}} {
		location := g.location(c.volume, "locked") + c.option
		o := backing.OpenOptions{Create: true, CreateSize: 1 << 20, Exclusive: true}
		a, err := g.open(t, location, o)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := g.open(t, location, o); !errors.Is(err, backing.ErrBusy) {
			t.Errorf("%s: opened twice: %v", location, err)
			if err == nil {
				b.Close()
			}
		}
		// Who does not ask for a lock writes beside us, or, against bricks that
		// enforce it, does not.
		b, err := g.open(t, g.location(c.volume, "locked"), backing.OpenOptions{Stall: time.Second})
		if (err == nil) != (c.option == "") || err != nil && !errors.Is(err, backing.ErrBusy) {
			t.Errorf("%s: a stranger: %v", location, err)
		}
		if err == nil {
			b.Close()
		}
		if err := a.WriteAt(t.Context(), make([]byte, 512), 0); err != nil {
			t.Errorf("%s: the owner's write: %v", location, err)
		}
		a.Close()
		if b, err = g.open(t, location, o); err != nil {
			t.Errorf("%s: opened again: %v", location, err)
		} else {
			b.Close()
		}
	}
	glusterFenced(t, g)
	_, err := g.open(t, g.location("one", "locked?lock=yes"), backing.OpenOptions{})
	if err == nil || !strings.Contains(err.Error(), "features.enforce-mandatory-lock on") {
		t.Errorf("a volume that does not enforce locks: %v", err)
	}
}

// glusterFenced: a gateway whose lock another takes away writes nothing any more.
func glusterFenced(t *testing.T, g *gluster) {
	o := backing.OpenOptions{Exclusive: true}
	a, err := g.open(t, g.location("fence", "locked?lock=yes"), o)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := g.open(t, g.location("fence", "locked?lock=steal"), o)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.WriteAt(t.Context(), []byte{2}, 0); err != nil {
		t.Error(err)
	}
	if err := a.WriteAt(t.Context(), []byte{1}, 0); !errors.Is(err, backing.ErrFailed) {
		t.Errorf("a gateway that was fenced off wrote: %v", err)
	}
	eventually(t, 10*time.Second, "it knows", func() bool { return a.Health().State == backing.Failed })
	got := make([]byte, 1)
	if err := b.ReadAt(t.Context(), got, 0); err != nil || got[0] != 2 {
		t.Errorf("the file has %d, %v", got[0], err)
	}
}

// glusterRecipe has the lines of the Gluster guide with tgt's bstype glfs.
func glusterRecipe(t *testing.T, g *gluster) {
	log := filepath.Join(t.TempDir(), "gfapi.log")
	ok(t, time.Minute, "qemu-img", "create", "-f", "raw", "gluster://127.0.0.2/one/block-device", "64M")
	d := newTgt(t)
	d.start(t)
	d.adm(t, "--op", "new", "--mode", "target", "--tid", "1", "-T", tgtIQN)
	d.adm(t, "--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "--bstype", "glfs",
		"--backing-store", "one@127.0.0.2:block-device", "--bsopts", "logfile="+log+";loglevel=7")
	d.adm(t, "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
	qemuIO(t, d.url(1), "write -P 0x5a 1M 1M", "flush", "read -P 0x5a 1M 1M")
	show := d.adm(t, "--op", "show", "--mode", "target")
	for _, want := range []string{"Backing store type: glfs", "Backing store path: one@127.0.0.2:block-device"} {
		if !strings.Contains(show, want) {
			t.Errorf("the listing has no %q:\n%s", want, show)
		}
	}
	if b, err := os.ReadFile(log); err != nil || len(b) == 0 {
		t.Errorf("the library's log: %d bytes, %v", len(b), err)
	}
	// We end, and come back; another client finds what was written.
	d.daemon.kill()
	d.start(t)
	qemuIO(t, d.url(1), "read -P 0x5a 1M 1M", "write -P 0x33 3M 64k", "flush")
	qemuIO(t, "gluster://127.0.0.2/one/block-device", "read -P 0x5a 1M 1M", "read -P 0x33 3M 64k")
}

// glusterMounted has those of the guide with a file of the mounted volume.
func glusterMounted(t *testing.T, g *gluster) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("a volume cannot be mounted here: %v", err)
	}
	dir := t.TempDir()
	if r := run(t, time.Minute, "mount", "-t", "glusterfs", "127.0.0.2:/three", dir); r.code != 0 {
		t.Skipf("a volume cannot be mounted here: %s", r.both())
	}
	t.Cleanup(func() { run(t, time.Minute, "umount", "-l", dir) })
	file := filepath.Join(dir, "mounted.img")
	sparse(t, file, 64<<20)
	d := newTgt(t)
	d.start(t)
	d.adm(t, "--op", "new", "--mode", "target", "--tid", "1", "-T", tgtIQN)
	d.adm(t, "--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", file)
	d.adm(t, "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
	qemuIO(t, d.url(1), "write -P 0x6b 1M 1M", "flush", "read -P 0x6b 1M 1M")
	d.adm(t, "--op", "delete", "--mode", "logicalunit", "--tid", "1", "--lun", "1")
	// The same file by the library.
	d.adm(t, "--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "--bstype", "glfs", "--backing-store", "three@127.0.0.2:mounted.img")
	qemuIO(t, d.url(1), "read -P 0x6b 1M 1M")
}

// glusterKilled loads a unit while bricks and the plugin are killed and come back:
// no error, and every block has what was last written to it.
func glusterKilled(t *testing.T, g *gluster, volume string) {
	file := fmt.Sprintf("killed%d.img", time.Now().UnixNano())
	e := serve(t, g.url(volume, file), "--size", "64M")
	ctx := context.Background()
	session, err := initiator.Dial(ctx, initiator.Config{Addrs: []string{e.addr()}, TargetName: e.iqn()})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	disk, err := session.Unit(0).OpenDisk(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var book ledger
	var writes atomic.Int64
	var enough atomic.Bool
	var load sync.WaitGroup
	for w := range crashWriters {
		load.Go(func() {
			if err := book.load(disk, w, uint64(time.Now().UnixNano()), &writes); !enough.Load() {
				t.Errorf("writer %d: %v", w, err)
			}
		})
	}
	goesOn := func(after string) {
		t.Helper()
		begin, n := time.Now(), writes.Load()
		eventually(t, time.Minute, "writes go on after "+after, func() bool { return writes.Load() >= n+200 || t.Failed() })
		t.Logf("after %s: 200 writes in %v", after, time.Since(begin).Round(time.Millisecond))
	}
	goesOn("the start")
	for round := range 2 {
		bricks := len(g.running(t, volume))
		g.killBrick(t, volume, round%bricks)
		if bricks > 1 {
			goesOn("a brick was killed")
		}
		g.restart(t, volume)
		goesOn("a brick came back")
		killPlugin(t, e.pid())
		goesOn("the plugin was killed")
	}
	g.killBrick(t, volume, 0)
	killPlugin(t, e.pid()) // which finds no brick when it is started again
	g.restart(t, volume)
	goesOn("both were away")
	enough.Store(true)
	session.Close()
	load.Wait()
	if t.Failed() {
		return
	}

	// Not one acknowledged write is missing, for us and for another client.
	book.flushed = book.acked
	session, err = initiator.Dial(ctx, initiator.Config{Addrs: []string{e.addr()}, TargetName: e.iqn()})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	if disk, err = session.Unit(0).OpenDisk(ctx); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, crashBlock)
	for b := range crashBlocks {
		if err := disk.ReadAt(ctx, p, int64(b)*crashBlock); err != nil {
			t.Fatal(err)
		}
		if err := book.check(p, b); err != nil {
			t.Fatal(err)
		}
	}
	ok(t, time.Minute, "qemu-img", "compare", "-f", "raw", "-F", "raw", e.url, "gluster://127.0.0.2/"+volume+"/"+file)
	figure(t, "Gluster, volume %s: %d writes with bricks and the plugin killed: none lost, no error", volume, writes.Load())
}

// killPlugin kills -9 the one plugin process of a gateway.
func killPlugin(t *testing.T, gateway int) {
	t.Helper()
	pids := plugins(t, gateway)
	if len(pids) != 1 {
		t.Fatalf("plugin processes: %v", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// glusterResize: a unit grows by our command.
func glusterResize(t *testing.T, g *gluster) {
	d := newDaemon(t)
	const iqn = "iqn.2025-01.io.blockgate.test:gluster"
	d.start(t, "--listen", "127.0.0.1:0")
	d.cli(t, "volume", "create", "vol", g.url("three", "grows.img"), "--size", "32M")
	d.cli(t, "target", "create", iqn, "--volume", "vol", "--allow", "all")
	d.cli(t, "volume", "resize", "vol", "64M")
	u := "iscsi://" + d.portal(t) + "/" + iqn + "/0"
	qemuIO(t, u, "write -P 0x11 60M 4M", "read -P 0x11 60M 4M", "read -P 0 32M 1M")
}

// glusterNoLibrary: a machine without libgfapi gets one line, and all the rest.
func glusterNoLibrary(t *testing.T) {
	found := must(filepath.Glob("/usr/lib/*/libgfapi.so.0"))
	if len(found) != 1 {
		t.Fatalf("the library is at %q", found)
	}
	hidden := "mount --bind /dev/null " + must(filepath.EvalSymlinks(found[0])) + " && exec "
	r := run(t, time.Minute, "unshare", "-m", "sh", "-c", hidden+blockgate+" serve gluster:v@127.0.0.2/f --listen 127.0.0.1:0")
	if line, _, _ := strings.Cut(r.stderr, "\n"); r.code == 0 || !strings.Contains(line, "Debian's package libgfapi0") {
		t.Errorf("exit %d:\n%s", r.code, r.both())
	}
}
