package iscsi

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"blockgate/internal/bufpool"
	"blockgate/scsi"
)

// directMin is the data segment length from which a PDU's data is received
// straight into the buffer it is meant for, in bytes. Shorter segments are
// cheaper to copy than to ask the socket for separately.
const directMin = 16 << 10

// maxQueued bounds the replies that wait for a peer that does not read, in bytes:
// itemCost each, and the data that no budget counts. Beyond it Feed stops, and
// its caller must send or wait for room (see WaitRoom).
const (
	maxQueued = 1 << 20
	itemCost  = 256
)

// round is how many PDUs are acted on before their answers are sent, though more
// have arrived. One system call for sixteen answers is cheap enough, and the
// initiator works on the first while the target works on the next: at depth 32 the
// two would otherwise take turns.
const round = 16

// Host is what runs a TargetConn: a socket, or a test.
type Host interface {
	// Wake says that output was queued from outside Feed. It must not block.
	Wake()
	// Abort closes the transport; Feed's caller then calls Closed. It must not
	// block and may be called more than once.
	Abort(reason string)
}

// TargetConn is the target's end of one connection in full feature phase
// (RFC 7143 §4.3, §11), without a socket: received bytes go into Feed (or the
// buffer that Direct asks for), bytes to send come out of Gather.
//
// Feed, Direct, Filled and Closed belong to one goroutine, the reader. Gather
// belongs to whoever holds the right to send (see BeginSend). Everything else is
// safe for concurrent use.
type TargetConn struct {
	sess   *Session
	cid    uint16
	peer   Peer
	params Params
	host   Host
	log    *slog.Logger
	born   time.Time
	// tagBase makes task tags unique among the session's connections, those that
	// were there before included.
	tagBase uint64
	// maxXmit is MaxXmitDataSegment, which the peer may change at any time.
	maxXmit atomic.Int64

	lends bool // see ConnConfig.Lend
	rx    rx   // reader only
	loans loans
	batch scsi.Batch // reader only; begun at the end of each Feed

	mu      sync.Mutex
	tasks   map[uint32]*command // by Initiator Task Tag, while the initiator may refer to them
	early   map[uint32]*heldPDU // held commands whose unsolicited data may come, by task tag
	nlate   int                 // Data-Out PDUs kept for them
	free    *command
	nfree   int
	outq    []outItem
	feeding bool // the reader will send before it waits
	sending bool // somebody is between BeginSend and the end of Gather
	closed  bool
	room    sync.Cond
	nextTTT uint32

	logoutSent bool // no more PDUs after the Logout Response
	managing   int  // task management functions not yet answered
	pings      pings

	nearly   atomic.Int32 // len(early)
	queued   atomic.Int64 // cost of outq, see maxQueued; written under mu
	dropped  atomic.Bool  // by Drop or SendFailed: nothing more is acted on or sent
	rejected atomic.Int64 // when a rejected PDU was logged, Unix seconds

	textMu sync.Mutex // taken before mu
	text   textExchange

	tx tx // whoever holds the right to send

	// Counters, for statistics.
	RxBytes, TxBytes, RxPDUs, TxPDUs             atomic.Uint64
	Commands, DataOutPDUs, DataInPDUs, Responses atomic.Uint64
}

// rx is where the reader stands in the byte stream.
type rx struct {
	state    rxState
	bhs      BHS
	ahs      [MaxAHSLen]byte
	ahsLen   int
	dst      []byte // where the data segment goes; nil: it is thrown away
	got, len int    // bytes of the data segment
	tail     [8]byte
	tailGot  int
	stage    *bufpool.Buf // holds dst when no command's buffer does
	cmd      *command     // dst is this command's data-out
	again    bool         // Feed stopped before it had to
}

type rxState uint8

const (
	rxHeader rxState = iota
	rxBody           // a long data segment
	rxTail           // its padding and digest
)

// ConnConfig is what a connection is made of.
type ConnConfig struct {
	Session *Session
	Result  *LoginResult
	// StatSN is the next status number, as the login left it.
	StatSN uint32
	Host   Host
	Logger *slog.Logger
	// Lend says that the host's reader sends without waiting, calls Settle before
	// it waits for the peer to take more, and minds what EndFeed reports.
	Lend bool
}

