package scsi

import "blockgate/backing"

// Reads and writes of a store that begins them by itself (backing.Starter) take
// neither a worker nor a goroutine: Task.Run gives them to the store, and the
// store's completion finishes the task. To the task set they are like tasks that
// a worker has: they count as inside the store, their wait is watched, and when
// aborted they keep their buffers, and writes their blocks, until the store has
// told their end (docs/adr/0002, 0012).

// Batch gathers what tasks have for such a store, so that the commands that have
// arrived together are begun together. It belongs to a transport's goroutine,
// which sets it in the tasks that it runs there and must call Start soon after,
// without waiting for anything in between. The zero value is ready.
type Batch struct {
	ios  [maxGather]*backing.IO
	n    int
	unit *Unit // of all of them
}

// maxGather is after how many the store begins, though more may follow: the medium
// works on them while the rest is looked at.
const maxGather = 32

// Start has the store begin what was gathered.
func (b *Batch) Start() {
	if b.n == 0 {
		return
	}
	u, n := b.unit, b.n
	b.unit, b.n = nil, 0
	u.caps.starter.Start(b.ios[:n])
}

func (b *Batch) add(t *Task) {
	if b.unit != t.unit {
		b.Start()
		b.unit = t.unit
	}
	b.ios[b.n] = &t.io.IO
	if b.n++; b.n == len(b.ios) {
		b.Start()
	}
}

// taskIO is the read or write of a task that the store carries out by itself.
type taskIO struct {
	backing.IO
	t      *Task
	access Access
	alone  [1]*backing.IO
}

// begins has the store carry the command out, if it is one that the store can
// begin. false: nothing happened.
func (t *Task) begins() bool {
	u := t.unit
	if u.caps.starter == nil || t.row.Begin == nil || !t.row.Begin(t) {
		return false
	}
	u.mu.Lock()
	switch {
	case t.state.Load()&flagAborted != 0:
		u.mu.Unlock()
		t.finish()
		return true
	case u.begun >= u.caps.depth:
		// The store has its fill. What waits for a worker can be taken back.
		u.mu.Unlock()
		t.io.IO = backing.IO{}
		return false
	}
	t.set.begun = true
	u.begun++
	u.enterLocked(t)
	u.mu.Unlock()
	if t.Batch != nil {
		t.Batch.add(t)
		return true
	}
	t.io.alone[0] = &t.io.IO
	u.caps.starter.Start(t.io.alone[:])
	return true
}

// setIO says what the store is to carry out.
func (t *Task) setIO(p []byte, off int64, a Access) {
	t.io.IO = backing.IO{Ctx: t.Context(), P: p, Off: off, Write: a == AccessWrite, Done: &t.io}
	t.io.t, t.io.access = t, a
}

// IODone implements backing.Completer.
func (i *taskIO) IODone(_ *backing.IO, err error) {
	t, off := i.t, i.Off
	i.IO, i.t = backing.IO{}, nil
	storeOK(t, err, i.access, off)
	t.finish()
}

// beginRead is read for a store that begins it by itself. Whatever is wrong with
// the CDB is left to read.
func beginRead(t *Task) bool {
	lba, nblocks := cdbBlocks(t.CDB)
	if checkTransfer(t, lba, nblocks) != nil {
		return false
	}
	p := t.AllocIn(int64(nblocks) * int64(t.unit.BlockSize()))
	if len(p) == 0 {
		return false
	}
	t.setIO(p, byteOffset(t.unit, lba), AccessRead)
	return true
}

// beginWrite is write for a store that begins it by itself, if it may stay in a
// cache.
func beginWrite(t *Task) bool {
	if durable(t) {
		return false
	}
	lba, nblocks := cdbBlocks(t.CDB)
	if checkRange(t.unit, lba, nblocks) != nil {
		return false
	}
	p, ok := wholeBlocks(t.unit, t.Out, t.OutLen)
	if !ok || len(p) == 0 {
		return false
	}
	t.setIO(p, byteOffset(t.unit, lba), AccessWrite)
	return true
}
