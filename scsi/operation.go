package scsi

import (
	"context"
	"errors"
	"math"
	"sync/atomic"
	"time"

	"blockgate/backing"
	"blockgate/internal/bufpool"
	"blockgate/scsi/sense"
)

// operation is work on the whole medium that goes on in the background, whatever
// becomes of the command that began it: a sanitize or a format operation. While
// it runs commands other than those that only ask about the unit get NOT READY
// with its progress. Resets, aborts and the loss of the nexus do not end it
// (SBC-3 §4.11.2); closing the unit does.
type operation struct {
	sanitize bool // or format
	total    int64
	done     atomic.Int64 // bytes of total
	cancel   context.CancelFunc
	ended    chan struct{}
	err      error // valid once ended is closed
}

// defaultOverwriteRate bounds how fast a background operation writes, in bytes a
// second. It is no hurry and has no queue that would hold it back, and units
// that share the medium would feel it as a flood.
const defaultOverwriteRate = 160 << 20

// unitOutOfService are the flags for which a task that was admitted earlier has
// to be looked at once more before it runs.
const unitOutOfService = unitOperating | unitSanitizeFailed

// duringOperation reports whether the command is carried out during an operation
// and after one that failed.
func (c *Command) duringOperation() bool { return c.NoUA || c.Op == opMaintenanceIn }

// outOfService gives the sense data for a command that the unit does not carry
// out because of an operation; flags are the unit's.
func (u *Unit) outOfService(c *Command, flags uint32) (sense.Sense, bool) {
	switch {
	case flags&unitOutOfService == 0, c.duringOperation():
		return sense.Sense{}, false
	case flags&unitOperating != 0:
		return u.progress(), true
	case c.Op == opSanitize:
		return sense.Sense{}, false
	}
	return sense.SanitizeFailed(), true
}

// progress is what there is to say while an operation runs.
func (u *Unit) progress() sense.Sense {
	op := u.operation.Load()
	if op == nil {
		return sense.NotReadyBecoming() // it has ended since
	}
	p := uint16(min(float64(op.done.Load())/float64(max(op.total, 1))*65536, math.MaxUint16))
	if op.sanitize {
		return sense.SanitizeInProgress(p)
	}
	return sense.FormatInProgress(p)
}

// late ends a task that was admitted before an operation began and would run now.
func (t *Task) late() bool {
	flags := t.unit.flags.Load()
	if flags&unitOutOfService == 0 {
		return false
	}
	s, out := t.unit.outOfService(t.row, flags)
	if out {
		t.Fail(s)
	}
	return out
}

// begin starts an operation. The task that asks is exclusive over the whole
// medium, so that no other is in the store, and those that come later find the
// flag. It fails if the unit is being closed.
func (u *Unit) begin(op *operation, work func(context.Context) error) bool {
	ctx, cancel := context.WithCancel(context.Background())
	op.cancel, op.ended = cancel, make(chan struct{})
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		cancel()
		return false
	}
	u.operation.Store(op)
	u.setFlag(unitOperating, true)
	go func() {
		defer cancel()
		op.err = work(ctx)
		u.mu.Lock()
		defer u.mu.Unlock()
		if op.sanitize {
			u.setFlag(unitSanitizeFailed, op.err != nil)
		}
		u.setFlag(unitOperating, false)
		u.operation.Store(nil)
		close(op.ended)
		u.allocationChangedLocked()
		u.drainedLocked()
	}()
	return true
}

// await waits for the operation, unless the initiator wants to be told at once
// that it has begun. Then, and when the task is aborted, it goes on by itself.
func (t *Task) await(op *operation, immed bool, failed sense.Sense) {
	if immed {
		return
	}
	select {
	case <-t.Context().Done():
		t.Fail(sense.CommandAborted())
	case <-op.ended:
		if op.err != nil {
			t.Fail(failed)
		}
	}
}

// overwrite writes p over the first n bytes of the store, repeated from the
// beginning of each block, and makes that durable.
func (u *Unit) overwrite(ctx context.Context, op *operation, p []byte, n int64) error {
	buf := pieceBuf(u, n)
	defer bufpool.Put(buf)
	bs := u.BlockSize()
	for i := 0; i < len(buf.B); i += bs {
		for b := buf.B[i : i+bs]; len(b) > 0; {
			b = b[copy(b, p):]
		}
	}
	rate := u.cfg.Load().OverwriteRate
	if rate == 0 {
		rate = defaultOverwriteRate
	}
	begin := time.Now()
	for off := int64(0); off < n; {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := min(n-off, int64(len(buf.B)))
		if err := u.store.WriteAt(ctx, buf.B[:k], off); err != nil {
			return err
		}
		off += k
		op.done.Add(k)
		if rate > 0 {
			due := time.Duration(float64(off) / float64(rate) * float64(time.Second))
			if err := sleep(ctx, due-time.Since(begin)); err != nil {
				return err
			}
		}
	}
	return u.store.Flush(ctx)
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// erase deallocates the first n bytes of the store, or makes them zero as best it
// can, and makes that durable.
func (u *Unit) erase(ctx context.Context, op *operation, n int64) error {
	var ways []func(off, n int64) error
	if d := u.caps.discarder; d != nil {
		ways = append(ways, func(off, n int64) error { return d.Discard(ctx, off, n) })
	}
	if z := u.caps.zeroWriter; z != nil {
		ways = append(ways, func(off, n int64) error { return z.WriteZeroes(ctx, off, n, true) })
	}
	off := int64(0)
	for _, way := range ways {
		for off < n {
			if err := ctx.Err(); err != nil {
				return err
			}
			k := min(n-off, unmapPieceBytes)
			err := way(off, k)
			if errors.Is(err, backing.ErrNotSupported) {
				break
			}
			if err != nil {
				return err
			}
			off += k
			op.done.Add(k)
		}
	}
	if off < n {
		op.done.Store(0)
		return u.overwrite(ctx, op, []byte{0}, n)
	}
	return u.store.Flush(ctx)
}
