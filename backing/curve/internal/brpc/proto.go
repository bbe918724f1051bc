// Package brpc is the client side of brpc's own protocol, baidu_std: frames of a
// header, a meta message, a message and an attachment, both messages in protocol
// buffers' encoding.
package brpc

import (
	"encoding/binary"
	"errors"
)

// ErrProto: a message that is not in protocol buffers' encoding.
var ErrProto = errors.New("brpc: malformed message")

// The wire types in use. Groups are not.
const (
	Varint  = 0
	Fixed64 = 1
	Bytes   = 2
	Fixed32 = 5
)

// Field is one field of a message.
type Field struct {
	Num   int
	Type  int
	Uint  uint64 // Varint, Fixed64, Fixed32
	Bytes []byte // Bytes; part of the message
}

// Int32 is a field of the types int32 and enum, whose negative values are sent
// with 64 bits.
func (f *Field) Int32() int32 { return int32(f.Uint) }

// Next reads the first field of b. It neither copies nor allocates.
func Next(b []byte) (f Field, rest []byte, err error) {
	key, n := binary.Uvarint(b)
	if n <= 0 || key>>3 == 0 || key>>3 >= 1<<29 {
		return Field{}, nil, ErrProto
	}
	b = b[n:]
	f.Num, f.Type = int(key>>3), int(key&7)
	switch f.Type {
	case Varint:
		if f.Uint, n = binary.Uvarint(b); n <= 0 {
			return Field{}, nil, ErrProto
		}
	case Fixed64:
		if n = 8; len(b) < n {
			return Field{}, nil, ErrProto
		}
		f.Uint = binary.LittleEndian.Uint64(b)
	case Fixed32:
		if n = 4; len(b) < n {
			return Field{}, nil, ErrProto
		}
		f.Uint = uint64(binary.LittleEndian.Uint32(b))
	case Bytes:
		size, k := binary.Uvarint(b)
		if k <= 0 || size > uint64(len(b)-k) {
			return Field{}, nil, ErrProto
		}
		n = k + int(size)
		f.Bytes = b[k:n]
	default:
		return Field{}, nil, ErrProto
	}
	return f, b[n:], nil
}

// AppendUint appends a field of the types uint64, uint32 and bool.
func AppendUint(b []byte, num int, v uint64) []byte {
	b = binary.AppendUvarint(b, uint64(num)<<3|Varint)
	return binary.AppendUvarint(b, v)
}

// AppendInt appends a field of the types int32, int64 and enum.
func AppendInt(b []byte, num int, v int64) []byte { return AppendUint(b, num, uint64(v)) }

// AppendBytes appends a field of the types string and bytes, and of messages.
func AppendBytes[T string | []byte](b []byte, num int, v T) []byte {
	b = binary.AppendUvarint(b, uint64(num)<<3|Bytes)
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}
