package iscsi

import "fmt"

// TextReply cuts text that is longer than a data segment into pieces for
// successive PDUs (RFC 7143 §6.2): all but the last are sent with the C bit, and
// the peer asks for each next one with an empty PDU. The zero value has nothing
// to send.
type TextReply struct {
	rest    []byte
	max     int
	pending bool
}

// NewTextReply starts the sending of data in pieces of at most limit bytes
// (MaxXmitDataSegment; 8192 during login). Fewer than 512 is taken as 512, the
// least a peer may declare. It keeps data, which must not change meanwhile.
func NewTextReply(data []byte, limit int) *TextReply {
	r := new(TextReply)
	r.reset(data, limit)
	return r
}

func (r *TextReply) reset(data []byte, limit int) {
	r.rest, r.max, r.pending = data, max(limit, minSegment), true
}

// Next gives the next piece, empty if there was no text at all, and whether
// another follows it (the C bit). The piece is part of the data given at first.
func (r *TextReply) Next() (piece []byte, more bool) {
	n := min(len(r.rest), r.max)
	piece, r.rest = r.rest[:n:n], r.rest[n:]
	r.pending = len(r.rest) > 0
	return piece, r.pending
}

// Pending reports whether Next has something left to give.
func (r *TextReply) Pending() bool { return r.pending }

// TextGather puts together text that the peer sends in several PDUs with the C
// bit. The zero value is ready and takes MaxText bytes.
type TextGather struct {
	Limit int // bytes; 0: MaxText
	buf   []byte
	open  bool
}

// Add takes the data segment of one PDU; more is its C bit. When the text is
// complete it is parsed and done is true. Once an error was returned the
// negotiation is over; the gathered text is dropped. It does not keep data.
func (g *TextGather) Add(data []byte, more bool) (kvs []KV, done bool, err error) {
	limit := g.Limit
	if limit <= 0 {
		limit = MaxText
	}
	if len(g.buf)+len(data) > limit {
		g.buf, g.open = nil, false
		return nil, false, fmt.Errorf("%w: more than %d bytes in one negotiation", ErrTextTooLong, limit)
	}
	if more {
		g.buf, g.open = append(g.buf, data...), true
		return nil, false, nil
	}
	if g.open {
		data = append(g.buf, data...)
		g.buf, g.open = nil, false
	}
	kvs, err = ParseText(data, limit)
	return kvs, err == nil, err
}

// Open reports whether a text has begun and its end is still to come.
func (g *TextGather) Open() bool { return g.open }

// SendTargetsText is the answer to SendTargets (RFC 7143 appendix C): for each
// target its name and then its portals. Aliases are left out: the appendix has none,
// and there are initiators that stop at a key they do not know. The caller sends
// it through a TextReply.
func SendTargetsText(recs []TargetRecord) []byte {
	var out []byte
	for i := range recs {
		out = AppendText(out, "TargetName", recs[i].Name)
		for _, p := range recs[i].Portals {
			out = AppendText(out, "TargetAddress", p)
		}
	}
	return out
}

// ParseTargets is the initiator's side of SendTargetsText. Keys other than those
// of target records are ignored; an address before any name is an error.
func ParseTargets(kvs []KV) ([]TargetRecord, error) {
	var recs []TargetRecord
	for _, kv := range kvs {
		if kv.Key == "TargetName" {
			recs = append(recs, TargetRecord{Name: kv.Value})
			continue
		}
		if kv.Key != "TargetAddress" && kv.Key != "TargetAlias" {
			continue
		}
		if len(recs) == 0 {
			return nil, fmt.Errorf("%w: %s before any TargetName", ErrTextSyntax, kv.Key)
		}
		last := &recs[len(recs)-1]
		if kv.Key == "TargetAlias" {
			last.Alias = kv.Value
		} else {
			last.Portals = append(last.Portals, kv.Value)
		}
	}
	return recs, nil
}
