package outside

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/storetest"
	"blockgate/iscsi/initiator"
)

// What the engine promises as a store, on a real cluster.
func TestRBDStore(t *testing.T) {
	c := newCeph(t, "memstore")
	n := 0
	storetest.Run(t, func(t *testing.T) backing.Store {
		n++
		return c.mustOpen(t, c.location(fmt.Sprintf("store%d", n)), backing.OpenOptions{Create: true, CreateSize: storetest.Size, Exclusive: true})
	})
	t.Run("Locks", func(t *testing.T) { cephLocks(t, c) })
	t.Run("Options", func(t *testing.T) { cephOptions(t, c) })
}

// What a location may say: name spaces, images without locks, the cache.
func cephOptions(t *testing.T, c *ceph) {
	ctx := t.Context()
	o := backing.OpenOptions{Create: true, CreateSize: 8 << 20, Exclusive: true}
	block := bytes.Repeat([]byte{0x3c}, 4096)
	got := make([]byte, len(block))
	holds := func(s backing.Store, off int64) {
		t.Helper()
		if err := s.ReadAt(ctx, got, off); err != nil || !bytes.Equal(got, block) {
			t.Errorf("%v, %#x", err, got[0])
		}
	}

	c.rbd(t, "namespace", "create", "rbd/ns")
	s := c.mustOpen(t, c.location("ns/image"), o)
	if err := s.WriteAt(ctx, block, 1<<20); err != nil {
		t.Error(err)
	}
	if snap, err := s.CreateSnapshot(ctx, "one"); err != nil || snap.Name != "one" || snap.Size != 8<<20 || time.Since(snap.Created).Abs() > time.Hour {
		t.Errorf("%+v, %v", snap, err)
	}
	if _, err := s.CreateSnapshot(ctx, "one"); !errors.Is(err, backing.ErrExist) {
		t.Errorf("the same again: %v", err)
	}
	if _, err := s.CreateSnapshot(ctx, "a@b"); err == nil {
		t.Error("a@b is the name of a snapshot")
	}
	if err := s.WriteAt(ctx, make([]byte, len(block)), 1<<20); err != nil {
		t.Error(err)
	}
	where, err := s.Clone(ctx, "one", "copy")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Clone(ctx, "one", "copy"); !errors.Is(err, backing.ErrExist) {
		t.Errorf("a clone where one is: %v", err)
	}
	if _, err := s.Clone(ctx, "two", "copy2"); !errors.Is(err, backing.ErrNotExist) {
		t.Errorf("a clone of nothing: %v", err)
	}
	clone := c.mustOpen(t, where, backing.OpenOptions{Exclusive: true})
	holds(clone, 1<<20)
	clone.Close()
	snap := c.mustOpen(t, c.location("ns/image@one"), backing.OpenOptions{Exclusive: true})
	holds(snap, 1<<20)
	if err := snap.WriteAt(ctx, block, 0); !errors.Is(err, backing.ErrReadOnly) || !snap.Info().ReadOnly {
		t.Errorf("a snapshot was written: %v", err)
	}
	snap.Close()
	if err := s.DeleteSnapshot(ctx, "two"); !errors.Is(err, backing.ErrNotExist) {
		t.Errorf("deleting nothing: %v", err)
	}
	if err := s.DeleteSnapshot(ctx, "one"); err != nil && !errors.Is(err, backing.ErrBusy) {
		t.Errorf("deleting a snapshot with a clone: %v", err)
	}
	s.Close()

	c.rbd(t, "create", "plain", "--size", "8M", "--image-feature", "layering")
	if s, err := c.open(t, c.location("plain"), backing.OpenOptions{Exclusive: true}); err == nil {
		s.Close()
		t.Error("an image without a lock was opened as if it had one")
	} else if !strings.Contains(err.Error(), "rbd feature enable rbd/plain exclusive-lock") {
		t.Error(err)
	}
	s = c.mustOpen(t, c.location("plain")+"&lock=no", backing.OpenOptions{Exclusive: true})
	if at, err := s.CompareAndWrite(ctx, make([]byte, 512), block[:512], 512); err != nil || at != -1 {
		t.Errorf("compare and write of a sector: %d, %v", at, err)
	}
	if at, err := s.CompareAndWrite(ctx, make([]byte, 1024), block[:1024], 0); !errors.Is(err, backing.ErrNotSupported) {
		t.Errorf("compare and write of two sectors without a lock: %d, %v", at, err)
	}
	if caps := s.Capabilities(); caps&backing.CapExtents != 0 {
		t.Errorf("an image without an object map has %v", caps)
	}
	s.Close()

	if s, err := c.open(t, "rbd/plain?id=nobody&conf="+c.conf, backing.OpenOptions{}); err == nil {
		s.Close()
		t.Error("a client without a key was let in")
	} else if !strings.Contains(err.Error(), "client.nobody") || strings.Contains(err.Error(), "\n") {
		t.Error(err)
	}

	// With the cache what was acknowledged is not lost with the process.
	s = c.mustOpen(t, c.location("cached")+"&cache=yes", o)
	defer s.Close()
	for i := range int64(64) {
		if err := s.WriteAt(ctx, block, i*4096); err != nil {
			t.Fatal(err)
		}
	}
	syscall.Kill(s.PID(), syscall.SIGKILL)
	for i := range int64(64) {
		holds(s, i*4096)
	}
	if err := s.Flush(ctx); err != nil {
		t.Error(err)
	}
}

