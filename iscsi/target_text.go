package iscsi

import (
	"fmt"
	"slices"
)

// textExchange is a Text negotiation in progress (RFC 7143 §11.10, §11.11). A
// connection has one at a time; TargetConn.textMu guards it.
type textExchange struct {
	itt, ttt uint32
	in       TextGather
	out      *TextReply // nil until the request is complete
	active   bool
}

// textRequest takes a Text Request. Keys may be spread over several requests by
// the C bit, the answer over several responses likewise.
func (c *TargetConn) textRequest(h *BHS, data []byte) error {
	// A request that was held runs on another connection's goroutine.
	c.textMu.Lock()
	defer c.textMu.Unlock()
	x := &c.text
	final, more := h.Flags()&FlagFinal != 0, h.Flags()&FlagContinue != 0
	if final && more {
		c.rejectCommand(h, RejectProtocolError)
		return nil
	}
	switch {
	case h.TTT() == ReservedTag:
		// A new exchange resets one that was not finished (RFC 7143 §11.10.4).
		*x = textExchange{itt: h.ITT(), active: true}
	case !x.active || h.TTT() != x.ttt || h.ITT() != x.itt:
		c.rejectCommand(h, RejectInvalidPDUField)
		return nil
	}
	if x.out == nil {
		kvs, done, err := x.in.Add(data, more)
		if err != nil {
			*x = textExchange{}
			c.rejectCommand(h, RejectProtocolError)
			return nil
		}
		if !done {
			c.textResponse(h, nil, false, false)
			return nil
		}
		limit := int(c.maxXmit.Load()) // what this exchange changes holds after it
		answer, err := c.textAnswer(kvs)
		if err != nil {
			*x = textExchange{}
			c.log.Warn("iscsi: text negotiation refused", "initiator", c.peer.Name, "err", err)
			c.rejectCommand(h, RejectProtocolError)
			return nil
		}
		x.out = NewTextReply(answer, limit)
	}
	piece, rest := x.out.Next()
	// A copy, so that what waits to be sent does not hold the whole text, and its
	// length is what it costs.
	piece = append([]byte(nil), piece...)
	c.textResponse(h, piece, rest, final && !rest)
	if final && !rest {
		*x = textExchange{}
	} else if !rest {
		x.out = nil
	}
	return nil
}

func (c *TargetConn) textResponse(h *BHS, data []byte, more, final bool) {
	p := &reply{data: data, numbered: !h.Immediate()}
	p.bhs.SetOpcode(OpTextResp, false)
	p.bhs.SetITT(h.ITT())
	p.bhs.SetLUN(h.LUN())
	p.bhs.SetTTT(ReservedTag)
	if final {
		p.bhs.SetFlags(FlagFinal)
	} else {
		c.mu.Lock()
		c.text.ttt = c.newTTT()
		c.mu.Unlock()
		p.bhs.SetTTT(c.text.ttt)
		if more {
			p.bhs.SetFlags(FlagContinue)
		}
	}
	c.queue(outItem{kind: outPDU, pdu: p})
}

// textAnswer answers a complete set of keys.
func (c *TargetConn) textAnswer(kvs []KV) ([]byte, error) {
	var out []byte
	var rest []KV
	for _, kv := range kvs {
		if kv.Key != "SendTargets" {
			rest = append(rest, kv)
			continue
		}
		records, err := c.sendTargets(kv.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, records...)
	}
	if len(rest) == 0 {
		return out, nil
	}
	offer := DefaultOffer()
	if c.sess.Access != nil {
		offer = c.sess.Access.Offer
	}
	p := c.params
	p.MaxXmitDataSegment = int(c.maxXmit.Load())
	answer, err := NegotiateFullFeature(&p, &offer, rest)
	if err != nil {
		return nil, err
	}
	if len(answer) == len(kvs) && !slices.ContainsFunc(answer, understood) && slices.ContainsFunc(rest, stray) {
		return nil, fmt.Errorf("%w: %s is no key", ErrNegotiation, rest[0].Key)
	}
	c.maxXmit.Store(int64(p.MaxXmitDataSegment))
	for _, kv := range answer {
		out = AppendText(out, kv.Key, kv.Value)
	}
	return out, nil
}

// sendTargets answers SendTargets=All, =name or an empty value, which means the
// session's own target (RFC 7143 appendix C). In a normal session All is
// answered like the empty value: initiators ask for it, and refusing it helps
// nobody, but a session learns nothing of targets it is not logged in to.
//
// Any other value fails the negotiation, which in the full feature phase ends it
// without touching the session (RFC 7143 §7.12): initiators that take an answer
// to SendTargets for records could not make out a "Reject" among them.
func (c *TargetConn) sendTargets(value string) ([]byte, error) {
	refused := fmt.Errorf("%w: SendTargets=%.256s", ErrNegotiation, value)
	name := value
	if c.sess.Access != nil {
		if value == "" || value == "All" {
			name = c.sess.Target()
		} else if value != c.sess.Target() {
			return nil, refused
		}
	} else if value == "All" {
		name = ""
	} else if value == "" {
		return nil, refused
	}
	return SendTargetsText(c.sess.dir.Targets(name, c.peer)), nil
}

// understood: the answer says more than that the key is not known.
func understood(kv KV) bool { return kv.Value != ValueNotUnderstood }

// stray: a key that no standard and no extension has, or a misspelt one. One
// among others is NotUnderstood, as extension keys always are (RFC 7143 §6.2); a
// request of nothing else has no purpose in the full feature phase, where keys
// are declared or asked for one by one, and fails.
func stray(kv KV) bool {
	return len(kv.Key) < 2 || kv.Key[1] != '-' && kv.Key[1] != '#' || kv.Key[0] < 'X' || kv.Key[0] > 'Z'
}
