package iscsi

import (
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"blockgate/internal/bufpool"
	"blockgate/scsi"
)

// outKind is what an outItem turns into.
type outKind uint8

const (
	outStatus outKind = iota // a command's data-in and status
	outR2T
	outPDU  // a PDU that was made ready, which takes a StatSN
	outPing // NOP-In with a reserved tag: takes no StatSN
)

// outItem is something to send, in the order in which it was queued. Numbers
// that depend on the order (StatSN, the command window) are filled in when it
// is sent.
type outItem struct {
	kind outKind
	cmd  *command
	pdu  *reply
	// R2T
	lun          uint64
	itt, ttt, sn uint32
	off, len     uint32
}

// reply is a PDU other than SCSI data, status and R2T.
type reply struct {
	bhs  BHS
	data []byte
	// after, if set, runs when the PDU has been handed to the transport. It does
	// not run when the connection breaks before.
	after    func()
	last     bool // nothing follows it on the connection
	numbered bool // answers a numbered command: its window place is given back
}

// tx is the sender's state, owned by whoever is between BeginSend and the nil
// from Gather.
type tx struct {
	statSN  uint32
	pending []outItem // taken from outq
	next    int       // first of pending that is not sent completely
	sentTo  int       // first of pending whose memory is not given back yet
	batch   *batch    // what arena and iov are of; nil while nothing is sent
	arena   []byte    // headers, digests and padding of one batch; never grows past its capacity
	iov     [][]byte
	bytes   int
	stage   *bufpool.Buf // of vectors that were on loan
	started atomic.Int64 // when the batch went to the transport, since TargetConn.born; 0: none is there
}

// batch is the memory that sending needs.
type batch struct {
	arena [arenaSize]byte
	iov   [batchIOV + 8][]byte
	lent  [batchIOV + 8]*scsi.Task // iov[i] is this one's, on loan
}

// batches are shared by all connections: one that is idle holds none.
var batches = sync.Pool{New: func() any { return new(batch) }}

// takeBatch readies the sender's memory.
func (x *tx) takeBatch() {
	if x.batch == nil {
		x.batch = batches.Get().(*batch)
	}
	x.dropStage()
	clear(x.batch.lent[:len(x.iov)])
	x.arena, x.iov, x.bytes = x.batch.arena[:0], x.batch.iov[:0], 0
}

func (x *tx) dropStage() {
	bufpool.Put(x.stage)
	x.stage = nil
}

// putBatch gives it back, before the right to send is.
func (x *tx) putBatch() {
	if x.batch != nil {
		x.dropStage()
		clear(x.batch.iov[:len(x.iov)])
		clear(x.batch.lent[:len(x.iov)])
		batches.Put(x.batch)
		x.batch, x.arena, x.iov = nil, nil, nil
	}
}

// Bounds of one batch.
const (
	batchBytes = 1 << 20
	batchIOV   = 960 // below IOV_MAX, with room for one item's parts
	arenaSize  = 48 << 10
)

// cost is what the item counts for in maxQueued.
func (it *outItem) cost() int64 {
	if it.pdu != nil {
		return itemCost + int64(len(it.pdu.data))
	}
	return itemCost
}

// queue adds an item to what is to be sent.
func (c *TargetConn) queue(it outItem) {
	c.mu.Lock()
	c.queueLocked(it)
}

// queueLocked is queue for a caller that holds mu, which is unlocked.
func (c *TargetConn) queueLocked(it outItem) {
	if c.closed || c.logoutSent {
		c.mu.Unlock()
		c.discard(&it)
		return
	}
	c.outq = append(c.outq, it)
	c.queued.Add(it.cost())
	if it.pdu != nil && it.pdu.last {
		c.logoutSent = true
	}
	wake := !c.feeding && !c.sending
	c.mu.Unlock()
	if wake {
		c.host.Wake()
	}
}

// EndFeed tells that the reader is done with what it had: what is queued from
// now on wakes the host. The reader then sends what is there: if EndFeed reports
// true it has the right to send already, as after BeginSend; otherwise it asks
// for it.
func (c *TargetConn) EndFeed() (send bool) {
	c.batch.Start()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.feeding = false
	if !c.loans.mine {
		return false
	}
	c.loans.mine = false
	if len(c.outq) == 0 {
		c.sending = false
		c.room.Broadcast()
		return false
	}
	return true
}

// WaitRoom waits while more replies are queued than a peer that reads would
// leave; it returns at once when the connection is closed.
func (c *TargetConn) WaitRoom() {
	c.mu.Lock()
	for c.queued.Load() > maxQueued && c.sending && !c.closed {
		c.room.Wait()
	}
	c.mu.Unlock()
}

