package server

import (
	"encoding/binary"
	"math"
	"time"

	"blockgate/internal/bufpool"
	"blockgate/nbd"
	"blockgate/scsi"
	"blockgate/scsi/sense"
)

// Opcodes of the commands that requests become (SBC-3).
const (
	opUnmap     = 0x42
	opRead16    = 0x88
	opWrite16   = 0x8a
	opPreFetch  = 0x90
	opSync16    = 0x91
	opWriteSame = 0x93
	opServiceIn = 0x9e

	saLBAStatus = 0x12

	cdbFUA = 0x08 // byte 1 of READ and WRITE
	wsNDOB = 0x01 // byte 1 of WRITE SAME: the block is zero
)

// statusExtents is how many extents are asked for at once.
const statusExtents = 512

// unitTask is a request's way through the device server: one command, or several
// one after the other. It stays with the Request and is used again.
type unitTask struct {
	s    *unitSession
	r    *Request
	task scsi.Task
	used bool // task is not as Reset leaves it

	cdb   [16]byte
	list  [24]byte // UNMAP's parameter list
	out   []byte
	in    int64
	loans scsi.Loans

	admitting bool          // in Admit: TaskDone comes back to us
	wait      chan struct{} // if not nil, TaskDone tells here
	joined    *bufpool.Buf  // what several READs have read
}

// extra: there is more to the request than its range.
func (t *unitTask) extra() bool {
	switch t.r.Type {
	case nbd.CmdTrim, nbd.CmdWriteZeroes:
		return t.r.Flags&(nbd.FlagFUA|nbd.FlagFastZero) != 0
	}
	return false
}

// unmaps: the request becomes UNMAP, which leaves zeroes behind (LBPRZ).
func (t *unitTask) unmaps(l scsi.Limits) bool {
	return l.Unmap > 0 && (t.r.Type == nbd.CmdTrim || t.r.Flags&nbd.FlagNoHole == 0)
}

// span is how many bytes one command does of the request.
func (t *unitTask) span(l scsi.Limits) uint64 {
	switch t.r.Type {
	case nbd.CmdRead, nbd.CmdWrite:
		return uint64(l.Transfer) &^ (1<<t.s.shift - 1)
	case nbd.CmdCache:
		return math.MaxUint32 << t.s.shift
	}
	if t.unmaps(l) {
		return min(l.Unmap, math.MaxUint32) << t.s.shift
	}
	return l.WriteSame << t.s.shift
}

// build makes the command for what the request asks for from done on, and returns
// how many bytes that is.
func (t *unitTask) build(done uint64) (n uint64) {
	r, s := t.r, t.s
	l := s.unit.Load().Limits()
	lba := (r.Offset + done) >> s.shift
	t.cdb = [16]byte{}
	t.out, t.in = nil, 0
	be := binary.BigEndian
	if r.Type == nbd.CmdFlush {
		t.cdb[0] = opSync16
		return 0
	}
	if r.Type == nbd.CmdBlockStatus {
		t.cdb[0], t.cdb[1] = opServiceIn, saLBAStatus
		k := int64(statusExtents)
		if r.Flags&nbd.FlagReqOne != 0 {
			k = 1
		}
		t.in = 8 + 16*k
		be.PutUint64(t.cdb[2:], lba)
		be.PutUint32(t.cdb[10:], uint32(t.in))
		return r.Length
	}
	n = min(r.Length-done, t.span(l))
	be.PutUint64(t.cdb[2:], lba)
	be.PutUint32(t.cdb[10:], uint32(n>>s.shift))
	switch r.Type {
	case nbd.CmdRead:
		t.cdb[0], t.in = opRead16, int64(n)
	case nbd.CmdWrite:
		t.cdb[0], t.out = opWrite16, r.Data[done:done+n]
		if r.Flags&nbd.FlagFUA != 0 {
			t.cdb[1] = cdbFUA
		}
	case nbd.CmdCache:
		t.cdb[0] = opPreFetch
	case nbd.CmdTrim, nbd.CmdWriteZeroes:
		if !t.unmaps(l) {
			t.cdb[0], t.cdb[1] = opWriteSame, wsNDOB
			break
		}
		t.cdb = [16]byte{opUnmap}
		be.PutUint16(t.cdb[7:], uint16(len(t.list)))
		t.list = [24]byte{}
		be.PutUint16(t.list[0:], uint16(len(t.list)-2))
		be.PutUint16(t.list[2:], 16)
		be.PutUint64(t.list[8:], lba)
		be.PutUint32(t.list[16:], uint32(n>>s.shift))
		t.out = t.list[:]
	}
	return n
}