// NewTargetConn makes the machine and joins it to its session. The connection
// it replaces (same CID), if any, is dropped. It fails when the session ended
// meanwhile.
func NewTargetConn(cfg ConnConfig) (*TargetConn, error) {
	c := &TargetConn{
		sess: cfg.Session, cid: cfg.Result.CID, peer: cfg.Result.Peer, params: cfg.Result.Params,
		host: cfg.Host, log: cfg.Logger, lends: cfg.Lend, tasks: make(map[uint32]*command), born: time.Now(),
		// Until the first Feed nothing is sent: the end of the login goes first.
		feeding: true,
	}
	c.room.L = &c.mu
	c.maxXmit.Store(int64(c.params.MaxXmitDataSegment))
	c.tx.statSN = cfg.StatSN
	old, err := c.sess.join(c)
	if err != nil {
		return nil, err
	}
	if old != nil {
		old.Drop("the initiator logged in again on this connection id")
		// Its tasks end before the first command of the new one.
		old.abandonAll(false)
	}
	return c, nil
}

// CID, Peer, Params and Session describe the connection.
func (c *TargetConn) CID() uint16       { return c.cid }
func (c *TargetConn) Peer() Peer        { return c.peer }
func (c *TargetConn) Session() *Session { return c.sess }
func (c *TargetConn) Params() Params    { return c.params }

// ProtocolError is a fault of the peer that ends the connection.
type ProtocolError struct{ Reason string }

func (e *ProtocolError) Error() string { return "protocol error: " + e.Reason }

func protocolErrorf(format string, a ...any) error {
	return &ProtocolError{fmt.Sprintf(format, a...)}
}

// Feed consumes what it can of p and returns how many bytes that was; the rest
// must be offered again, with more behind it. It runs the complete commands in p
// as far as they go without waiting, all of them unless Again reports true. A
// non-nil error ends the connection.
//
// A return of 0 without error means that p holds only part of a PDU: offer at
// least MinFeed bytes.
func (c *TargetConn) Feed(p []byte) (n int, err error) {
	c.mu.Lock()
	c.feeding = true
	if c.lends && !c.sending {
		c.sending, c.loans.mine = true, true
	}
	c.mu.Unlock()
	c.rx.again = false
	for k := 1; err == nil; k++ {
		if c.dropped.Load() {
			err = errDropped
			break
		}
		m, more, e := c.step(p[n:])
		n, err = n+m, e
		if !more {
			break
		}
		queued := c.queued.Load()
		if queued > maxQueued || c.loans.bytes >= maxLent || k >= round && queued >= round*itemCost && n < len(p) {
			c.rx.again = true
			break
		}
	}
	c.RxBytes.Add(uint64(n))
	return n, err
}

var errDropped = errors.New("connection dropped")

// Again reports that the last Feed stopped since there was enough to be sent: call
// it again, with nothing new, once that is done.
func (c *TargetConn) Again() bool { return c.rx.again }

// MinFeed is the size of the largest piece that Feed wants to see at once, in
// bytes.
const MinFeed = BHSLen + MaxAHSLen + 4 + directMin + 3 + 4

// Direct returns the buffer that the next bytes of the stream belong into, or
// nil when they should go through Feed. After reading n bytes into it, call
// Filled(n).
func (c *TargetConn) Direct() []byte {
	if c.rx.state != rxBody || c.rx.dst == nil {
		return nil
	}
	return c.rx.dst[c.rx.got:c.rx.len]
}

// Filled tells that n bytes were put at the front of Direct's buffer.
func (c *TargetConn) Filled(n int) {
	c.RxBytes.Add(uint64(n))
	c.rx.got += n
	if c.rx.got == c.rx.len {
		c.rx.state, c.rx.tailGot = rxTail, 0
	}
}

func (c *TargetConn) tailLen() int {
	n := PadLen(c.rx.len)
	if c.params.DataDigest && c.rx.len > 0 {
		n += 4
	}
	return n
}