// BeginSend asks for the right to send. It reports false when there is nothing
// to send or somebody else is sending, who will then send it all. After true,
// call Gather until it returns nil.
func (c *TargetConn) BeginSend() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sending || len(c.outq) == 0 || c.dropped.Load() {
		return false
	}
	c.sending = true
	return true
}

// Progress tells that the peer takes what is sent to it: Stalled begins anew.
// Safe for concurrent use.
func (c *TargetConn) Progress() {
	if t := c.tx.started.Load(); t != 0 {
		// Not over the end of the batch, which somebody else may have found.
		c.tx.started.CompareAndSwap(t, max(int64(time.Since(c.born)), 1))
	}
}

// Gather returns the next batch of bytes to send, as vectors that stay valid and
// unchanged until the next call, or nil when all is sent, which also ends the
// right to send. Calling it means that the previous batch is with the transport.
// On a connection that is dropped nothing is sent: what was begun may be
// unfinished.
func (c *TargetConn) Gather() [][]byte {
	x := &c.tx
	x.started.Store(0)
	c.giveBack()
	if c.dropped.Load() {
		c.endSend()
		return nil
	}
	x.takeBatch()
	for {
		if x.next == len(x.pending) {
			if len(x.iov) > 0 {
				break
			}
			if !c.refill() {
				return nil
			}
		}
		for x.next < len(x.pending) && c.emit(&x.pending[x.next]) {
			x.next++
		}
		if x.next < len(x.pending) || x.bytes >= batchBytes/2 {
			break // the batch is full
		}
	}
	c.TxBytes.Add(uint64(x.bytes))
	x.started.Store(max(int64(time.Since(c.born)), 1))
	return x.iov
}

// refill takes over what was queued. When there is nothing it gives the right to
// send back and reports false.
func (c *TargetConn) refill() bool {
	x := &c.tx
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.outq) == 0 {
		x.putBatch()
		c.sending = false
		c.room.Broadcast()
		return false
	}
	clear(x.pending)
	x.pending, c.outq = c.outq, x.pending[:0]
	c.queued.Store(0)
	x.next, x.sentTo = 0, 0
	for i := range x.pending {
		// From here on the initiator may see the response and use the tag again.
		if cmd := x.pending[i].cmd; cmd != nil && c.tasks[cmd.itt] == cmd {
			delete(c.tasks, cmd.itt)
		}
	}
	c.room.Broadcast()
	return true
}

// giveBack ends the commands whose responses the transport has taken.
func (c *TargetConn) giveBack() {
	x := &c.tx
	for x.sentTo < x.next {
		end := x.sentTo
		for end < x.next && (x.pending[end].pdu == nil || x.pending[end].pdu.after == nil) {
			end++
		}
		c.ended(x.pending[x.sentTo:end])
		x.sentTo = end
		if end < x.next {
			p := x.pending[end].pdu
			after := p.after
			p.after = nil
			_ = c.Settle() // it may wait
			after()
		}
	}
}

// ended ends the commands of items that were sent, all at once: a lock costs as
// much as a header.
func (c *TargetConn) ended(sent []outItem) {
	var free *command
	c.mu.Lock()
	for i := range sent {
		cmd := sent[i].cmd
		sent[i].cmd, sent[i].pdu = nil, nil
		if cmd == nil {
			continue
		}
		if cmd.lent {
			cmd.lent = false
			c.loans.first++
		}
		cmd.queued = false // refill has taken its tag from the table
		if cmd.free() {
			cmd.next, free = free, cmd
		}
	}
	c.mu.Unlock()
	for cmd := free; cmd != nil; cmd = cmd.next {
		cmd.clear() // and the loan goes with it
	}
	if l := &c.loans; l.first > 0 && l.first == len(l.cmds) {
		c.noLoans()
	}
	if free == nil {
		return
	}
	c.mu.Lock()
	for free != nil {
		cmd := free
		free = cmd.next
		c.keep(cmd)
	}
	c.mu.Unlock()
}

// discard drops an item that will never be sent.
func (c *TargetConn) discard(it *outItem) {
	if it.cmd != nil && it.cmd.numbered || it.pdu != nil && it.pdu.numbered {
		c.sess.answered()
	}
	c.done(it)
}

func (c *TargetConn) done(it *outItem) {
	cmd := it.cmd
	it.cmd, it.pdu = nil, nil
	if cmd == nil {
		return
	}
	c.mu.Lock()
	if c.tasks[cmd.itt] == cmd {
		delete(c.tasks, cmd.itt)
	}
	cmd.queued = false
	free := cmd.free()
	c.mu.Unlock()
	if free {
		c.recycle(cmd)
	}
}