// start gives the command to the device server. false: it is over already, and
// TaskDone will not come.
func (t *unitTask) start() bool {
	// Each unit attention is for somebody who keeps state about the unit; an NBD
	// client does not, and asks again at once. There are only so many kinds.
	for range 64 {
		if t.used {
			t.task.Reset()
		}
		t.used = true
		t.task.CDB, t.task.MaxIn, t.task.MaxOut = t.cdb[:], t.in, int64(len(t.out))
		t.task.Attr, t.task.Transport, t.task.Loans, t.task.Mapped = scsi.Simple, t, t.loans, true
		t.task.Batch = nil
		if t.wait == nil {
			t.task.Batch = &t.s.batch
		}
		if t.cdb[0] == opUnmap {
			t.task.CDB = t.cdb[:10]
		}
		if !t.admit() {
			if t.task.Status == scsi.CheckCondition && senseOf(&t.task).Key == sense.UnitAttention {
				continue
			}
			return false
		}
		if u := t.task.Unit(); u != t.s.unit.Load() {
			if u.BlockSize() != 1<<t.s.shift {
				// Its blocks are others now: what the client was told is wrong.
				gone := sense.LUNotSupported()
				t.task.Abandon(&gone)
				return true
			}
			t.s.unit.Store(u)
		}
		t.task.Out = t.out
		t.task.Run()
		return true
	}
	return false
}

func (t *unitTask) admit() bool {
	t.s.mu.Lock()
	if t.s.closed {
		t.s.mu.Unlock()
		t.task.Status = scsi.TaskAborted
		return false
	}
	t.admitting = true
	ok := t.s.nexus.Admit(&t.task)
	t.admitting = false
	t.s.mu.Unlock()
	return ok
}

// TaskDone implements scsi.Transport.
func (t *unitTask) TaskDone(*scsi.Task) {
	switch {
	case t.admitting: // start sees to it
	case t.wait != nil:
		t.wait <- struct{}{}
	default:
		t.done()
	}
}

var _ scsi.Answerer = (*unitTask)(nil)

// Answer implements scsi.Answerer: the unit's stall policy has an error for the
// client while the store has the command.
func (t *unitTask) Answer(*scsi.Task, scsi.Status, []byte) {
	t.r.Answer(nbd.EIO, "the store does not answer")
}

// done ends a request that is one command, or hands it on to be tried again.
func (t *unitTask) done() {
	o := t.outcome()
	if o.again {
		go t.slow(o)
		return
	}
	if o.err == nbd.None {
		t.take()
	}
	t.r.Done(o.err, o.why)
}

// take gives the request what its only command has read.
func (t *unitTask) take() {
	switch t.r.Type {
	case nbd.CmdRead:
		t.r.In, t.r.Lent = t.task.In, t.task.Lent()
	case nbd.CmdBlockStatus:
		t.extents(t.task.In)
	}
}

// extents reads the parameter data of GET LBA STATUS (SBC-3 §5.4.2).
func (t *unitTask) extents(p []byte) {
	if len(p) < 8 {
		return
	}
	for p = p[8:]; len(p) >= 16; p = p[16:] {
		e := nbd.Extent{Length: uint64(binary.BigEndian.Uint32(p[8:])) << t.s.shift}
		if p[12]&0x0f == 1 { // deallocated
			e.Flags = nbd.StateHole | nbd.StateZero
		}
		t.r.Extents = append(t.r.Extents, e)
	}
}

// outcome is what a command's end means to the client.
type outcome struct {
	err   nbd.Errno
	why   string
	again bool // it should be tried again,
	soon  bool // at once
}

// sensed is the part of sense data that decides.
type sensed struct {
	sense.Key
	asc, ascq byte
}

// senseOf reads fixed and descriptor format (SPC-4 §4.5).
func senseOf(t *scsi.Task) sensed {
	switch p := t.Sense; {
	case len(p) >= 14 && p[0]&0x7e == 0x70:
		return sensed{sense.Key(p[2] & 0x0f), p[12], p[13]}
	case len(p) >= 4 && p[0]&0x7e == 0x72:
		return sensed{sense.Key(p[1] & 0x0f), p[2], p[3]}
	}
	return sensed{Key: sense.HardwareError}
}