// step takes one PDU, or one part of a long one. more is false when p holds too
// little to go on.
func (c *TargetConn) step(p []byte) (n int, more bool, err error) {
	r := &c.rx
	switch r.state {
	case rxBody:
		n = min(len(p), r.len-r.got)
		if r.dst != nil {
			copy(r.dst[r.got:], p[:n])
		}
		r.got += n
		if r.got < r.len {
			return n, false, nil
		}
		r.state, r.tailGot = rxTail, 0
		return n, true, nil
	case rxTail:
		n = min(len(p), c.tailLen()-r.tailGot)
		copy(r.tail[r.tailGot:], p[:n])
		r.tailGot += n
		if r.tailGot < c.tailLen() {
			return n, false, nil
		}
		r.state = rxHeader
		return n, true, c.endLong()
	}
	n, err = c.header(p)
	return n, n > 0, err
}

// header takes one PDU whose data segment is short, or the front of a long one.
// It takes nothing when p does not hold that much.
func (c *TargetConn) header(p []byte) (int, error) {
	if len(p) < BHSLen {
		return 0, nil
	}
	r := &c.rx
	h := (*BHS)(p)
	ahsLen, dataLen := h.AHSLen(), h.DataLen()
	n := BHSLen + ahsLen
	if c.params.HeaderDigest {
		n += 4
	}
	if len(p) < n {
		return 0, nil
	}
	if c.params.HeaderDigest && !digestOK(p[:BHSLen+ahsLen], nil, p[n-4:n]) {
		// The lengths cannot be trusted, so neither can the stream (RFC 7143
		// §7.7); at recovery level 0 the connection ends.
		return 0, protocolErrorf("header digest error")
	}
	if dataLen > c.params.MaxRecvDataSegment {
		return 0, protocolErrorf("data segment of %d bytes, more than MaxRecvDataSegmentLength=%d",
			dataLen, c.params.MaxRecvDataSegment)
	}
	r.bhs, r.len, r.got = *h, dataLen, 0
	r.ahsLen = copy(r.ahs[:], p[BHSLen:BHSLen+ahsLen])
	if dataLen >= directMin {
		c.RxPDUs.Add(1)
		r.state = rxBody
		return n, c.beginLong()
	}
	end, bad := n, false
	if dataLen > 0 {
		padded := n + dataLen + PadLen(dataLen)
		end = padded
		if c.params.DataDigest {
			end += 4
		}
		if len(p) < end {
			return 0, nil
		}
		bad = c.params.DataDigest && !digestOK(p[n:padded], nil, p[padded:end])
	}
	c.RxPDUs.Add(1)
	return end, c.pdu(&r.bhs, r.ahs[:r.ahsLen], p[n:n+dataLen], nil, bad)
}

// digestOK compares the digest of two parts with its wire form.
func digestOK(a, b, wire []byte) bool {
	return Digest(a, b) == WireDigest(wire)
}

// beginLong decides where a long data segment goes.
func (c *TargetConn) beginLong() error {
	r := &c.rx
	r.dst, r.stage, r.cmd = nil, nil, nil
	size := r.len
	switch {
	case r.bhs.Opcode() == OpDataOut && !c.isEarly(&r.bhs):
		c.DataOutPDUs.Add(1)
		r.cmd, r.dst = c.dataOutTarget(&r.bhs)
		return nil
	// Other PDUs are acted on when they are complete. A write command's buffer is
	// taken at its full length now, so that its immediate data is in place.
	case r.bhs.Opcode() == OpSCSICmd && r.bhs.Flags()&FlagWrite != 0:
		size = max(size, int(min(r.bhs.EDTL(), maxStage)))
	}
	if r.stage = c.takeStage(size); r.stage != nil {
		r.dst = r.stage.B[:r.len]
	} // else thrown away; endLong answers for it
	return nil
}

// takeStage takes a staging buffer and its share of the budget, or nil.
func (c *TargetConn) takeStage(n int) *bufpool.Buf {
	if !c.sess.budget.Take(int64(n)) {
		return nil
	}
	return bufpool.Get(n)
}

// maxStage bounds what one command may hold before it has been looked at.
const maxStage = 16 << 20

