package pr

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"unicode/utf8"
)

// TransportIDs of iSCSI (SPC-4 §7.6.4.6):
//
//	byte 0    FORMAT CODE (bits 7-6), PROTOCOL IDENTIFIER (bits 3-0, 5h)
//	byte 2-3  ADDITIONAL LENGTH, at least 20 and a multiple of four
//	byte 4-   00b: name; 01b: name ",i,0x" ISID as 12 hexadecimal digits;
//	          both null terminated and null padded
const (
	protocolISCSI  = 0x05
	formatNode     = 0x00
	formatPort     = 0x40
	isidSeparator  = ",i,0x"
	minTransportID = 24
	maxName        = 223 // bytes in an iSCSI name (RFC 7143 §4.2.7.1)
)

// Errors of ParseTransportID.
var (
	ErrTruncated          = errors.New("TransportID is cut off")
	ErrInvalidTransportID = errors.New("not a TransportID of an iSCSI initiator")
)

// transportIDLen is the number of bytes AppendTransportID writes.
func transportIDLen(p Port) int {
	n := len(p.Name) + 1
	if p.HasISID {
		n += len(isidSeparator) + 2*len(p.ISID)
	}
	return 4 + max(20, (n+3)&^3)
}

// AppendTransportID appends the TransportID of p to dst: format 01b with the
// ISID, format 00b if the port has none.
func AppendTransportID(dst []byte, p Port) []byte {
	n := transportIDLen(p)
	end := len(dst) + n
	format := byte(formatNode)
	if p.HasISID {
		format = formatPort
	}
	dst = append(dst, format|protocolISCSI, 0)
	dst = binary.BigEndian.AppendUint16(dst, uint16(n-4))
	dst = append(dst, p.Name...)
	if p.HasISID {
		dst = append(dst, isidSeparator...)
		dst = hex.AppendEncode(dst, p.ISID[:])
	}
	return append(dst, make([]byte, end-len(dst))...)
}

// ParseTransportID reads the TransportID at the start of b and gives the
// initiator port and the bytes it took. A port without HasISID means format 00b:
// every port of the node. The error is ErrTruncated if b ends before the
// TransportID does, else ErrInvalidTransportID. An ISID of fewer than twelve
// digits is taken as a number, its leading zeros left out.
func ParseTransportID(b []byte) (p Port, n int, err error) {
	if len(b) < 4 {
		return Port{}, 0, ErrTruncated
	}
	format := b[0] & 0xc0
	if b[0]&0x0f != protocolISCSI || format != formatNode && format != formatPort {
		return Port{}, 0, ErrInvalidTransportID
	}
	n = 4 + int(binary.BigEndian.Uint16(b[2:]))
	if n < minTransportID || n%4 != 0 {
		return Port{}, 0, ErrInvalidTransportID
	}
	if n > len(b) {
		return Port{}, 0, ErrTruncated
	}
	text, _, terminated := strings.Cut(string(b[4:n]), "\x00")
	if !terminated {
		return Port{}, 0, ErrInvalidTransportID
	}
	p.Name = text
	if format == formatPort {
		name, digits, found := strings.Cut(text, isidSeparator)
		if !found || len(digits) == 0 || len(digits) > 12 {
			return Port{}, 0, ErrInvalidTransportID
		}
		digits = strings.Repeat("0", 12-len(digits)) + digits
		if _, err := hex.Decode(p.ISID[:], []byte(digits)); err != nil {
			return Port{}, 0, ErrInvalidTransportID
		}
		p.Name, p.HasISID = name, true
	}
	if !validName(p.Name) {
		return Port{}, 0, ErrInvalidTransportID
	}
	return p, n, nil
}

// validName keeps out what no iSCSI name contains and what would not survive the
// way through a TransportID or the saved state; the finer rules are the login's.
func validName(s string) bool {
	if len(s) == 0 || len(s) > maxName || !utf8.ValidString(s) {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == ',' || s[i] == 0x7f {
			return false
		}
	}
	return true
}