// SendFailed tells that the transport broke while it held a batch, and how. It
// also ends the right to send, for good: part of a PDU may be sent.
func (c *TargetConn) SendFailed(err error) {
	c.tx.started.Store(0)
	c.dropped.Store(true)
	if errors.Is(err, syscall.EFAULT) {
		c.distrust()
		_ = c.Settle() // which tells why, if it is so still
	}
	c.endSend()
}

// endSend gives the right to send back though not all is sent, or will be.
func (c *TargetConn) endSend() {
	c.dropLoans()
	c.mu.Lock()
	c.tx.putBatch()
	c.sending = false
	c.room.Broadcast()
	gone := c.closed
	c.mu.Unlock()
	if gone {
		c.discardUnsent()
	}
}

// discardUnsent drops what a broken transport left behind. It does nothing while
// somebody is still sending; SendFailed then does it.
func (c *TargetConn) discardUnsent() {
	c.mu.Lock()
	if c.sending {
		c.mu.Unlock()
		return
	}
	c.sending = true // for good
	x := &c.tx
	p, from := x.pending, x.sentTo
	x.pending, x.next, x.sentTo = nil, 0, 0
	c.mu.Unlock()
	for i := from; i < len(p); i++ {
		c.discard(&p[i])
	}
}

// emit adds an item's PDUs to the batch. It reports false when the batch is full
// before the item is complete.
func (c *TargetConn) emit(it *outItem) bool {
	switch it.kind {
	case outStatus:
		return c.emitCommand(it.cmd)
	case outR2T:
		if !c.room1() {
			return false
		}
		h := c.newHeader(OpR2T, FlagFinal, it.itt)
		h.SetLUN(it.lun)
		h.SetTTT(it.ttt)
		h.SetStatSN(c.tx.statSN)
		h.SetDataSN(it.sn)
		h.SetBufferOffset(it.off)
		h.SetDesiredLen(it.len)
		c.seal(h, nil)
	case outPing:
		if !c.room1() {
			return false
		}
		h := c.newHeader(OpNopIn, FlagFinal, ReservedTag)
		// A target transfer tag other than the reserved one asks for an answer.
		h.SetTTT(1)
		h.SetStatSN(c.tx.statSN)
		c.seal(h, nil)
	default:
		if !c.room1() {
			return false
		}
		if it.pdu.numbered {
			c.sess.answered()
			it.pdu.numbered = false
		}
		h := c.newHeader(it.pdu.bhs.Opcode(), it.pdu.bhs.Flags(), it.pdu.bhs.ITT())
		exp, maxSN := h.ExpCmdSN(), h.MaxCmdSN()
		*h = it.pdu.bhs
		h.SetExpCmdSN(exp)
		h.SetMaxCmdSN(maxSN)
		h.SetStatSN(c.tx.statSN)
		c.tx.statSN++
		h.SetDataLen(len(it.pdu.data))
		c.seal(h, it.pdu.data)
	}
	return true
}

// room1 reports that the batch has room for one more PDU.
func (c *TargetConn) room1() bool {
	x := &c.tx
	return len(x.iov) < batchIOV && x.bytes < batchBytes && cap(x.arena)-len(x.arena) >= 512
}

// newHeader makes a header in the arena with the command window filled in.
func (c *TargetConn) newHeader(op Opcode, flags byte, itt uint32) *BHS {
	x := &c.tx
	n := len(x.arena)
	x.arena = x.arena[:n+BHSLen]
	h := (*BHS)(x.arena[n:])
	*h = BHS{}
	h.SetOpcode(op, false)
	h.SetFlags(flags)
	h.SetITT(itt)
	h.SetTTT(ReservedTag)
	exp, maxSN := c.sess.NextCmdSNs()
	h.SetExpCmdSN(exp)
	h.SetMaxCmdSN(maxSN)
	return h
}

// seal puts the PDU, whose header is the last thing in the arena, into the
// batch, with digests and padding. data stays where it is.
func (c *TargetConn) seal(h *BHS, data []byte) { c.sealData(h, data, nil) }

