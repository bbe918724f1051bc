package client

import (
	"sync"
	"sync/atomic"

	"blockgate/internal/bufpool"
	"blockgate/nbd"
)

// journal keeps what the server has acknowledged and not yet flushed. A server
// may lose exactly that when it ends, and nothing in the protocol tells whether a
// server that is reached again is the one that was left; so after every lost
// connection it is written again before anything else is asked.
//
// Writes that overlap enter it in the order in which they were acknowledged, as
// their ranges are locked (rangelock.Lock), and leave it in that order.
type journal struct {
	limit int64 // bytes; 0: nothing is kept, only whether there was something

	mu      sync.Mutex
	epoch   uint64 // of the link whose answers count
	entries []entry
	first   uint64       // number of entries[0]
	bytes   atomic.Int64 // changed under mu
	chunk   *bufpool.Buf // the one that is filled
	used    int
	dirty   bool          // limit is 0 and something was written since the last flush
	unsure  int           // flushes under way that are of such
	room    chan struct{} // closed when there is room again; nil: nobody waits
}

// entry is one write, zeroing or trim.
type entry struct {
	cmd   nbd.Command
	flags nbd.CommandFlags
	off   int64
	n     int64
	data  []byte
	last  *bufpool.Buf // the chunk that data lies in, if no later entry does
}

const (
	chunkSize = 256 << 10
	entryCost = 96 // what an entry without data takes
)

// add takes note of what was acknowledged on the link of an epoch. It is not ok if
// that link is gone meanwhile: what it has acknowledged may be lost, and has to be
// sent again. half: it is time to flush.
func (j *journal) add(epoch uint64, e entry) (ok, half bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if epoch != j.epoch {
		return false, false
	}
	fua := e.flags&nbd.FlagFUA != 0
	if j.limit == 0 {
		j.dirty = j.dirty || !fua
		return true, false
	}
	if fua && len(j.entries) == 0 {
		return true, false // durable, and nothing that is written again could undo it
	}
	e.flags &^= nbd.FlagFUA
	if e.data != nil {
		e.data, e.last = j.keep(e.data)
	}
	j.entries = append(j.entries, e)
	j.bytes.Add(e.cost())
	return true, j.bytes.Load() >= j.limit/2
}

func (e *entry) cost() int64 { return int64(len(e.data)) + entryCost }

// keep copies data. A small one shares a chunk with its neighbours; own is the
// chunk of a large one.
func (j *journal) keep(data []byte) (kept []byte, own *bufpool.Buf) {
	if len(data) >= chunkSize/4 {
		b := bufpool.Get(len(data))
		copy(b.B, data)
		return b.B, b
	}
	if j.chunk != nil && j.used+len(data) > len(j.chunk.B) {
		j.seal()
	}
	if j.chunk == nil {
		j.chunk, j.used = bufpool.Get(chunkSize), 0
	}
	kept = j.chunk.B[j.used:][:len(data):len(data)]
	copy(kept, data)
	j.used += len(data)
	return kept, nil
}

// seal ends the chunk that is filled: it goes with the last entry that lies in it.
func (j *journal) seal() {
	for i := len(j.entries) - 1; i >= 0; i-- {
		e := &j.entries[i]
		if e.data != nil && e.last == nil {
			e.last = j.chunk
			j.chunk = nil
			return
		}
	}
	// No entry lies in it any more.
	bufpool.Put(j.chunk)
	j.chunk = nil
}

// mark is a place for flushed: everything that was added before. The flush that
// it is for is sent afterwards.
func (j *journal) mark() mark {
	j.mu.Lock()
	defer j.mu.Unlock()
	m := mark{at: j.first + uint64(len(j.entries)), dirty: j.dirty}
	if m.dirty {
		j.dirty = false
		j.unsure++
	}
	return m
}

type mark struct {
	at    uint64
	dirty bool // the flush is of something of which nothing is kept
}

// flushed drops what was added before the mark, if the link of this epoch, which
// has flushed, is still the last one. Otherwise it is kept for the next flush.
func (j *journal) flushed(epoch uint64, m mark) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if m.dirty {
		j.unsure--
	}
	if epoch != j.epoch || m.at <= j.first {
		return
	}
	j.drop(int(m.at - j.first))
	if j.room != nil && j.bytes.Load() < j.limit {
		close(j.room)
		j.room = nil
	}
}

// unflushed is flushed after a flush that did not succeed.
func (j *journal) unflushed(m mark) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if m.dirty {
		j.unsure--
		j.dirty = true
	}
}

func (j *journal) drop(n int) {
	for i := range j.entries[:n] {
		j.bytes.Add(-j.entries[i].cost())
		bufpool.Put(j.entries[i].last)
	}
	j.first += uint64(n)
	kept := copy(j.entries, j.entries[n:])
	clear(j.entries[kept:])
	j.entries = j.entries[:kept]
	if kept == 0 && j.chunk != nil {
		bufpool.Put(j.chunk)
		j.chunk = nil
		if cap(j.entries) > 4096 {
			j.entries = nil
		}
	}
}

// full is what a writer has to wait for before it writes; nil: nothing.
func (j *journal) full() <-chan struct{} {
	if j.limit == 0 || j.bytes.Load() < j.limit {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.bytes.Load() < j.limit {
		return nil
	}
	if j.room == nil {
		j.room = make(chan struct{})
	}
	return j.room
}

// begin makes the answers of all links so far worthless. It reports whether
// something is lost that is not kept. Until the next link is used nothing enters
// or leaves, so that who has called begin may read the entries.
func (j *journal) begin() (epoch uint64, lost bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.epoch++
	lost, j.dirty = j.dirty || j.unsure > 0, false
	return j.epoch, lost
}

// wake has those who wait for room look again.
func (j *journal) wake() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.room != nil {
		close(j.room)
		j.room = nil
	}
}

// close gives the memory back.
func (j *journal) close() {
	j.mu.Lock()
	j.epoch++
	j.drop(len(j.entries))
	j.mu.Unlock()
	j.wake()
}
