package tgt

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
)

// The management protocol of tgt's daemon, on its unix socket: one request and
// one answer for each connection, in the host's byte order. A request is a
// header of wireHeader bytes and a text that ends with a zero byte; an answer
// is an error code, the length of it all, and a text that ends with one too.
const (
	wireHeader = 120
	// wireLimit bounds a request. tgtadm's own buffer has 8 KiB.
	wireLimit = 64 << 10
	// wireDiscard bounds what is read and answered of those that are longer.
	wireDiscard = 1 << 20
	wireAnswer  = 8 // bytes before an answer's text
)

// wireCommand, as the mode, is our own: the text is a tgtadm command line as
// JSON, which values with commas in them survive. Like those of tgt it begins
// with a byte that no text begins with, in either byte order.
const wireCommand = 0x01676201

// Offsets in the header.
const (
	atMode     = 0
	atOp       = 4
	atDriver   = 8 // 64 bytes, ends with a zero byte
	atLength   = 72
	atTID      = 76
	atSID      = 80
	atLUN      = 88
	atCID      = 96
	atDevice   = 104
	atOutgoing = 108
	atForce    = 116
)

var wire = binary.NativeEndian

// wireLength is the length of a whole request by its header. With an error, it is
// that of one that is too long, or 0.
func wireLength(header []byte) (int, error) {
	n := wire.Uint32(header[atLength:])
	switch {
	case n < wireHeader:
		return 0, fmt.Errorf("a request of %d bytes", n)
	case n > wireLimit:
		return int(n), fmt.Errorf("a request of %d bytes", n)
	}
	return int(n), nil
}

// decodeRequest takes a request of tgt's protocol apart. What tgtadm checks
// before it sends is not checked here.
func decodeRequest(b []byte) (*request, error) {
	m, o := wire.Uint32(b[atMode:]), wire.Uint32(b[atOp:])
	if m > uint32(modeAccount) || o > uint32(opStop) {
		return nil, fmt.Errorf("there is no operation %d of mode %d", o, m)
	}
	driver, _, ended := bytes.Cut(b[atDriver:atLength], []byte{0})
	if !ended {
		return nil, fmt.Errorf("the driver's name has no end")
	}
	r := &request{
		mode: mode(m), op: op(o), driver: string(driver),
		tid: int(int32(wire.Uint32(b[atTID:]))), sid: wire.Uint64(b[atSID:]), lun: wire.Uint64(b[atLUN:]), cid: wire.Uint32(b[atCID:]),
		outgoing: wire.Uint32(b[atOutgoing:]) != 0, force: wire.Uint32(b[atForce:]) != 0,
	}
	var known bool
	if r.deviceType, known = deviceOf(wire.Uint32(b[atDevice:])); !known {
		return nil, fmt.Errorf("there is no device type %#x", wire.Uint32(b[atDevice:]))
	}
	text, _, _ := bytes.Cut(b[wireHeader:], []byte{0})
	r.decodeText(string(text))
	if r.mode == modeTarget && (r.op == opBind || r.op == opUnbind) && !r.hasAddress && !r.hasInitiator {
		r.host = true // that is what is left: a SCSI host by its number
	}
	return r, nil
}

// deviceOf is the device type with a number: the peripheral device types of
// SPC-4, and one for devices that are passed through.
func deviceOf(n uint32) (string, bool) {
	t, ok := map[uint32]string{0: "disk", 1: "tape", 5: "cd", 8: "changer", 0x11: "osd", 0xff: "pt"}[n]
	return t, ok
}

// decodeText takes the text of a request apart: "key=value" parts in a fixed
// order, each only if given, with commas between them that nothing tells from
// those within a value. So it is read from its end, each key at most once: what
// looks like a second one belongs to the value before it.
func (r *request) decodeText(text string) {
	switch {
	case text == "":
		return
	case r.op == opUpdate && (r.mode == modeTarget || r.mode == modeSystem):
		r.name, r.value, r.hasPair.value = strings.Cut(text, "=")
		r.hasPair.name = true
		return
	}
	for _, head := range []string{"targetOps ", "portalOps "} {
		before, params, found := strings.Cut(","+text, ","+head)
		if found {
			text = strings.TrimPrefix(before, ",")
			r.params, r.hasParams = strings.TrimSuffix(params, ","), true
			break
		}
	}
	take := func(key string) (value string, found bool) {
		i := strings.LastIndex(","+text, ","+key+"=")
		if i < 0 {
			return "", false
		}
		value = text[i+len(key)+1:]
		text = text[:max(i-1, 0)]
		return value, true
	}
	r.password, r.hasPassword = take("password")
	r.user, r.hasUser = take("user")
	r.initiator, r.hasInitiator = take("initiator-name")
	r.address, r.hasAddress = take("initiator-address")
	r.targetName, _ = take("targetname")
	r.blockSize, _ = take("blocksize")
	r.bsflags, _ = take("bsoflags")
	r.bsopts, _ = take("bsopts")
	r.bstype, _ = take("bstype")
	r.path, _ = take("path")
}

// encodeAnswer is an answer of tgt's protocol.
func encodeAnswer(code uint32, text string) []byte {
	n := wireAnswer
	if text != "" {
		n += len(text) + 1
	}
	b := make([]byte, wireAnswer, n)
	wire.PutUint32(b, code)
	wire.PutUint32(b[4:], uint32(n))
	if text != "" {
		b = append(append(b, text...), 0)
	}
	return b
}

// errorCode is the number of one of tgt's messages.
func errorCode(message string) uint32 {
	for code, m := range map[uint32]string{
		3: msgNoDriver, 4: msgNoTarget, 5: msgNoUnit, 6: msgNoSession, 7: msgNoConnection, 9: msgTargetExists,
		10: msgUnitExists, 12: msgRuleExists, 13: msgNoRule, 14: msgAccountExists, 15: msgNoAccount, 17: msgInvalid,
		18: msgOutgoingExists, 19: msgTargetActive, 20: msgUnitActive, 21: msgDriverBusy, 22: msgNotSupported,
		24: msgPreventsRemoval,
	} {
		if m == message {
			return code
		}
	}
	return 1 // unknown error
}
