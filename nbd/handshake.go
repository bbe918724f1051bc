package nbd

import (
	"encoding/binary"
	"strings"
	"unicode/utf8"
)

var be = binary.BigEndian

// Lengths of the fixed parts of the handshake, in bytes.
const (
	GreetingLen          = 18
	ClientFlagsLen       = 4
	OptionHeaderLen      = 16
	OptionReplyHeaderLen = 20
	// ExportNameReplyLen is that of the answer to EXPORT_NAME, behind which come
	// ExportNameZeroes zeroes unless both ends have agreed on NoZeroes.
	ExportNameReplyLen = 10
	ExportNameZeroes   = 124
)

// AppendGreeting appends what a newstyle server begins with.
func AppendGreeting(b []byte, f HandshakeFlags) []byte {
	b = be.AppendUint64(b, Magic)
	b = be.AppendUint64(b, OptionMagic)
	return be.AppendUint16(b, uint16(f))
}

// DecodeGreeting reads a greeting of GreetingLen bytes. The error tells servers
// that speak oldstyle only from those that do not speak NBD.
func DecodeGreeting(p []byte) (HandshakeFlags, error) {
	if len(p) < GreetingLen || be.Uint64(p) != Magic {
		return 0, malformed("not an NBD server")
	}
	switch be.Uint64(p[8:]) {
	case OptionMagic:
		return HandshakeFlags(be.Uint16(p[16:])), nil
	case OldstyleMagic:
		return 0, malformed("the server speaks oldstyle negotiation only")
	}
	return 0, malformed("unknown style of negotiation")
}

// AppendClientFlags appends the client's answer to the greeting.
func AppendClientFlags(b []byte, f ClientFlags) []byte { return be.AppendUint32(b, uint32(f)) }

// DecodeClientFlags reads ClientFlagsLen bytes. Unknown flags are an error: the
// server has to close the connection.
func DecodeClientFlags(p []byte) (ClientFlags, error) {
	if len(p) < ClientFlagsLen {
		return 0, malformed("client flags of %d bytes", len(p))
	}
	f := ClientFlags(be.Uint32(p))
	if bad := f &^ (ClientFixedNewstyle | ClientNoZeroes); bad != 0 {
		return 0, malformed("unknown client flags %#x", uint32(bad))
	}
	return f, nil
}

// OptionHeader goes before the Length bytes of an option's data.
type OptionHeader struct {
	Option Option
	Length uint32
}

// Append appends the header.
func (h OptionHeader) Append(b []byte) []byte {
	b = be.AppendUint64(b, OptionMagic)
	b = be.AppendUint32(b, uint32(h.Option))
	return be.AppendUint32(b, h.Length)
}

// DecodeOptionHeader reads OptionHeaderLen bytes.
func DecodeOptionHeader(p []byte) (OptionHeader, error) {
	if len(p) < OptionHeaderLen || be.Uint64(p) != OptionMagic {
		return OptionHeader{}, malformed("not an option")
	}
	return OptionHeader{Option(be.Uint32(p[8:])), be.Uint32(p[12:])}, nil
}

// AppendOption appends a whole option.
func AppendOption(b []byte, o Option, data []byte) []byte {
	return append(OptionHeader{o, uint32(len(data))}.Append(b), data...)
}

// OptionReplyHeader goes before the Length bytes of a reply's data.
type OptionReplyHeader struct {
	Option Option // which is answered
	Type   ReplyType
	Length uint32
}

// Append appends the header.
func (h OptionReplyHeader) Append(b []byte) []byte {
	b = be.AppendUint64(b, OptionReplyMagic)
	b = be.AppendUint32(b, uint32(h.Option))
	b = be.AppendUint32(b, uint32(h.Type))
	return be.AppendUint32(b, h.Length)
}

// DecodeOptionReplyHeader reads OptionReplyHeaderLen bytes.
func DecodeOptionReplyHeader(p []byte) (OptionReplyHeader, error) {
	if len(p) < OptionReplyHeaderLen || be.Uint64(p) != OptionReplyMagic {
		return OptionReplyHeader{}, malformed("not a reply to an option")
	}
	return OptionReplyHeader{Option(be.Uint32(p[8:])), ReplyType(be.Uint32(p[12:])), be.Uint32(p[16:])}, nil
}

// AppendOptionReply appends a whole reply.
func AppendOptionReply(b []byte, o Option, t ReplyType, data []byte) []byte {
	return append(OptionReplyHeader{o, t, uint32(len(data))}.Append(b), data...)
}

// AppendExportNameReply appends the answer to EXPORT_NAME, with its zeroes if
// asked for.
func AppendExportNameReply(b []byte, size uint64, f TransmissionFlags, zeroes bool) []byte {
	b = be.AppendUint64(b, size)
	b = be.AppendUint16(b, uint16(f))
	if zeroes {
		b = append(b, make([]byte, ExportNameZeroes)...)
	}
	return b
}

// DecodeExportNameReply reads ExportNameReplyLen bytes.
func DecodeExportNameReply(p []byte) (size uint64, f TransmissionFlags, err error) {
	if len(p) < ExportNameReplyLen {
		return 0, 0, malformed("an export of %d bytes", len(p))
	}
	return be.Uint64(p), TransmissionFlags(be.Uint16(p[8:])), nil
}

// ValidName reports whether s may be a name, a query or a message: UTF-8 of at
// most MaxString bytes without NUL.
func ValidName(s string) bool {
	return len(s) <= MaxString && utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}

// ServerEntry is an export in the answer to LIST.
type ServerEntry struct{ Name, Description string }

// Append appends the data of a RepServer.
func (e ServerEntry) Append(b []byte) []byte {
	b = be.AppendUint32(b, uint32(len(e.Name)))
	b = append(b, e.Name...)
	return append(b, e.Description...)
}

// DecodeServerEntry reads the data of a RepServer.
func DecodeServerEntry(p []byte) (ServerEntry, error) {
	name, rest, err := takeString(p)
	if err != nil {
		return ServerEntry{}, err
	}
	return ServerEntry{name, string(rest)}, nil
}

// takeString cuts a string with a 32-bit length off the front.
func takeString(p []byte) (string, []byte, error) {
	if len(p) < 4 {
		return "", nil, malformed("string without a length")
	}
	n := be.Uint32(p)
	p = p[4:]
	if n > MaxString || int(n) > len(p) {
		return "", nil, malformed("string of %d bytes in %d", n, len(p))
	}
	s := string(p[:n])
	if !ValidName(s) {
		return "", nil, malformed("string is not UTF-8 or holds NUL")
	}
	return s, p[n:], nil
}
