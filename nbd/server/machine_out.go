package server

import (
	"errors"
	"sync/atomic"
	"syscall"
	"time"

	"blockgate/internal/bufpool"
	"blockgate/nbd"
)

// Bounds of one batch: vectors, and bytes.
const (
	batchVectors = 1000
	batchBytes   = 1 << 20
	// keepArena is how large a buffer for headers stays, in bytes.
	keepArena = 256 << 10
)

// tx is the batch that is being sent. It belongs to whoever has the right to send.
type tx struct {
	reqs    []*Request
	arena   []byte // headers and small payloads
	start   int    // arena[start:] is not in iov yet
	iov     [][]byte
	lent    []*Request // iov[i] is this one's, on loan
	stage   *bufpool.Buf
	started atomic.Int64 // when the transport got or last took something, since born; 0: it has nothing
}

// loans is what a connection has on loan, see package scsi's Loans. Only the
// reader takes loans, while it has the right to send since the beginning of Feed;
// they end with the sends that follow.
type loans struct {
	mine  bool
	reqs  []*Request
	bytes int
}

// Done ends the request: e is None if it was done, and message may tell a human
// what went wrong. The session touches neither the request nor its Data
// afterwards, until Release or EndLoan.
func (r *Request) Done(e nbd.Errno, message string) {
	m := r.m
	if r.answered {
		e = nbd.EIO // what has come of it is of no use any more
	}
	r.err, r.message = e, message
	if e != nbd.None {
		if !r.answered {
			m.Errors.Add(1)
		}
		if r.Lent {
			_ = m.Session.EndLoan(r, false)
			r.Lent = false
		}
	}
	cost := int64(0)
	if r.buf != nil {
		bufpool.Put(r.buf)
		r.buf, r.Data = nil, nil
		cost = r.giveMemory()
	}
	m.mu.Lock()
	m.held -= cost
	if m.closed || r.answered {
		m.mu.Unlock()
		m.Budget.Give(cost)
		m.release(r)
		return
	}
	if r.Lent {
		m.loans.reqs = append(m.loans.reqs, r)
		m.loans.bytes += len(r.In)
	}
	m.outq = append(m.outq, r)
	if m.queued += len(r.In); m.queued > maxQueued {
		m.crowded.Store(true)
	}
	wake := !m.feeding && !m.sending
	m.mu.Unlock()
	m.Budget.Give(cost)
	if wake {
		m.Host.Wake()
	}
}

// Answer replies with an error to a request that the session does not get back yet:
// a store that hangs has it. Done still follows, once, and says nothing more. It is
// called at most once, before Done, and not within Submit.
func (r *Request) Answer(e nbd.Errno, message string) {
	m := r.m
	a := &Request{Request: r.Request, m: m, err: e, message: message, reply: true}
	r.answered = true
	m.Errors.Add(1)
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return
	}
	m.outq = append(m.outq, a)
	wake := !m.feeding && !m.sending
	m.mu.Unlock()
	if wake {
		m.Host.Wake()
	}
}

// EndFeed implements conndrive.Machine.
func (m *machine) EndFeed() (send bool) {
	if m.beginner != nil {
		m.beginner.Begin()
	}
	ahead := m.rx.room.ahead
	m.rx.room.ahead = 0
	m.mu.Lock()
	m.feeding = false
	m.closeRoomLocked()
	send, m.loans.mine = m.loans.mine, false
	m.mu.Unlock()
	m.Budget.Give(ahead)
	return send
}

// BeginSend implements conndrive.Machine.
func (m *machine) BeginSend() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sending || len(m.outq) == 0 || m.closed || m.dropped.Load() {
		return false
	}
	m.sending = true
	return true
}

// Gather implements conndrive.Machine.
func (m *machine) Gather() [][]byte {
	x := &m.tx
	m.sent()
	m.mu.Lock()
	if len(m.outq) == 0 || m.closed || m.dropped.Load() {
		m.sending = false
		// Everything is sent, and with it what was lent, or Closed ends that. Only the
		// reader's own send finds any, and the reader looks at them without the mutex.
		if len(m.loans.reqs) > 0 {
			clear(m.loans.reqs)
			m.loans.reqs, m.loans.bytes = m.loans.reqs[:0], 0
		}
		m.room.Broadcast()
		m.mu.Unlock()
		return nil
	}
	n, bytes := 0, 0
	for _, r := range m.outq {
		if 2*n >= batchVectors || n > 0 && bytes+len(r.In) > batchBytes {
			break
		}
		bytes += len(r.In)
		n++
	}
	x.reqs = append(x.reqs, m.outq[:n]...)
	left := copy(m.outq, m.outq[n:])
	clear(m.outq[left:])
	m.outq = m.outq[:left]
	if m.queued -= bytes; m.queued <= maxQueued {
		m.crowded.Store(false)
	}
	m.mu.Unlock()
	for _, r := range x.reqs {
		r.batched = true
		m.encode(r)
	}
	x.cut()
	total := 0
	for _, v := range x.iov {
		total += len(v)
	}
	m.TxBytes.Add(uint64(total))
	x.started.Store(max(1, int64(time.Since(m.born))))
	return x.iov
}

// sent ends a batch that the transport took.
func (m *machine) sent() {
	x := &m.tx
	if len(x.reqs) == 0 {
		return
	}
	x.started.Store(0)
	var l bygone
	for _, r := range x.reqs {
		l.end(r)
	}
	m.recycle(l)
	clear(x.reqs)
	clear(x.iov)
	clear(x.lent)
	bufpool.Put(x.stage)
	x.reqs, x.iov, x.lent, x.arena, x.start, x.stage = x.reqs[:0], x.iov[:0], x.lent[:0], x.arena[:0], 0, nil
	if cap(x.arena) > keepArena {
		x.arena = nil
	}
}

