package server

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"blockgate/internal/budget"
	"blockgate/internal/bufpool"
	"blockgate/nbd"
)

// Bounds of one connection.
const (
	// maxInflight is how many requests may be between their header and the end of
	// their reply.
	maxInflight = 512
	// maxHeld bounds their payload, in bytes: two of the largest.
	maxHeld = 2 * nbd.DefaultMaxPayload
	// maxQueued bounds the data that is read but not sent when the next request
	// is looked at, and maxLent what of it is on loan, in bytes.
	maxQueued = 1 << 20
	maxLent   = 512 << 10
	// directMin is the payload from which a WRITE's data is received in place, in
	// bytes. Shorter ones are cheaper to copy than to read apart from what follows.
	directMin = 16 << 10
	// maxSkip is more payload than is skipped for the sake of an error, in bytes.
	maxSkip = 2 * nbd.DefaultMaxPayload
)

// host is what runs a machine.
type host interface {
	// Wake says that output was queued from outside Feed. It must not block.
	Wake()
	// Abort closes the transport. It must not block.
	Abort(reason string)
}

// machineConfig is what a machine is made of: what the handshake has agreed on.
type machineConfig struct {
	Session    Session
	Mode       nbd.Mode
	Flags      nbd.TransmissionFlags
	BlockSize  nbd.BlockSize
	Allocation bool   // AllocationContext is selected,
	ContextID  uint32 // under this number
	// Budget is the server's memory, of which the connection takes as Share.
	Budget *budget.Budget
	Share  budget.Share
	Host   host
	// Lend says that the host's reader sends without waiting and calls Settle
	// before it waits.
	Lend bool
}

// machine is the server's end of a connection in the transmission phase, without
// its socket: a conndrive.Machine. Feed, Direct, Filled, WaitRoom and Closed
// belong to the reader, Gather to whoever has the right to send; everything else
// is safe for concurrent use.
//
// A request lives from get, when its header is read, to release, when its reply
// is sent. Between are Submit, which may end it at once, and Done, from anywhere.
type machine struct {
	machineConfig
	born     time.Time
	beginner Beginner // the session, if it is one

	rx    rx
	loans loans

	mu       sync.Mutex
	room     sync.Cond
	outq     []*Request // done, to be sent
	queued   int        // bytes of data in outq
	inflight int
	held     int64
	free     *Request
	feeding  bool // the reader sends before it waits
	sending  bool // somebody is between BeginSend and the end of Gather
	closed   bool

	crowded atomic.Bool // queued is above maxQueued
	dropped atomic.Bool
	midway  atomic.Bool // part of a message was received

	tx tx

	// Counters, for statistics.
	RxBytes, TxBytes, Requests, Errors atomic.Uint64
	ReadBytes, WrittenBytes            atomic.Uint64

	// tick only
	seen  uint64
	since time.Time
}

// rx is where the reader stands in the stream.
type rx struct {
	state rxState
	again bool     // Feed stopped before it had to
	want  int64    // payload of the request that there was no room for; -1: none waits
	r     *Request // rxBody: a WRITE, of whose data got bytes are there
	got   int
	skip  uint64 // rxSkip: bytes to throw away
	room  room
}

type rxState uint8

const (
	rxHeader rxState = iota
	rxBody
	rxSkip
	rxBye // DISC was received
)

func newMachine(cfg machineConfig) *machine {
	m := &machine{machineConfig: cfg, born: time.Now(), feeding: true}
	m.room.L = &m.mu
	m.rx.want = -1
	m.beginner, _ = cfg.Session.(Beginner)
	return m
}

// Reasons for an end that are no fault.
var (
	errDropped      = errors.New("connection dropped")
	errDisconnected = errors.New("disconnected by the client")
)

// Feed implements conndrive.Machine.
func (m *machine) Feed(p []byte) (n int, err error) {
	m.mu.Lock()
	m.feeding = true
	m.openRoomLocked()
	if m.Lend && !m.sending {
		m.sending, m.loans.mine = true, true
	}
	m.mu.Unlock()
	m.rx.again, m.rx.want = false, -1
	for i := 1; err == nil; i++ {
		if m.dropped.Load() {
			err = errDropped
			break
		}
		k, more, e := m.step(p[n:])
		n, err = n+k, e
		if !more {
			break
		}
		if m.crowded.Load() || m.loans.bytes >= maxLent || i%round == 0 && n < len(p) && m.answers() >= round {
			m.rx.again = true
			break
		}
	}
	m.rx.room.received += uint64(n)
	m.rx.room.count(m)
	m.midway.Store(!m.rx.again && (m.rx.state != rxHeader || n < len(p)))
	return n, err
}

