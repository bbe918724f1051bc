package conndrive_test

import (
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"

	"blockgate/internal/conndrive"
)

// echo is a machine that answers each frame with its payload. A frame is a length
// of four bytes, a byte that says how, and the payload.
type echo struct {
	lends bool
	conn  *conndrive.Conn
	later chan []byte // frames that somebody else answers

	// reader only
	dst   []byte // a long frame, which is received in place
	got   int
	way   byte
	again bool

	mu      sync.Mutex
	out     [][]byte
	feeding bool
	sending bool
	mine    bool // the reader has had the right to send since Feed
	failed  bool
	room    sync.Cond

	batch [][]byte // right to send only

	settled, progress, directs atomic.Int64
	copied                     atomic.Int64 // bytes of long frames that came through Feed
	inBatch                    atomic.Bool
}

const (
	wayNow   = iota // answered in Feed
	wayLater        // answered by somebody else
	wayBad          // an error of the peer

	headLen   = 5
	directMin = 16 << 10
	maxFrame  = 32 << 20
	maxRound  = 16
	maxQueue  = 64
)

var errBad = errors.New("bad frame")

func newEcho(lends bool) *echo {
	e := &echo{lends: lends, later: make(chan []byte, 1024), feeding: true}
	e.room.L = &e.mu
	return e
}

func frame(way byte, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	return append(append(b, way), payload...)
}

func (e *echo) Feed(p []byte) (n int, err error) {
	e.mu.Lock()
	e.feeding = true
	if e.lends && !e.sending && !e.failed {
		e.sending, e.mine = true, true
	}
	e.mu.Unlock()
	e.again = false
	for k := 0; len(p) >= headLen && e.dst == nil; k++ {
		if k == maxRound {
			e.again = true
			return n, nil
		}
		size := int(binary.BigEndian.Uint32(p))
		if e.way = p[4]; size > maxFrame || e.way == wayBad {
			return n, errBad
		}
		m := headLen + size
		if size >= directMin {
			e.dst = make([]byte, size)
			e.got = copy(e.dst, p[headLen:])
			m = headLen + e.got
			e.directs.Add(1)
			e.copied.Add(int64(e.got))
			e.endLong()
		} else if len(p) < m {
			return n, nil
		} else {
			e.answer(append([]byte(nil), p[headLen:m]...))
		}
		n, p = n+m, p[m:]
	}
	return n, nil
}

func (e *echo) endLong() {
	if e.got == len(e.dst) {
		d := e.dst
		e.dst = nil
		e.answer(d)
	}
}

func (e *echo) answer(payload []byte) {
	if e.way == wayLater {
		e.later <- payload
		return
	}
	e.queue(payload)
}

func (e *echo) queue(payload []byte) {
	head := frame(wayNow, nil)
	binary.BigEndian.PutUint32(head, uint32(len(payload)))
	e.mu.Lock()
	e.out = append(e.out, head, payload)
	wake := !e.feeding && !e.sending
	e.mu.Unlock()
	if wake {
		e.conn.Wake()
	}
}

func (e *echo) EndFeed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.feeding = false
	if !e.mine {
		return false
	}
	e.mine = false
	if len(e.out) == 0 {
		e.sending = false
		return false
	}
	return true
}

func (e *echo) Again() bool { return e.again }

func (e *echo) Direct() []byte {
	if e.dst == nil {
		return nil
	}
	return e.dst[e.got:]
}

func (e *echo) Filled(n int) {
	e.got += n
	e.endLong()
}

func (e *echo) WaitRoom() {
	e.mu.Lock()
	for len(e.out) > maxQueue && e.sending {
		e.room.Wait()
	}
	e.mu.Unlock()
}

func (e *echo) BeginSend() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.sending || len(e.out) == 0 || e.failed {
		return false
	}
	e.sending = true
	return true
}

func (e *echo) Gather() [][]byte {
	e.inBatch.Store(false)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.batch, e.out = e.out, nil
	if len(e.batch) == 0 {
		e.sending = false
		e.room.Broadcast()
		return nil
	}
	e.inBatch.Store(true)
	return e.batch
}

// Settle copies what is unsent, and spoils the memory it was in.
func (e *echo) Settle() error {
	e.settled.Add(1)
	for i, v := range e.batch {
		if len(v) > 0 {
			e.batch[i] = append([]byte(nil), v...)
			clear(v)
		}
	}
	return nil
}

func (e *echo) SendFailed(error) {
	e.inBatch.Store(false)
	e.mu.Lock()
	e.sending, e.failed = false, true
	e.room.Broadcast()
	e.mu.Unlock()
}

func (e *echo) Progress()     { e.progress.Add(1) }
func (e *echo) Sending() bool { return e.inBatch.Load() }