func (t *unitTask) outcome() outcome {
	if t.r.answered {
		return outcome{err: nbd.EIO}
	}
	if t.task.Aborted() {
		return outcome{again: true, soon: true}
	}
	switch t.task.Status {
	case scsi.Good, scsi.ConditionMet:
		return outcome{}
	case scsi.ReservationConflict:
		return outcome{err: nbd.EPERM, why: "reservation conflict"}
	case scsi.Busy, scsi.TaskSetFull:
		return outcome{again: true}
	case scsi.TaskAborted:
		return outcome{again: true, soon: true}
	}
	switch k := senseOf(&t.task); k.Key {
	case sense.NotReady:
		if k.asc == 0x04 && (k.ascq == 0x01 || k.ascq == 0x0a) {
			return outcome{err: nbd.EIO, why: "the unit is becoming ready", again: true}
		}
		return outcome{err: nbd.EIO, why: "the unit is not ready"}
	case sense.IllegalRequest:
		switch {
		case k.asc == 0x25:
			return outcome{err: nbd.ESHUTDOWN, why: "the volume was taken away"}
		case k.asc == 0x21 && (t.r.Type == nbd.CmdWrite || t.r.Type == nbd.CmdWriteZeroes):
			return outcome{err: nbd.ENOSPC, why: "behind the end of the volume"}
		}
		return outcome{err: nbd.EINVAL, why: "the unit refused the command"}
	case sense.DataProtect:
		if k.asc == 0x27 && k.ascq == 0x07 {
			return outcome{err: nbd.ENOSPC, why: "no space left behind the volume"}
		}
		return outcome{err: nbd.EPERM, why: "the volume is write-protected"}
	case sense.VolumeOverflow:
		return outcome{err: nbd.ENOSPC}
	case sense.AbortedCommand, sense.UnitAttention:
		if k.asc == 0x08 { // logical unit communication time-out
			return outcome{err: nbd.EIO, why: "the store does not answer"}
		}
		return outcome{err: nbd.EIO, why: "aborted", again: true, soon: true}
	case sense.MediumError:
		return outcome{err: nbd.EIO, why: "medium error"}
	}
	return outcome{err: nbd.EIO, why: "the unit failed"}
}

// Patience of the slow way. What waits for others' commands or for a unit waits
// as an initiator does that sends again.
const (
	maxAborts    = 16
	firstPause   = time.Millisecond
	longestPause = time.Second
	// readyWait is how long a unit may become ready, or stay in transition between
	// access states.
	readyWait = 60 * time.Second
)

// slow runs the request's commands one after the other, and those again that are
// to be tried again. failed is how the first one has ended already, if it has.
func (t *unitTask) slow(failed outcome) {
	r := t.r
	if r.Flags&nbd.FlagFastZero != 0 && (!t.s.export.FastZeroes || r.Flags&nbd.FlagNoHole != 0) {
		r.Done(nbd.ENOTSUP, "zeroing is not faster than writing here")
		return
	}
	t.loans = nil
	t.wait = make(chan struct{}, 1)
	o := outcome{}
	for done := uint64(0); ; {
		n := t.build(done)
		if o = t.persist(failed); o.err != nbd.None {
			break
		}
		failed = outcome{}
		if r.Type == nbd.CmdRead && n < r.Length {
			if t.joined == nil {
				t.joined = bufpool.Get(int(r.Length))
			}
			copy(t.joined.B[done:], t.task.In)
		}
		if done += n; done >= r.Length {
			break
		}
	}
	if o.err == nbd.None && r.Flags&nbd.FlagFUA != 0 && (r.Type == nbd.CmdTrim || r.Type == nbd.CmdWriteZeroes) {
		t.cdb, t.out, t.in = [16]byte{opSync16}, nil, 0
		o = t.persist(outcome{})
	}
	t.wait = nil
	switch {
	case o.err != nbd.None:
		t.dropJoined()
	case t.joined != nil:
		r.In = t.joined.B
	default:
		t.take()
	}
	r.Done(o.err, o.why)
}

func (t *unitTask) dropJoined() {
	bufpool.Put(t.joined)
	t.joined = nil
}

// persist runs the command that was built until it has an end. before is how it has
// ended already, to be tried again, if it has.
func (t *unitTask) persist(before outcome) outcome {
	pause, aborts, began := firstPause, 0, time.Now()
	for {
		o := before
		before = outcome{}
		if !o.again {
			if t.start() {
				<-t.wait
			}
			o = t.outcome()
		}
		if !o.again {
			return o
		}
		if o.soon {
			if aborts++; aborts > maxAborts {
				return outcome{err: nbd.EIO, why: "aborted again and again"}
			}
		} else if o.err != nbd.None && time.Since(began) > readyWait {
			return o
		}
		if !t.sleep(pause) {
			return outcome{err: nbd.ESHUTDOWN, why: "the connection is being closed"}
		}
		pause = min(2*pause, longestPause)
	}
}

// sleep waits; false: the session has ended.
func (t *unitTask) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-t.s.ctx.Done():
		return false
	}
}