// Two gateways want one image. The second is told who has it; told to take it, it
// fences the first one off; one that was killed is not waited for.
func cephLocks(t *testing.T, c *ceph) {
	ctx := t.Context()
	c.rbd(t, "create", "locked", "--size", "64M")
	exclusive := backing.OpenOptions{Exclusive: true}
	a := c.mustOpen(t, c.location("locked"), exclusive)
	defer a.Close()
	first := a.PID()
	if err := a.WriteAt(ctx, []byte("first"), 0); err != nil {
		t.Fatal(err)
	}
	_, err := c.open(t, c.location("locked"), exclusive)
	if !errors.Is(err, backing.ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("blockgate on host %s, process %d", must(os.Hostname()), first)) {
		t.Errorf("a second gateway: %v; want busy, and by whom", err)
	}
	b := c.mustOpen(t, c.location("locked")+"&steal=yes", exclusive)
	second := b.PID()
	if err := b.WriteAt(ctx, []byte("second"), 0); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(c.ceph(t, "osd", "blocklist", "ls"), "127.0.0.1") {
		t.Error("the first one is not on the blocklist")
	}
	if err := a.WriteAt(ctx, []byte("third"), 0); !errors.Is(err, backing.ErrFailed) {
		t.Errorf("the fenced gateway wrote: %v", err)
	}
	eventually(t, 20*time.Second, "the fenced store has failed", func() bool { return a.Health().State == backing.Failed })
	if r := a.Health().Reason; !strings.Contains(r, "fenced by ") || !strings.Contains(r, fmt.Sprintf("process %d", second)) {
		t.Errorf("reason %q; want who has fenced it", r)
	}
	if a.PID() != 0 {
		t.Error("the fenced process is still there")
	}
	got := make([]byte, 6)
	if err := b.ReadAt(ctx, got, 0); err != nil || string(got) != "second" {
		t.Errorf("%q, %v", got, err)
	}

	// Killed, it comes back by itself, with a new client of the cluster.
	began := time.Now()
	syscall.Kill(b.PID(), syscall.SIGKILL)
	if err := b.WriteAt(ctx, []byte("fourth"), 0); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 20*time.Second || b.PID() == second {
		t.Errorf("process %d became %d in %v", second, b.PID(), took)
	}
	figure(t, "rbd: a write over the kill -9 of the plugin: %v", time.Since(began).Round(time.Millisecond))
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	// Given back in order it is free.
	d := c.mustOpen(t, c.location("locked"), exclusive)
	if err := d.ReadAt(ctx, got, 0); err != nil || string(got) != "fourth" {
		t.Errorf("%q, %v", got, err)
	}
	d.Close()
}

// A gateway on RBD, with tools of others: what QEMU does to disks, libiscsi's
// tests, sizes and snapshots, tgt's command line.
func TestRBDGateway(t *testing.T) {
	c := newCeph(t, "memstore")
	t.Run("QEMU", func(t *testing.T) {
		qemuChecks(t, serve(t, c.url("qemu"), "--size", "128M"), true)
	})
	t.Run("Conformance", func(t *testing.T) {
		e := serve(t, c.url("cu"), "--size", "1G")
		conform(t, e.process, "rbd", e.url, "SCSI.*")
	})
	t.Run("Changes", func(t *testing.T) { cephChanges(t, c) })
	t.Run("Tgt", func(t *testing.T) { cephTgt(t, c) })
	t.Run("Taken", func(t *testing.T) { cephTaken(t, c) })
}

