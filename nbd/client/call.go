package client

import (
	"slices"

	"blockgate/internal/sendq"
	"blockgate/nbd"
)

// call is one request and what becomes of it. It belongs to who does it; the
// connection has it from start until its ticket ends.
type call struct {
	req  nbd.Request
	mode nbd.Mode // of the connection
	out  []byte   // WRITE
	in   []byte   // READ

	// err is the server's answer, lost that there is none.
	err  error
	lost error
	got  coverage     // READ: what has arrived
	ext  []nbd.Extent // BLOCK_STATUS
	told bool         // BLOCK_STATUS: our context has been answered

	patience uint32 // ticks of the connection to wait
	tick     uint32 // when it began

	receiving bool // guarded by the connection's mu: the reader is at it
	// An orphan's caller has gone: what arrives is dropped, and ended is called
	// by the reader, or by who ends the connection, in place of ending the ticket.
	ended func()

	// The ticket's holder besides the queue is the reader, or who ends the
	// connection.
	sendq.Ticket
}

// AppendHead implements sendq.Request.
func (x *call) AppendHead(b []byte) []byte { return x.req.Append(b, x.mode) }

// Payload implements sendq.Request.
func (x *call) Payload() []byte { return x.out }

func (x *call) orphan() bool { return x.ended != nil }

// end lets the caller go on.
func (x *call) end() {
	if x.ended != nil {
		x.ended()
		return
	}
	x.Leave()
}

// reset makes the call ready to be sent, again too.
func (x *call) reset() {
	x.err, x.lost, x.told = nil, nil, false
	x.got.spans = x.got.spans[:0]
	x.ext = x.ext[:0]
}

// coverage is which parts of a READ have arrived: ascending, apart from each
// other.
type coverage struct{ spans []span }

type span struct{ from, to uint64 }

// maxSpans is how scattered the chunks of one answer may be.
const maxSpans = 1 << 16

// add takes in a chunk. It reports false if a part of it has been there before,
// which the protocol forbids.
func (c *coverage) add(from, n uint64) bool {
	to := from + n
	i := len(c.spans)
	for i > 0 && c.spans[i-1].from >= from {
		i-- // chunks come in order as a rule: this is short
	}
	if i < len(c.spans) && c.spans[i].from < to || i > 0 && c.spans[i-1].to > from {
		return false
	}
	before, behind := i > 0 && c.spans[i-1].to == from, i < len(c.spans) && c.spans[i].from == to
	switch {
	case before && behind:
		c.spans[i-1].to = c.spans[i].to
		c.spans = slices.Delete(c.spans, i, i+1)
	case before:
		c.spans[i-1].to = to
	case behind:
		c.spans[i].from = from
	case len(c.spans) >= maxSpans:
		return false
	default:
		c.spans = slices.Insert(c.spans, i, span{from, to})
	}
	return true
}

// whole reports whether [from, from+n) is there.
func (c *coverage) whole(from, n uint64) bool {
	return n == 0 || len(c.spans) == 1 && c.spans[0] == span{from, from + n}
}
