package outside

import (
	"context"
	"encoding/binary"
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
	crashIQN     = "iqn.2025-01.io.blockgate.test:crash"
	crashBlock   = 4096
	crashBlocks  = 512
	crashWriters = 8
	sectorSize   = 512
)

// ledger knows what a block may hold: its versions count up, each sector
// carries the number of its block and the version.
type ledger struct {
	mu      sync.Mutex
	issued  [crashBlocks]uint64 // last version sent
	acked   [crashBlocks]uint64 // last version answered GOOD
	flushed [crashBlocks]uint64 // last version answered before a flush that was answered GOOD
}

func stamp(p []byte, block int, version uint64) {
	for at := 0; at < len(p); at += sectorSize {
		binary.BigEndian.PutUint64(p[at:], uint64(block))
		binary.BigEndian.PutUint64(p[at+8:], version)
		for i := at + 16; i < at+sectorSize; i++ {
			p[i] = byte(version) ^ byte(i)
		}
	}
}

// check compares a block read back: each sector holds one whole version, not
// older than the flushed one and not newer than the last one sent.
func (l *ledger) check(p []byte, block int) error {
	var want [sectorSize]byte
	for at := 0; at < len(p); at += sectorSize {
		version := binary.BigEndian.Uint64(p[at+8:])
		if version == 0 && l.flushed[block] == 0 {
			if string(p[at:at+sectorSize]) != string(make([]byte, sectorSize)) {
				return fmt.Errorf("block %d, byte %d: neither empty nor written", block, at)
			}
			continue
		}
		if version < l.flushed[block] || version > l.issued[block] {
			return fmt.Errorf("block %d, byte %d: version %d; flushed was %d, acknowledged %d, sent %d",
				block, at, version, l.flushed[block], l.acked[block], l.issued[block])
		}
		stamp(want[:], block, version)
		if string(p[at:at+sectorSize]) != string(want[:]) {
			return fmt.Errorf("block %d, byte %d: not what version %d was", block, at, version)
		}
	}
	return nil
}

// load writes until the target goes away; every 16 writes a writer flushes.
func (l *ledger) load(disk *initiator.Disk, writer int, seed uint64, writes *atomic.Int64) error {
	rng := rand.New(rand.NewPCG(seed, uint64(writer)))
	p := make([]byte, crashBlock)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for {
		for range 16 {
			block := rng.IntN(crashBlocks/crashWriters)*crashWriters + writer
			l.mu.Lock()
			l.issued[block]++
			version := l.issued[block]
			l.mu.Unlock()
			stamp(p, block, version)
			if err := disk.WriteAt(ctx, p, int64(block)*crashBlock); err != nil {
				return err
			}
			l.mu.Lock()
			l.acked[block] = version
			l.mu.Unlock()
			writes.Add(1)
		}
		l.mu.Lock()
		before := l.acked
		l.mu.Unlock()
		if err := disk.Flush(ctx); err != nil {
			return err
		}
		l.mu.Lock()
		for b := writer; b < crashBlocks; b += crashWriters {
			l.flushed[b] = before[b]
		}
		l.mu.Unlock()
	}
}

// kill -9 under load: nothing that was flushed is lost, and neither is any
// object that was made.
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
		rounds, until = 1, until.Add(time.Duration(seconds)*time.Second)
	}
	listen := "127.0.0.1:" + freePort(t)
	cfg := initiator.Config{Addrs: []string{listen}, TargetName: crashIQN}
	d.start(t, "--listen", listen)
	d.cli(t, "volume", "create", "disk", filepath.Join(d.dir, "disk.img"), "--size", "64M")
	d.cli(t, "target", "create", crashIQN, "--volume", "disk", "--allow", "all")

	var book ledger
	// Volumes v<gone> to v<made-1> exist for certain; the oldest go, so that hours
	// of this do not fill the state.
	var made, gone int
	var slowest time.Duration
	total := int64(0)
	ctx := context.Background()
	open := func() (*initiator.Session, *initiator.Disk) {
		t.Helper()
		s, err := initiator.Dial(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		disk, err := s.Unit(0).OpenDisk(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return s, disk
	}
	n := 0
	for ; n < rounds || time.Now().Before(until); n++ {
		seed := uint64(time.Now().UnixNano())
		session, disk := open()
		var writes atomic.Int64
		var ended sync.WaitGroup
		for w := range crashWriters {
			ended.Go(func() { book.load(disk, w, seed, &writes) })
		}
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

		start := time.Now()
		d.start(t, "--listen", listen)
		session, disk = open()
		slowest = max(slowest, time.Since(start))
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
	if flushed == 0 || made == 0 {
		t.Errorf("nothing was at stake: %d flushed blocks, %d volumes", flushed, made)
	}
	figure(t, "%d times kill -9 after %d writes (%d blocks flushed) and %d objects made: nothing lost; back in at most %v",
		n, total, flushed, made, slowest.Round(time.Millisecond))
}
