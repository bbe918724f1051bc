package scsi

import (
	"context"
	"errors"
	"math"
	"math/bits"
	"time"

	"blockgate/backing"
	"blockgate/internal/bufpool"
)

// How a unit that refuses commands finds out that its store is back.
//
// What the store let go by itself tells so, whatever it was. But nothing may be
// inside any more, since it gave up, or what is inside may be lost for good. The
// unit then asks the store itself: it reads a block now and then, in the
// background, and refuses all commands until one such read was answered, by data
// or by an error. No initiator's command is spent on finding out, so that all of
// them are quick, also those of one that sends them one after the other.
//
// Reading is all that can be done to a medium that belongs to others. A store that
// answers reads and keeps writes (one that has run full, say) misleads it: the
// next write waits for its whole time again. Each time in a row that this happens
// the next read comes later.

// stallProbe is what the unit knows of its own reads. Under the unit's mutex.
type stallProbe struct {
	inside int           // reads that the store has
	last   time.Duration // stallWatch.clock when the latest began
	due    time.Duration // none before

	held   Access // what the command does that the store was found stalled by
	at     uint64 // its first block, to be read first; MaxUint64: none
	count  uint64 // blocks that were picked so far
	proved bool   // refusing ended by a read, and no command like held came back since
	misled uint   // how often in a row proved was wrong, at most maxMisled

	ctx  context.Context // of all reads; made by the first
	stop context.CancelFunc
}

// maxMisled bounds the time without a read to eight times StallPolicy.After.
const maxMisled = 3

// stalledBy: the store was found stalled by what became of t.
func (p *stallProbe) stalledBy(t *Task) {
	p.held, p.at = t.row.Access, math.MaxUint64
	if lba, n := t.blocks(); n > 0 {
		p.at = lba
	}
}

// begin is called when the unit begins to refuse commands.
func (p *stallProbe) begin(now, after time.Duration) {
	p.due = now
	if p.proved {
		p.misled = min(p.misled+1, maxMisled)
		p.due = now + after<<p.misled
	}
	p.proved, p.last = false, now-after
}

// cameBack: the store has let a command go by itself.
func (p *stallProbe) cameBack(t *Task) {
	if t.row.Access == p.held {
		p.proved, p.misled = false, 0
	}
}

// end has the reads given up, and no more begun with a context that lives.
func (p *stallProbe) end() {
	if p.stop != nil {
		p.stop()
	}
}

// pick is the block to read: where the store has stalled, then all over the medium.
func (p *stallProbe) pick(blocks uint64) uint64 {
	at := p.at
	p.at = math.MaxUint64
	if at < blocks {
		return at
	}
	// Multiples of the golden ratio's fraction: each falls far from all before.
	p.count++
	lba, _ := bits.Mul64(p.count*0x9e3779b97f4a7c15, blocks)
	return lba
}

// picks is how many blocks are looked at for one that is not in a cache, from
// which nothing is learned.
const picks = 8

// probeLocked has a block read if it is time to. A store that gives up is asked
// again each StallPolicy.After; beside a read that may be lost for good another one
// begins when the stall has become an eighth longer, so that there are never many.
// An engine that says itself that it does not answer will say when it does.
func (u *Unit) probeLocked(policy StallPolicy) {
	p, now := &u.stall.probe, u.stall.clock
	if !u.refusing() || u.closed || u.health.engine.State == backing.Stalled || now < p.due {
		return
	}
	pause := policy.After
	if p.inside > 0 {
		pause = max(pause, time.Since(u.health.stalledAt)/8)
	}
	if now-p.last < pause {
		return
	}
	if p.stop == nil {
		p.ctx, p.stop = context.WithCancel(context.Background())
	}
	var offs [picks]int64
	for i := range offs {
		offs[i] = int64(p.pick(u.Blocks()) << u.blockShift)
	}
	p.last = now
	p.inside++
	go u.probe(p.ctx, offs, policy.After)
}

// probe reads one of the blocks, and ends the refusing if the store answers.
func (u *Unit) probe(ctx context.Context, offs [picks]int64, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	buf := bufpool.Get(u.BlockSize())
	err := u.store.ReadAt(ctx, buf.B, u.uncached(buf.B, offs))
	bufpool.Put(buf)
	gaveUp := err != nil && ctx.Err() != nil || errors.Is(err, context.Canceled) || storeTimedOut(err)
	var change *healthChange
	u.mu.Lock()
	p := &u.stall.probe
	p.inside--
	if !gaveUp && u.refusing() {
		p.proved = true
		change = u.answeredLocked()
	}
	u.drainedLocked()
	u.mu.Unlock()
	u.tell(change)
}

// uncached is the first of the offsets whose block the store has not at hand; the
// last one if there is none.
func (u *Unit) uncached(buf []byte, offs [picks]int64) int64 {
	if r := u.caps.tryReader; r != nil {
		for _, off := range offs {
			if at, err := r.TryReadAt(buf, off); !at || err != nil {
				return off
			}
		}
		return offs[picks-1]
	}
	return offs[0]
}