// discardUnsent ends what was in the batch when the transport broke.
func (m *machine) discardUnsent() { m.sent() }

// SendFailed implements conndrive.Machine.
func (m *machine) SendFailed(err error) {
	if errors.Is(err, syscall.EFAULT) {
		for _, r := range m.tx.reqs {
			if r.Lent {
				m.Session.Distrust(r)
			}
		}
	}
	m.dropped.Store(true)
	m.discardUnsent()
	m.mu.Lock()
	m.sending = false
	m.room.Broadcast()
	m.mu.Unlock()
}

// Progress implements conndrive.Machine.
func (m *machine) Progress() {
	if m.tx.started.Load() != 0 {
		m.tx.started.Store(max(1, int64(time.Since(m.born))))
	}
}

// Sending implements conndrive.Machine.
func (m *machine) Sending() bool { return m.tx.started.Load() != 0 }

// cut puts what is new in the arena into the vectors.
func (x *tx) cut() {
	if x.start < len(x.arena) {
		x.iov = append(x.iov, x.arena[x.start:len(x.arena):len(x.arena)])
		x.lent = append(x.lent, nil)
		x.start = len(x.arena)
	}
}

// data puts what a READ has read behind its header.
func (x *tx) data(r *Request) {
	if len(r.In) == 0 {
		return
	}
	x.cut()
	lent := r
	if !r.Lent {
		lent = nil
	}
	x.iov = append(x.iov, r.In)
	x.lent = append(x.lent, lent)
}

// encode makes a reply.
func (m *machine) encode(r *Request) {
	x := &m.tx
	if m.Mode == nbd.Simple {
		x.arena = nbd.AppendSimpleReply(x.arena, r.err, r.Cookie)
		if r.err == nbd.None {
			x.data(r)
		}
		return
	}
	c := nbd.Chunk{Flags: nbd.ChunkDone, Cookie: r.Cookie, Offset: r.Offset}
	switch {
	case r.err != nbd.None:
		c.Type, c.Length = nbd.ChunkError, uint64(6+len(r.message))
		x.arena = c.Append(x.arena, m.Mode)
		x.arena = nbd.ErrorInfo{Error: r.err, Message: r.message}.Append(x.arena, c.Type)
	case r.Type == nbd.CmdRead && len(r.In) > 0:
		c.Type, c.Length = nbd.ChunkOffsetData, uint64(nbd.OffsetDataLen+len(r.In))
		x.arena = nbd.AppendOffset(c.Append(x.arena, m.Mode), r.Offset)
		x.data(r)
	case r.Type == nbd.CmdBlockStatus:
		r.Extents = m.fit(r)
		c.Type, c.Length = m.Mode.BlockStatusType(), uint64(m.Mode.BlockStatusLen(len(r.Extents)))
		x.arena = nbd.AppendBlockStatus(c.Append(x.arena, m.Mode), m.Mode, m.ContextID, r.Extents)
	case m.Mode == nbd.Structured && r.Type != nbd.CmdRead:
		x.arena = nbd.AppendSimpleReply(x.arena, nbd.None, r.Cookie)
	default:
		x.arena = c.Append(x.arena, m.Mode)
	}
}

// fit makes of a session's extents what a reply may hold: neighbours of one
// status are one, those behind the range are left out, and each has a length that
// the mode can say. A session that tells nothing has the status 0.
func (m *machine) fit(r *Request) []nbd.Extent {
	if len(r.Extents) == 0 {
		r.Extents = append(r.Extents, nbd.Extent{Length: r.Length})
	}
	l := r.Extents
	n, total := 0, uint64(0)
	for _, e := range l {
		switch {
		case e.Length == 0:
			continue
		case n > 0 && l[n-1].Flags == e.Flags:
			l[n-1].Length += e.Length
		case total >= r.Length:
			return m.bound(l[:n], r)
		default:
			l[n] = e
			n++
		}
		total += e.Length
	}
	return m.bound(l[:n], r)
}

func (m *machine) bound(l []nbd.Extent, r *Request) []nbd.Extent {
	one := r.Flags&nbd.FlagReqOne != 0
	if one {
		l = l[:1]
		l[0].Length = min(l[0].Length, r.Length)
	}
	for i := range l {
		if limit := m.Mode.MaxExtent(); l[i].Length > limit {
			l[i].Length = limit
			return l[:i+1] // the client asks for the rest
		}
	}
	return l
}

// Settle implements conndrive.Machine and Loans: it ends all loans by copying what
// has not been sent.
func (m *machine) Settle() error {
	if len(m.loans.reqs) == 0 {
		return nil
	}
	err := m.ownVectors()
	for i, r := range m.loans.reqs {
		if r.Lent {
			if e := m.Session.EndLoan(r, !r.batched); e != nil {
				err = e
			}
			r.Lent = false
		}
		m.loans.reqs[i] = nil
	}
	m.loans.reqs, m.loans.bytes = m.loans.reqs[:0], 0
	if err != nil {
		// The reply says that the data is there, and may be half sent.
		m.Drop(err.Error())
	}
	return err
}

// ownVectors copies what is lent and still in the batch.
func (m *machine) ownVectors() (err error) {
	x := &m.tx
	n := 0
	for i, v := range x.iov {
		if x.lent[i] != nil {
			n += len(v)
		}
	}
	if n == 0 {
		return nil
	}
	x.stage = bufpool.Get(n)
	p := x.stage.B
	for i, v := range x.iov {
		if r := x.lent[i]; r != nil {
			k := len(v)
			if e := m.Session.CopyLent(r, p[:k], v); e != nil {
				err = e
			}
			x.iov[i], p = p[:k:k], p[k:]
			x.lent[i] = nil
		}
	}
	return err
}
