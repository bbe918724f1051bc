package tlspsk

import (
	"errors"
	"fmt"
	"io"
	"slices"
)

// Content types.
const (
	typeChangeCipherSpec = 20
	typeAlert            = 21
	typeHandshake        = 22
	typeData             = 23
)

const (
	recordHeader = 5
	maxPlain     = 1 << 14
	maxCipher    = maxPlain + 256
)

// alert is an alert's description (RFC 8446 section 6).
type alert byte

// Alerts that are sent here.
const (
	alertCloseNotify        alert = 0
	alertUnexpectedMessage  alert = 10
	alertBadRecordMAC       alert = 20
	alertRecordOverflow     alert = 22
	alertHandshakeFailure   alert = 40
	alertIllegalParameter   alert = 47
	alertDecodeError        alert = 50
	alertDecryptError       alert = 51
	alertProtocolVersion    alert = 70
	alertInternalError      alert = 80
	alertUserCanceled       alert = 90
	alertMissingExtension   alert = 109
	alertUnknownPSKIdentity alert = 115
)

var alertTexts = map[alert]string{
	alertCloseNotify: "close notify", alertUnexpectedMessage: "unexpected message", alertBadRecordMAC: "bad record MAC",
	alertRecordOverflow: "record overflow", alertHandshakeFailure: "handshake failure", alertIllegalParameter: "illegal parameter",
	alertDecodeError: "decode error", alertDecryptError: "decrypt error", alertProtocolVersion: "protocol version",
	alertInternalError: "internal error", alertUserCanceled: "user canceled", alertMissingExtension: "missing extension",
	alertUnknownPSKIdentity: "unknown PSK identity",
}

func (a alert) String() string {
	if s, ok := alertTexts[a]; ok {
		return s
	}
	return fmt.Sprintf("alert %d", byte(a))
}

// peerError is an alert from the peer.
type peerError alert

func (e peerError) Error() string { return "tlspsk: the peer says: " + alert(e).String() }

// localError is what we end the connection for, and tell the peer.
type localError struct {
	alert alert
	text  string
}

func (e *localError) Error() string { return "tlspsk: " + e.text }

func fault(a alert, format string, args ...any) error {
	return &localError{a, fmt.Sprintf(format, args...)}
}

// ErrTruncated: the connection ended without the peer's saying so.
var ErrTruncated = fmt.Errorf("tlspsk: connection cut off: %w", io.ErrUnexpectedEOF)

// readRecord reads and opens one record. What it gives is good until the next
// call. An error of the network that is a timeout leaves the connection usable.
func (c *Conn) readRecord() (typ byte, p []byte, err error) {
	if err := c.rx.fillTo(recordHeader); err != nil {
		return 0, nil, err
	}
	head := c.rx.unread()[:recordHeader]
	n := int(head[3])<<8 | int(head[4])
	typ = head[0]
	if typ < typeChangeCipherSpec || typ > typeData || head[1] != 3 {
		return 0, nil, fault(alertUnexpectedMessage, "not a TLS record")
	}
	if n > maxCipher || c.in.aead == nil && n > maxPlain {
		return 0, nil, fault(alertRecordOverflow, "record of %d bytes", n)
	}
	if err := c.rx.fillTo(recordHeader + n); err != nil {
		return 0, nil, err
	}
	head = c.rx.unread()[:recordHeader]
	p = c.rx.unread()[recordHeader:][:n]
	c.rx.r += recordHeader + n
	if typ == typeChangeCipherSpec {
		// It means nothing, and is there for machines in between (appendix D.4),
		// behind the first hello and before the last Finished.
		if c.handshaken || c.server != nil && c.in.aead == nil || n != 1 || p[0] != 1 {
			return 0, nil, fault(alertUnexpectedMessage, "change of cipher spec")
		}
		return typ, nil, nil
	}
	if c.in.aead == nil {
		if typ == typeData {
			return 0, nil, fault(alertUnexpectedMessage, "data before the handshake")
		}
		return typ, p, nil
	}
	if typ != typeData {
		return 0, nil, fault(alertUnexpectedMessage, "a record without protection")
	}
	var nonce [ivLen]byte
	p, err = c.in.aead.Open(p[:0], c.in.nonce(&nonce), p, head)
	if err != nil {
		return 0, nil, fault(alertBadRecordMAC, "a record cannot be authenticated")
	}
	if len(p) > maxPlain+1 {
		return 0, nil, fault(alertRecordOverflow, "record of %d bytes", len(p))
	}
	for len(p) > 0 && p[len(p)-1] == 0 {
		p = p[:len(p)-1]
	}
	if len(p) == 0 {
		return 0, nil, fault(alertUnexpectedMessage, "a record of padding only")
	}
	return p[len(p)-1], p[:len(p)-1], nil
}

// appendRecord appends a record with at most maxPlain bytes of p.
func (c *Conn) appendRecord(b []byte, typ byte, p []byte) []byte {
	if c.out.aead == nil {
		b = append(b, typ, 3, 3, byte(len(p)>>8), byte(len(p)))
		return append(b, p...)
	}
	n := len(p) + 1 + tagLen
	at := len(b)
	b = slices.Grow(b, recordHeader+n) // sealed in place
	b = append(b, typeData, 3, 3, byte(n>>8), byte(n))
	b = append(b, p...)
	b = append(b, typ)
	var nonce [ivLen]byte
	sealed := c.out.aead.Seal(b[at+recordHeader:at+recordHeader], c.out.nonce(&nonce), b[at+recordHeader:], b[at:at+recordHeader])
	return b[:at+recordHeader+len(sealed)]
}

// takeAlert reads an alert; its error is io.EOF for a farewell.
func takeAlert(p []byte) error {
	if len(p) != 2 {
		return fault(alertDecodeError, "alert of %d bytes", len(p))
	}
	switch a := alert(p[1]); a {
	case alertCloseNotify:
		return io.EOF
	case alertUserCanceled:
		return nil // a farewell follows
	default:
		return peerError(a)
	}
}

// local gives the alert that an error has the peer told, if any.
func local(err error) (alert, bool) {
	var l *localError
	if errors.As(err, &l) {
		return l.alert, true
	}
	return 0, false
}