// round is how many requests are acted on before their answers are sent, though
// more have arrived: the client works on the first ones while the rest runs. To
// answer all at the end makes the two take turns.
const round = 16

// answers is how many replies wait to be sent.
func (m *machine) answers() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.outq)
}

// Again implements conndrive.Machine.
func (m *machine) Again() bool { return m.rx.again }

// Direct implements conndrive.Machine.
func (m *machine) Direct() []byte {
	if m.rx.state != rxBody {
		return nil
	}
	return m.rx.r.Data[m.rx.got:]
}

// Filled implements conndrive.Machine. The request is submitted by the Feed that
// follows.
func (m *machine) Filled(n int) {
	m.RxBytes.Add(uint64(n))
	m.rx.got += n
}

// step takes one request or a part of one. more is false when p holds too little
// to go on, or there is no room to.
func (m *machine) step(p []byte) (n int, more bool, err error) {
	x := &m.rx
	switch x.state {
	case rxBody:
		n = copy(x.r.Data[x.got:], p)
		x.got += n
		if x.got < len(x.r.Data) {
			return n, false, nil
		}
		r := x.r
		x.state, x.r, x.got = rxHeader, nil, 0
		m.submit(r)
		return n, true, nil
	case rxSkip:
		n = int(min(uint64(len(p)), x.skip))
		if x.skip -= uint64(n); x.skip > 0 {
			return n, false, nil
		}
		x.state = rxHeader
		return n, true, nil
	case rxBye:
		// What was asked for is answered first.
		m.mu.Lock()
		m.openRoomLocked()
		left := m.inflight
		m.mu.Unlock()
		if left > 0 {
			x.again = true
			return 0, false, nil
		}
		return len(p), false, errDisconnected
	}
	return m.header(p)
}

// header takes the header of a request, and its payload if it is all there.
func (m *machine) header(p []byte) (n int, more bool, err error) {
	x := &m.rx
	n = m.Mode.RequestHeaderLen()
	if len(p) < n {
		return 0, false, nil
	}
	var q nbd.Request
	if !nbd.DecodeRequest(p, m.Mode, &q) {
		return 0, false, fmt.Errorf("protocol error: not a request: % x", p[:4])
	}
	if q.Type == nbd.CmdDisconnect {
		x.state = rxBye
		return n, true, nil
	}
	payload := q.PayloadLen(m.Mode)
	if payload > maxSkip {
		return 0, false, fmt.Errorf("protocol error: %v with %d bytes of data", q.Type, payload)
	}
	if payload < directMin && uint64(len(p)-n) < payload {
		return 0, false, nil
	}
	e, message := m.check(&q)
	cost := int64(0)
	if e == nbd.None && (q.Type == nbd.CmdRead || q.Type == nbd.CmdWrite) {
		cost = int64(q.Length)
	}
	r := m.get(cost)
	if r == nil {
		x.again, x.want = true, cost
		return 0, false, nil
	}
	x.room.requests++
	r.Request = q
	switch {
	case e != nbd.None || q.Length == 0 && q.Type != nbd.CmdFlush:
		// A length of 0 asks for nothing, and is done.
		if payload > 0 {
			x.state, x.skip = rxSkip, payload
		}
		r.Done(e, message)
		return n, true, nil
	case payload == 0:
		m.submit(r)
		return n, true, nil
	}
	r.buf = bufpool.Get(int(payload))
	r.Data = r.buf.B
	if k := copy(r.Data, p[n:]); k < len(r.Data) {
		x.state, x.r, x.got = rxBody, r, k
		return n + k, false, nil
	}
	m.submit(r)
	return n + len(p[n:][:payload]), true, nil
}

// submit runs a request that is complete.
func (m *machine) submit(r *Request) {
	switch r.Type {
	case nbd.CmdRead:
		m.rx.room.reads += r.Length
	case nbd.CmdWrite:
		m.rx.room.writes += r.Length
	}
	if r.Type != nbd.CmdRead {
		_ = m.Settle()
	}
	m.Session.Submit(r)
}

// flagsOf are the flags that a command may have, besides FUA, which clients are
// known to set anywhere.
func flagsOf(c nbd.Command) nbd.CommandFlags {
	switch c {
	case nbd.CmdRead:
		return nbd.FlagDF
	case nbd.CmdWriteZeroes:
		return nbd.FlagNoHole | nbd.FlagFastZero
	case nbd.CmdBlockStatus:
		return nbd.FlagReqOne
	}
	return 0
}