// endLong runs when a long data segment, its padding and digest have arrived.
func (c *TargetConn) endLong() error {
	_ = c.Settle()
	r := &c.rx
	dst, stage, cmd := r.dst, r.stage, r.cmd
	r.dst, r.stage, r.cmd = nil, nil, nil
	bad := false
	if c.params.DataDigest && dst != nil {
		pad := PadLen(r.len)
		bad = !digestOK(dst[:r.len], r.tail[:pad], r.tail[pad:pad+4])
	}
	if r.bhs.Opcode() == OpDataOut {
		switch {
		case cmd != nil:
			c.dataOutDone(cmd, &r.bhs, bad, true)
		case stage != nil:
			return c.dataOut(&r.bhs, dst, stage, bad)
		case c.nearly.Load() > 0:
			_, err := c.keepLate(&r.bhs, nil, nil, bad) // lost for want of memory
			return err
		}
		return nil // otherwise its task is gone
	}
	if stage == nil {
		return c.pduWithoutMemory(&r.bhs)
	}
	return c.pdu(&r.bhs, r.ahs[:r.ahsLen], dst, stage, bad)
}

// putStage gives a staging buffer and its share of the budget back.
func (c *TargetConn) putStage(b *bufpool.Buf) {
	if b != nil {
		c.sess.budget.Give(int64(len(b.B)))
		bufpool.Put(b)
	}
}

// Closed tells the machine that the transport is gone. Its tasks are aborted;
// the last connection ends the session. The reader calls it once, at its end.
func (c *TargetConn) Closed() {
	c.mu.Lock()
	c.closed = true
	c.room.Broadcast()
	c.mu.Unlock()
	c.putStage(c.rx.stage)
	if c.rx.cmd != nil {
		c.unpin(c.rx.cmd)
	}
	c.rx = rx{}
	last := c.sess.leave(c)
	if last {
		c.sess.detach()
	}
	c.abandonAll(last)
	c.mu.Lock()
	q := c.outq
	c.outq, c.free = nil, nil
	c.queued.Store(0)
	c.mu.Unlock()
	for i := range q {
		c.discard(&q[i])
	}
	c.discardUnsent()
}

// Drop closes the connection from our side; nothing that came on it is acted on
// any more. The reason goes to the log.
func (c *TargetConn) Drop(reason string) {
	c.dropped.Store(true)
	c.host.Abort(reason)
}

// pings is the NOP-In state (RFC 7143 §11.19), guarded by TargetConn.mu.
type pings struct {
	idle       int // seconds since the last byte came
	unanswered int
	lastRx     uint64
}

// Tick advances the connection's clock by one second: it pings a silent peer and
// drops one that does not answer.
func (c *TargetConn) Tick() {
	c.sess.tickTMFs(c)
	interval, count := 0, 0
	if a := c.sess.Access; a != nil {
		interval, count = a.Offer.NopInterval, a.Offer.NopCount
	} else {
		d := DefaultOffer()
		interval, count = d.NopInterval, d.NopCount
	}
	c.mu.Lock()
	if rx := c.RxBytes.Load(); rx != c.pings.lastRx {
		c.pings = pings{lastRx: rx}
		c.mu.Unlock()
		return
	}
	c.pings.idle++
	if c.pings.idle == trimAfter {
		c.trim()
	}
	if interval <= 0 || c.pings.idle < interval || c.closed {
		c.mu.Unlock()
		return
	}
	c.pings.idle = 0
	if count > 0 && c.pings.unanswered >= count {
		c.mu.Unlock()
		c.Drop(fmt.Sprintf("no answer to %d NOP-In pings", count))
		return
	}
	c.pings.unanswered++
	c.mu.Unlock()
	c.queue(outItem{kind: outPing})
}

// trimAfter is how long a connection keeps what it needed under load, in seconds.
const trimAfter = 5

// trim gives back what an idle connection does not need. Caller holds mu.
func (c *TargetConn) trim() {
	c.free, c.nfree = nil, 0
	if len(c.outq) == 0 {
		c.outq = nil
	}
	if !c.sending && c.tx.sentTo == len(c.tx.pending) {
		c.tx.pending, c.tx.next, c.tx.sentTo = nil, 0, 0
	}
	if len(c.tasks) == 0 {
		c.tasks = make(map[uint32]*command) // maps do not shrink
	}
}

// Sending reports that a batch is with the transport.
func (c *TargetConn) Sending() bool { return c.tx.started.Load() != 0 }

// Stalled reports that a batch has been with the transport for d, and for so long
// without Progress.
func (c *TargetConn) Stalled(now time.Time, d time.Duration) bool {
	t := c.tx.started.Load()
	return t != 0 && now.Sub(c.born)-time.Duration(t) > d
}
