package outside

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"blockgate/internal/state"
	"blockgate/iscsi/initiator"
)

const (
	crashIQN = "iqn.2025-01.io.blockgate.test:crash"
	// LUNs: written under a reservation that never changes, and quarrelled over.
	loadLUN, quarrelLUN = 0, 1
	loadNode            = 100
	loadKey             = 0x10ad
)

// holdLoad makes the session the one that may write.
func holdLoad(t *testing.T, s *initiator.Session) {
	t.Helper()
	ctx := context.Background()
	if err := reserveOut(ctx, s, loadLUN, prRegister, 0, 0, loadKey); err != nil {
		t.Fatal(err)
	}
	if err := reserveOut(ctx, s, loadLUN, prReserve, writeExclusive, loadKey, 0); err != nil {
		t.Fatal(err)
	}
}

// checkLoad tells whether that is so still.
func checkLoad(ctx context.Context, s *initiator.Session, cfg initiator.Config) error {
	want := reservations{keys: map[string]uint64{nodeName(loadNode): loadKey}, holder: nodeName(loadNode), typ: writeExclusive}
	got, err := readReservations(ctx, s, loadLUN)
	if err != nil {
		return err
	}
	if !got.equal(want) {
		return fmt.Errorf("the load's reservation is %+v, was %+v", got, want)
	}
	other, err := initiator.Dial(ctx, node(cfg, loadNode+1))
	if err != nil {
		return err
	}
	defer other.Close()
	err = execute(ctx, other, &initiator.Command{LUN: initiator.LUN(loadLUN), Out: make([]byte, sectorSize), CDB: []byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}})
	if !isConflict(err) {
		return fmt.Errorf("a stranger's write was answered with %v, not RESERVATION CONFLICT", err)
	}
	return nil
}

// kill -9 under load and in the middle of a cluster that quarrels over a unit:
// nothing that was flushed is lost, neither is any object that was made, and
// reservations are as they were.
func TestCrash(t *testing.T) {
	d := newDaemon(t)
	rounds, until := 3, time.Now()
	if os.Getenv("BLOCKGATE_OUTSIDE") == "all" {
		rounds = 30
	}
	if s := os.Getenv("BLOCKGATE_SOAK_SECONDS"); os.Getenv("BLOCKGATE_OUTSIDE") == "soak" {
		seconds, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("BLOCKGATE_SOAK_SECONDS=%q: %v", s, err)
		}
		rounds, until = 50, until.Add(time.Duration(seconds)*time.Second)
	}
	listen := "127.0.0.1:" + freePort(t)
	cfg := initiator.Config{Addrs: []string{listen}, TargetName: crashIQN}
	d.start(t, "--listen", listen)
	d.cli(t, "volume", "create", "disk", filepath.Join(d.dir, "disk.img"), "--size", "64M")
	d.cli(t, "target", "create", crashIQN, "--volume", "disk", "--allow", "all")
	d.cli(t, "volume", "create", "shared", filepath.Join(d.dir, "shared.img"), "--size", "1M")
	d.cli(t, "lun", "add", crashIQN, "shared", "--number", fmt.Sprint(quarrelLUN))
	cluster := newQuarrel(cfg, quarrelLUN, 4)

	var book ledger
	// Volumes v<gone> to v<made-1> exist for certain; the oldest go, so that hours
	// of this do not fill the state.
	var made, gone int
	var slowest time.Duration
	total := int64(0)
	ctx := context.Background()
	open := func() (*initiator.Session, *initiator.Disk) {
		t.Helper()
		s, err := initiator.Dial(ctx, node(cfg, loadNode))
		if err != nil {
			t.Fatal(err)
		}
		disk, err := s.Unit(loadLUN).OpenDisk(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return s, disk
	}
	n := 0
	for ; n < rounds || time.Now().Before(until); n++ {
		seed := uint64(time.Now().UnixNano())
		session, disk := open()
		if n == 0 {
			holdLoad(t, session)
		}
		nodes, err := cluster.dial(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var quarrelled error
		var writes atomic.Int64
		var ended sync.WaitGroup
		for w := range crashWriters {
			ended.Go(func() { book.load(disk, w, seed, &writes) })
		}
		ended.Go(func() { quarrelled = cluster.run(ctx, nodes, rand.New(rand.NewPCG(seed, 2))) })
		ended.Go(func() {
			for { // ends with the daemon
				if _, err := d.api.CreateVolume(ctx, state.Volume{Name: fmt.Sprintf("v%d", made), URL: "null:1M"}); err != nil {
					return
				}
				made++
				if made-gone > 500 {
					if _, err := d.api.DeleteVolume(ctx, fmt.Sprintf("v%d", gone), false); err != nil {
						return
					}
					gone++
				}
			}
		})
		enough := 200 + rand.New(rand.NewPCG(seed, 1)).Int64N(3000)
		eventually(t, time.Minute, "enough writes", func() bool { return writes.Load() >= enough })
		d.kill()
		ended.Wait()
		session.Close()
		total += writes.Load()
		if quarrelled != nil {
			t.Fatalf("round %d (seed %d): before the crash: %v", n, seed, quarrelled)
		}

		start := time.Now()
		d.start(t, "--listen", listen)
		session, disk = open()
		slowest = max(slowest, time.Since(start))
		if err := errors.Join(checkLoad(ctx, session, cfg), cluster.check(ctx)); err != nil {
			t.Fatalf("round %d (seed %d): after the crash: %v", n, seed, err)
		}
		p := make([]byte, crashBlock)
		for b := range crashBlocks {
			if err := disk.ReadAt(ctx, p, int64(b)*crashBlock); err != nil {
				t.Fatal(err)
			}
			if err := book.check(p, b); err != nil {
				t.Fatalf("round %d (seed %d): %v", n, seed, err)
			}
		}
		session.Close()
		list, err := d.api.Volumes(ctx)
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]bool{}
		for _, v := range list {
			have[v.Name] = true
		}
		// An operation whose answer was lost may have been done or not.
		for have[fmt.Sprintf("v%d", made)] {
			made++
		}
		if gone < made && !have[fmt.Sprintf("v%d", gone)] {
			gone++
		}
		for i := range made {
			if name := fmt.Sprintf("v%d", i); have[name] != (i >= gone) {
				t.Fatalf("round %d: of the volumes v%d to v%d that exist, %s: there %v", n, gone, made-1, name, have[name])
			}
		}
		if t.Failed() {
			return
		}
	}
	var flushed int
	for b := range crashBlocks {
		if book.flushed[b] > 0 {
			flushed++
		}
	}
	if flushed == 0 || made == 0 || cluster.changes == 0 {
		t.Errorf("nothing was at stake: %d flushed blocks, %d volumes, %d changes of reservations", flushed, made, cluster.changes)
	}
	figure(t, "%d times kill -9 after %d writes (%d blocks flushed), %d objects made and %d changes of reservations: nothing lost; back in at most %v",
		n, total, flushed, made, cluster.changes, slowest.Round(time.Millisecond))
}
