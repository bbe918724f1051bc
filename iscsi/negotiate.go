package iscsi

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// negotiator applies the key table for one end of one login. Both ends use the
// same one: a target answers what the initiator offers, an initiator concludes
// from the answers to what it offered, and either answers what the other proposes
// of its own accord.
type negotiator struct {
	offer     *Offer // ours
	leading   bool   // the first connection of a session
	discovery bool
	p         Params // the outcome so far
}

func newNegotiator(offer *Offer, leading, discovery bool) *negotiator {
	return &negotiator{offer: offer, leading: leading, discovery: discovery, p: DefaultParams()}
}

// relevant says whether a key means something on this connection.
func (n *negotiator) relevant(d *keyDef) bool {
	return (!d.lead || n.leading) && (!d.normal || !n.discovery)
}

// respondAll answers the offers of the peer in their order.
func (n *negotiator) respondAll(kvs []KV) []KV {
	// FirstBurstLength must not exceed MaxBurstLength, and may come before it.
	if d := lookupKey("MaxBurstLength"); n.relevant(d) {
		if v, ok := Lookup(kvs, d.name); ok {
			n.respond(KV{d.name, v})
		}
	}
	var out []KV
	for _, kv := range kvs {
		if v, reply := n.respond(kv); reply {
			out = append(out, KV{kv.Key, v})
		}
	}
	return out
}

// respond decides on one offered key. reply is false for declarations that are
// accepted in silence.
func (n *negotiator) respond(kv KV) (answer string, reply bool) {
	d := lookupKey(kv.Key)
	if d == nil {
		return ValueNotUnderstood, kv.Value != ValueNotUnderstood
	}
	if !n.relevant(d) {
		return ValueIrrelevant, true
	}
	switch d.rule {
	case ruleFixed:
		return d.fixed, true
	case ruleList:
		v, ok := chooseFrom(kv.Value, d.list(n.offer))
		if !ok {
			return ValueReject, true
		}
		if d.flag != nil {
			*d.flag(&n.p) = v == "CRC32C"
		}
		return v, true
	case ruleOr, ruleAnd:
		theirs, ok := parseBool(kv.Value)
		if !ok {
			return ValueReject, true
		}
		v := combineBool(d.rule, *d.flag(&n.offer.Params), theirs)
		*d.flag(&n.p) = v
		return formatBool(v), true
	}
	theirs, ok := parseNumber(kv.Value)
	if !ok || theirs < d.lo || theirs > d.hi {
		return ValueReject, true
	}
	if d.rule == ruleDeclare {
		n.declare(theirs)
		return "", false
	}
	if d.num == nil { // iSCSIProtocolLevel
		return strconv.Itoa(min(theirs, protocolLevel)), true
	}
	v := combineNumber(d, *d.num(&n.offer.Params), theirs)
	if d.name == "FirstBurstLength" {
		v = min(v, n.p.MaxBurst)
	}
	*d.num(&n.p) = v
	return strconv.Itoa(v), true
}

// declare takes the peer's MaxRecvDataSegmentLength.
func (n *negotiator) declare(theirs int) {
	n.p.MaxXmitDataSegment = theirs
	if c := n.offer.MaxXmitCap; c > 0 {
		n.p.MaxXmitDataSegment = min(theirs, max(c, minSegment))
	}
}

// ownSegment is the MaxRecvDataSegmentLength we declare.
func (n *negotiator) ownSegment() int {
	return min(max(n.offer.MaxRecvDataSegment, minSegment), maxSegment)
}

// offers are the keys an initiator sends, in order; MaxRecvDataSegmentLength is
// among them.
func (n *negotiator) offers() []KV {
	var out []KV
	for i := range keyDefs {
		d := &keyDefs[i]
		if !n.relevant(d) {
			continue
		}
		switch {
		case d.rule == ruleDeclare:
			out = append(out, KV{d.name, strconv.Itoa(n.ownSegment())})
		case d.rule == ruleList && d.flag != nil:
			if l := d.list(n.offer); len(l) > 0 {
				out = append(out, KV{d.name, strings.Join(l, ",")})
			}
		case d.num != nil:
			out = append(out, KV{d.name, strconv.Itoa(min(max(*d.num(&n.offer.Params), d.lo), d.hi))})
		case d.flag != nil:
			out = append(out, KV{d.name, formatBool(*d.flag(&n.offer.Params))})
		}
	}
	return out
}