// A load is written and read back through a gateway while the plugin and the OSD
// are killed and come back.
func TestRBDKills(t *testing.T) {
	c := newCeph(t, "bluestore")
	e := serve(t, c.url("load"), "--size", "64M")
	session, err := initiator.Dial(t.Context(), initiator.Config{Addrs: []string{e.addr()}, TargetName: e.iqn()})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	disk, err := session.Unit(0).OpenDisk(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var work sync.WaitGroup
	var done atomic.Int64
	var slowest atomic.Int64
	const workers, blocks = 8, 256
	for w := range workers {
		work.Go(func() {
			rng := rand.New(rand.NewPCG(7, uint64(w)))
			versions := make([]uint64, blocks)
			p, want := make([]byte, crashBlock), make([]byte, crashBlock)
			for ctx.Err() == nil {
				n := rng.IntN(blocks)
				block := n*workers + w
				off := int64(block) * crashBlock
				began := time.Now()
				if rng.IntN(2) == 0 || versions[n] == 0 {
					versions[n]++
					stamp(p, block, versions[n])
					if err := disk.WriteAt(context.Background(), p, off); err != nil {
						t.Errorf("write of block %d: %v", block, err)
						return
					}
				} else {
					stamp(want, block, versions[n])
					if err := disk.ReadAt(context.Background(), p, off); err != nil {
						t.Errorf("read of block %d: %v", block, err)
						return
					}
					if !bytes.Equal(p, want) {
						t.Errorf("block %d is not version %d", block, versions[n])
						return
					}
				}
				slowest.Store(max(slowest.Load(), int64(time.Since(began))))
				done.Add(1)
			}
			for n, v := range versions {
				block := n*workers + w
				if v == 0 {
					continue
				}
				stamp(want, block, v)
				if err := disk.ReadAt(context.Background(), p, int64(block)*crashBlock); err != nil || !bytes.Equal(p, want) {
					t.Errorf("in the end block %d is not version %d (%v)", block, v, err)
					return
				}
			}
		})
	}
	more := func(what string) {
		t.Helper()
		want := done.Load() + 300
		eventually(t, 2*time.Minute, what, func() bool { return done.Load() >= want || t.Failed() })
	}
	more("load")
	for range 3 {
		pids := plugins(t, e.pid())
		if len(pids) != 1 {
			t.Fatalf("plugin processes: %v", pids)
		}
		syscall.Kill(pids[0], syscall.SIGKILL)
		more("load after the plugin was killed")
	}
	var away []time.Duration
	for _, both := range []bool{false, true} {
		began := time.Now()
		c.osd.kill()
		if both {
			syscall.Kill(plugins(t, e.pid())[0], syscall.SIGKILL)
		}
		c.startOSD(t)
		away = append(away, time.Since(began).Round(100*time.Millisecond))
		more("load after the OSD was killed")
	}
	cancel()
	work.Wait()
	if !t.Failed() {
		figure(t, "rbd: %d verified I/Os over 4 kills of the plugin and 2 of the OSD: no error, the slowest took %v; the OSD was away for %v",
			done.Load(), time.Duration(slowest.Load()).Round(time.Millisecond), away)
	}
}

// cephChanges: what is changed by Ceph's tools is seen by us, and the reverse.
func cephChanges(t *testing.T, c *ceph) {
	d := newDaemon(t)
	d.start(t, "--listen", "127.0.0.1:0")
	d.cli(t, "volume", "create", "v", c.url("changes"), "--size", "64M")
	d.cli(t, "target", "create", crashIQN, "--volume", "v", "--allow", "all")
	url := fmt.Sprintf("iscsi://%s/%s/0", d.portal(t), crashIQN)
	size := func(want string) {
		t.Helper()
		eventually(t, 30*time.Second, "READ CAPACITY tells "+want, func() bool {
			return strings.Contains(run(t, 20*time.Second, "iscsi-readcapacity16", url).stdout, "Total size:"+want)
		})
	}
	size("67108864")
	c.rbd(t, "resize", "changes", "--size", "96M")
	size("100663296")
	qemuIO(t, url, "write -P 0x5a 95M 64k", "read -P 0x5a 95M 64k")
	d.cli(t, "volume", "resize", "v", "128M")
	size("134217728")
	if info := c.rbd(t, "info", "changes"); !strings.Contains(info, "128 MiB") {
		t.Errorf("the cluster has:\n%s", info)
	}

	d.cli(t, "snapshot", "create", "v", "before")
	if l := c.rbd(t, "snap", "ls", "changes"); !strings.Contains(l, "before") {
		t.Errorf("the cluster has the snapshots:\n%s", l)
	}
	qemuIO(t, url, "write -P 0x77 95M 64k")
	d.cli(t, "volume", "clone", "v@before", "copy")
	d.cli(t, "lun", "add", crashIQN, "copy", "--number", "1")
	clone := strings.TrimSuffix(url, "0") + "1"
	qemuIO(t, clone, "read -P 0x5a 95M 64k", "write -P 0x11 95M 64k", "read -P 0x11 95M 64k")
	qemuIO(t, url, "read -P 0x77 95M 64k")
	// A snapshot by itself is a disk that cannot be written.
	e := serve(t, c.url("changes@before"), "--read-only")
	if out := ok(t, time.Minute, "qemu-io", "-r", "-f", "raw", "-c", "read -P 0x5a 95M 64k", e.url); strings.Contains(out, "Pattern verification failed") {
		t.Errorf("the snapshot does not hold what it was taken of:\n%s", out)
	}
	e.kill()
	d.cli(t, "target", "delete", crashIQN, "--force")
	d.cli(t, "volume", "delete", "copy")
	c.rbd(t, "rm", "copy")
	d.cli(t, "snapshot", "delete", "v", "before")
	if l := c.rbd(t, "snap", "ls", "changes"); strings.Contains(l, "before") {
		t.Errorf("the cluster has the snapshots:\n%s", l)
	}
}

// tgt's own words for an RBD image.
func cephTgt(t *testing.T, c *ceph) {
	c.rbd(t, "create", "tgt", "--size", "64M")
	g := newTgt(t)
	g.start(t)
	g.adm(t, "--op", "new", "--mode", "target", "--tid", "1", "-T", tgtIQN)
	g.adm(t, "--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "--bstype", "rbd", "--backing-store", "tgt",
		"--bsopts", "conf="+c.conf+";id=tgt;cluster=ceph")
	g.adm(t, "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
	qemuIO(t, g.url(1), "write -P 0x42 1M 1M", "flush", "read -P 0x42 1M 1M")
	back := filepath.Join(t.TempDir(), "back")
	g.adm(t, "--op", "delete", "--mode", "logicalunit", "--tid", "1", "--lun", "1")
	c.rbd(t, "export", "tgt", back)
	if b := must(os.ReadFile(back)); len(b) != 64<<20 || b[1<<20] != 0x42 || b[2<<20-1] != 0x42 || b[2<<20] != 0 {
		t.Error("the cluster does not have what was written")
	}
}

// A volume that another gateway has taken fails, and is there again when it is
// opened again; a gateway that was killed has its volume back at once.
func cephTaken(t *testing.T, c *ceph) {
	d := newDaemon(t)
	port := freePort(t)
	d.start(t, "--listen", "127.0.0.1:"+port)
	d.cli(t, "volume", "create", "v", c.url("taken"), "--size", "64M")
	d.cli(t, "target", "create", crashIQN, "--volume", "v", "--allow", "all")
	url := fmt.Sprintf("iscsi://127.0.0.1:%s/%s/0", port, crashIQN)
	qemuIO(t, url, "write -P 0x01 1M 64k")

	d.kill()
	began := time.Now()
	d.start(t, "--listen", "127.0.0.1:"+port)
	qemuIO(t, url, "read -P 0x01 1M 64k", "write -P 0x02 1M 64k")
	figure(t, "rbd: back and written to %v after kill -9 of the gateway", time.Since(began).Round(time.Millisecond))

	thief := c.mustOpen(t, c.location("taken")+"&steal=yes", backing.OpenOptions{Exclusive: true})
	if err := thief.WriteAt(t.Context(), bytes.Repeat([]byte{3}, 64<<10), 2<<20); err != nil {
		t.Error(err)
	}
	run(t, 20*time.Second, "qemu-io", "-f", "raw", "-c", "write -P 0x04 2M 64k", url) // has to fail, which shows below
	eventually(t, 20*time.Second, "the volume has failed, and says by whom", func() bool {
		return strings.Contains(d.cli(t, "volume", "show", "v", "-o", "json"), fmt.Sprintf("process %d", thief.PID()))
	})
	if err := thief.Close(); err != nil {
		t.Error(err)
	}
	d.cli(t, "volume", "retry", "v")
	qemuIO(t, url, "read -P 0x02 1M 64k", "read -P 0x03 2M 64k", "write -P 0x05 3M 64k", "read -P 0x05 3M 64k")
}

// With a limit commands fail when the OSD is away for longer; nothing that was
// given up is done later, and the volume serves again when the OSD is back.
func TestRBDStallLimit(t *testing.T) {
	c := newCeph(t, "bluestore")
	const limit = 3 * time.Second
	s := c.mustOpen(t, c.location("limit"), backing.OpenOptions{Create: true, CreateSize: 64 << 20, Exclusive: true, Stall: limit})
	defer s.Close()
	ctx := t.Context()
	block := func(b byte) []byte { return bytes.Repeat([]byte{b}, 4096) }
	if err := s.WriteAt(ctx, block(1), 0); err != nil {
		t.Fatal(err)
	}
	first := s.PID()
	c.osd.kill()
	began := time.Now()
	err := s.WriteAt(ctx, block(2), 0)
	if took := time.Since(began); err == nil || took > limit+3*time.Second {
		t.Errorf("write without an OSD: %v after %v", err, took)
	}
	eventually(t, 20*time.Second, "the process that had the write has ended", func() bool { return s.PID() != first })
	c.startOSD(t)
	eventually(t, time.Minute, "writes are done again", func() bool { return s.WriteAt(ctx, block(3), 0) == nil })
	got := make([]byte, 4096)
	if err := s.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, block(3)) {
		t.Errorf("%v, %d", err, got[0])
	}
}