// sealData is seal for data that is on loan to a task, or to none.
func (c *TargetConn) sealData(h *BHS, data []byte, lent *scsi.Task) {
	x := &c.tx
	c.TxPDUs.Add(1)
	start := len(x.arena) - BHSLen
	if c.params.HeaderDigest {
		x.arena = AppendDigest(x.arena, Digest(h[:], nil))
	}
	x.bytes += len(x.arena) - start
	// Headers that follow each other in the arena share a vector.
	x.iov = appendVector(x.iov, x.arena[start:])
	if len(data) == 0 {
		return
	}
	x.batch.lent[len(x.iov)] = lent
	x.iov = append(x.iov, data)
	start = len(x.arena)
	pad := PadLen(len(data))
	x.arena = append(x.arena, 0, 0, 0)[:start+pad]
	if c.params.DataDigest {
		crc := uint32(0)
		if lent != nil {
			crc = coldDigest(data)
		} else {
			crc = UpdateDigest(0, data)
		}
		x.arena = AppendDigest(x.arena, UpdateDigest(crc, x.arena[start:start+pad]))
	}
	if len(x.arena) > start {
		x.iov = append(x.iov, x.arena[start:])
	}
	x.bytes += len(data) + len(x.arena) - start
}

// appendVector adds v, joining it to the vector before when it follows it in
// memory.
func appendVector(iov [][]byte, v []byte) [][]byte {
	if n := len(iov); n > 0 {
		last := iov[n-1]
		if len(last) < cap(last) && &last[:len(last)+1][len(last)] == &v[0] {
			iov[n-1] = last[:len(last)+len(v)]
			return iov
		}
	}
	return append(iov, v)
}

// emitCommand sends a command's data-in, with the status in the last PDU, or a
// SCSI Response (RFC 7143 §11.4, §11.6).
func (c *TargetConn) emitCommand(cmd *command) bool {
	t := &cmd.task
	if !cmd.full && cmd.read && t.Status == scsi.Good && len(t.In) > 0 {
		return c.emitDataIn(cmd)
	}
	if !c.room1() {
		return false
	}
	if cmd.numbered {
		c.sess.answered()
		cmd.numbered = false
	}
	c.Responses.Add(1)
	h := c.newHeader(OpSCSIResp, FlagFinal, cmd.itt)
	h.SetTTT(0) // SNACK tag, reserved
	h.SetStatSN(c.tx.statSN)
	c.tx.statSN++
	if cmd.full {
		h.SetStatus(byte(scsi.TaskSetFull))
		c.seal(h, nil)
		return true
	}
	h.SetStatus(byte(t.Status))
	cmd.residual(h)
	if len(t.Sense) == 0 {
		c.seal(h, nil)
		return true
	}
	// The sense data is copied behind the header, so that the task can go.
	h.SetDataLen(2 + len(t.Sense))
	var seg [2 + 256]byte
	c.sealCopy(h, senseSegment(seg[:0], t.Sense))
	return true
}

// sealCopy is seal for short data that is copied into the arena.
func (c *TargetConn) sealCopy(h *BHS, data []byte) {
	x := &c.tx
	c.TxPDUs.Add(1)
	start := len(x.arena) - BHSLen
	if c.params.HeaderDigest {
		x.arena = AppendDigest(x.arena, Digest(h[:], nil))
	}
	d := len(x.arena)
	x.arena = append(x.arena, data...)
	x.arena = append(x.arena, 0, 0, 0)[:len(x.arena)+PadLen(len(data))]
	if c.params.DataDigest {
		x.arena = AppendDigest(x.arena, Digest(x.arena[d:], nil))
	}
	x.bytes += len(x.arena) - start
	x.iov = appendVector(x.iov, x.arena[start:])
}

func (c *TargetConn) emitDataIn(cmd *command) bool {
	t := &cmd.task
	burst := c.sess.params.MaxBurst
	for {
		if !c.room1() {
			return false
		}
		n := min(len(t.In)-cmd.sent, int(c.maxXmit.Load()), burst-cmd.sent%burst)
		end := cmd.sent + n
		last := end == len(t.In)
		var flags byte
		if last || end%burst == 0 {
			flags = FlagFinal
		}
		if last && cmd.numbered {
			c.sess.answered()
			cmd.numbered = false
		}
		h := c.newHeader(OpDataIn, flags, cmd.itt)
		h.SetDataLen(n)
		h.SetDataSN(cmd.dataSN)
		h.SetBufferOffset(uint32(cmd.sent))
		if last {
			h.SetFlags(flags | FlagStatus)
			h.SetStatus(byte(t.Status))
			h.SetStatSN(c.tx.statSN)
			c.tx.statSN++
			cmd.residual(h)
		}
		cmd.dataSN++
		c.DataInPDUs.Add(1)
		lent := t
		if !t.Lent() {
			lent = nil
		}
		c.sealData(h, t.In[cmd.sent:end], lent)
		cmd.sent = end
		if last {
			return true
		}
	}
}