// conclude takes the answer to a key that we offered and refuses one that the
// rule cannot yield. Reject, Irrelevant and NotUnderstood leave the default in
// force; that is an error only for a digest list without None.
func (n *negotiator) conclude(offered, answer KV) error {
	d := lookupKey(answer.Key)
	if d == nil {
		return nil // a key of the caller's own; it reads the answer itself
	}
	bad := func() error {
		return fmt.Errorf("%w: %s was answered to %s", ErrNegotiation, answer, offered)
	}
	if isConstant(answer.Value) {
		if d.rule == ruleList && d.flag != nil && !slices.Contains(strings.Split(offered.Value, ","), ValueNone) {
			return bad()
		}
		return nil
	}
	switch d.rule {
	case ruleList:
		if !slices.Contains(strings.Split(offered.Value, ","), answer.Value) {
			return bad()
		}
		if d.flag != nil {
			*d.flag(&n.p) = answer.Value == "CRC32C"
		}
	case ruleOr, ruleAnd:
		mine, ok1 := parseBool(offered.Value)
		theirs, ok2 := parseBool(answer.Value)
		if !ok1 || !ok2 || combineBool(d.rule, mine, theirs) != theirs {
			return bad()
		}
		*d.flag(&n.p) = theirs
	case ruleDeclare:
		v, ok := parseNumber(answer.Value)
		if !ok || v < d.lo || v > d.hi {
			return bad()
		}
		n.declare(v)
	case ruleMin, ruleMax:
		mine, ok1 := parseNumber(offered.Value)
		v, ok2 := parseNumber(answer.Value)
		if !ok1 || !ok2 || v < d.lo || v > d.hi || d.rule == ruleMin && v > mine || d.rule == ruleMax && v < mine {
			return bad()
		}
		if d.num != nil {
			*d.num(&n.p) = v
		}
	}
	return nil
}

// result closes the negotiation.
func (n *negotiator) result() Params {
	p := n.p
	p.FirstBurst = min(p.FirstBurst, p.MaxBurst) // RFC 7143 §13.14
	return p
}

// chooseFrom takes the first of the offered comma list that is among ours, as a
// responder must (RFC 7143 §6.2.1).
func chooseFrom(offered string, ours []string) (string, bool) {
	for v := range strings.SplitSeq(offered, ",") {
		if v != "" && slices.Contains(ours, v) {
			return v, true
		}
	}
	return "", false
}

func combineBool(r rule, a, b bool) bool {
	if r == ruleOr {
		return a || b
	}
	return a && b
}

// combineNumber brings our own value into the key's range first: an offer that
// was never validated must not make us answer outside of it.
func combineNumber(d *keyDef, ours, theirs int) int {
	ours = min(max(ours, d.lo), d.hi)
	if d.rule == ruleMax {
		return max(ours, theirs)
	}
	return min(ours, theirs)
}

func parseBool(s string) (v, ok bool) { return s == ValueYes, s == ValueYes || s == ValueNo }

func formatBool(v bool) string {
	if v {
		return ValueYes
	}
	return ValueNo
}

// NegotiateFullFeature answers the keys of a Text Request in the full feature
// phase, except SendTargets, which the caller takes out first. Only
// MaxRecvDataSegmentLength may change then (RFC 7143 §13.12); it sets
// p.MaxXmitDataSegment, to be used from the response on. Other keys we know are
// rejected, unknown ones are not understood. An error means that the text breaks
// the protocol (a repeated key, security keys): the caller rejects the PDU.
func NegotiateFullFeature(p *Params, offer *Offer, kvs []KV) (answer []KV, err error) {
	n := negotiator{offer: offer, leading: true, p: *p}
	seen := make(map[string]struct{}, len(kvs))
	for _, kv := range kvs {
		if _, dup := seen[kv.Key]; dup {
			return nil, fmt.Errorf("%w: %s", ErrTextDuplicate, kv.Key)
		}
		seen[kv.Key] = struct{}{}
		switch {
		case kv.Key == "MaxRecvDataSegmentLength":
			if v, reply := n.respond(kv); reply {
				answer = append(answer, KV{kv.Key, v})
			}
		case kv.Key == "InitiatorAlias", isTargetKey(kv.Key) && isConstant(kv.Value):
		case isSecurityKey(kv.Key):
			return nil, fmt.Errorf("%w: %s outside of the security stage", ErrNegotiation, kv.Key)
		case lookupKey(kv.Key) != nil, isNamingKey(kv.Key), isTargetKey(kv.Key), kv.Key == "SendTargets":
			answer = append(answer, KV{kv.Key, ValueReject})
		case kv.Value != ValueNotUnderstood:
			answer = append(answer, KV{kv.Key, ValueNotUnderstood})
		}
	}
	p.MaxXmitDataSegment = n.p.MaxXmitDataSegment
	return answer, nil
}
