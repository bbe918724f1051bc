package outside

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"blockgate/iscsi/initiator"
)

const (
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