// neededFor is what an export has to offer for a command.
func neededFor(q *nbd.Request) (f nbd.TransmissionFlags) {
	switch q.Type {
	case nbd.CmdFlush:
		f = nbd.SendFlush
	case nbd.CmdTrim:
		f = nbd.SendTrim
	case nbd.CmdCache:
		f = nbd.SendCache
	case nbd.CmdWriteZeroes:
		f = nbd.SendWriteZeroes
	}
	if q.Flags&nbd.FlagFUA != 0 {
		f |= nbd.SendFUA
	}
	if q.Flags&nbd.FlagDF != 0 {
		f |= nbd.SendDF
	}
	if q.Flags&nbd.FlagFastZero != 0 {
		f |= nbd.SendFastZero
	}
	return f
}

// check holds a request against what was agreed on.
func (m *machine) check(q *nbd.Request) (nbd.Errno, string) {
	allowed := flagsOf(q.Type) | nbd.FlagFUA
	writes := false
	switch q.Type {
	case nbd.CmdWrite:
		writes = true
		if m.Mode == nbd.Extended {
			allowed |= nbd.FlagPayloadLen
		}
	case nbd.CmdTrim, nbd.CmdWriteZeroes:
		writes = true
	case nbd.CmdRead, nbd.CmdCache:
	case nbd.CmdFlush:
		if q.Offset != 0 || q.Length != 0 {
			return nbd.EINVAL, "FLUSH with a range"
		}
	case nbd.CmdBlockStatus:
		switch {
		case !m.Allocation:
			return nbd.EINVAL, "no metadata context was selected"
		case q.Length == 0:
			return nbd.EINVAL, "BLOCK_STATUS of nothing"
		}
	default:
		return nbd.EINVAL, "unknown command"
	}
	if writes && m.Flags&nbd.ReadOnly != 0 {
		return nbd.EPERM, "the export is read-only"
	}
	if q.Flags&^allowed != 0 || neededFor(q)&^m.Flags != 0 {
		return nbd.EINVAL, "flag or command is not offered"
	}
	if (q.Offset|q.Length)&uint64(m.BlockSize.Min-1) != 0 {
		return nbd.EINVAL, "not aligned to the minimum block size"
	}
	if size := m.Session.Size(); q.Offset > size || q.Length > size-q.Offset {
		if q.Type == nbd.CmdWrite || q.Type == nbd.CmdWriteZeroes {
			return nbd.ENOSPC, "behind the end of the export"
		}
		return nbd.EINVAL, "behind the end of the export"
	}
	if q.Length > uint64(m.BlockSize.MaxPayload) {
		switch {
		case q.Type == nbd.CmdRead && m.Mode != nbd.Simple:
			return nbd.EOVERFLOW, "more than the maximum payload"
		case q.Type == nbd.CmdRead, q.Type == nbd.CmdWrite:
			return nbd.EINVAL, "more than the maximum payload"
		}
	}
	return nbd.None, ""
}

// Closed tells the machine that the transport is gone.
func (m *machine) Closed() {
	m.mu.Lock()
	m.closed = true
	q := m.outq
	m.outq, m.free = nil, nil
	m.room.Broadcast()
	m.mu.Unlock()
	if r := m.rx.r; r != nil {
		m.rx.r = nil
		m.unsubmitted(r)
	}
	m.rx.room.free = nil
	var l bygone
	for _, r := range q {
		l.end(r)
	}
	m.recycle(l)
	m.discardUnsent()
	m.Session.Close()
}

// Drop closes the connection from our side.
func (m *machine) Drop(reason string) {
	m.stop()
	m.Host.Abort(reason)
}

// stop has the reader come to its end, also where it waits for room.
func (m *machine) stop() {
	m.dropped.Store(true)
	m.mu.Lock()
	m.room.Broadcast()
	m.mu.Unlock()
}

// tick looks for a peer that takes nothing of what is sent to it, or stops in the
// middle of a request, for as long as limit.
func (m *machine) tick(now time.Time, limit time.Duration) {
	if t := m.tx.started.Load(); t != 0 && now.Sub(m.born)-time.Duration(t) > limit {
		m.Drop("the client does not read what is sent to it")
		return
	}
	if n := m.RxBytes.Load(); n != m.seen || !m.midway.Load() {
		m.seen, m.since = n, now
	} else if now.Sub(m.since) > limit {
		m.Drop("the client stopped in the middle of a request")
	}
}
