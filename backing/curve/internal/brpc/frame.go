package brpc

import (
	"encoding/binary"
	"fmt"
)

// HeaderSize is the number of bytes before the meta message: "PRPC", the size of
// the body and the size of the meta message in it, both big endian.
const HeaderSize = 12

// Limits. A body is meta, message and attachment; brpc itself takes no more.
const (
	MaxBody = 64 << 20
	// MaxHead bounds what is not attachment.
	MaxHead = 64 << 10
)

// Header is the beginning of a frame.
type Header struct{ Body, Meta int }

// ParseHeader reads a header and checks its sizes.
func ParseHeader(b *[HeaderSize]byte) (Header, error) {
	if string(b[:4]) != "PRPC" {
		return Header{}, fmt.Errorf("brpc: a frame begins with %q, want PRPC", b[:4])
	}
	body, meta := binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
	if body > MaxBody || meta > body || meta > MaxHead {
		return Header{}, fmt.Errorf("brpc: a frame of %d bytes with %d of meta", body, meta)
	}
	return Header{int(body), int(meta)}, nil
}

// Meta is what the meta message says.
type Meta struct {
	Service, Method []byte // of a request; part of the message
	ErrorCode       int32
	ErrorText       []byte // part of the message
	Compress        int32
	ID              uint64 // correlation id: the answer has that of its request
	Attachment      int    // size
}

// ParseMeta reads a meta message. Fields it does not know are skipped.
func ParseMeta(b []byte) (m Meta, err error) {
	for len(b) > 0 {
		var f Field
		if f, b, err = Next(b); err != nil {
			return Meta{}, err
		}
		switch {
		case f.Num == 1 && f.Type == Bytes:
			err = eachField(f.Bytes, func(f Field) {
				switch {
				case f.Num == 1 && f.Type == Bytes:
					m.Service = f.Bytes
				case f.Num == 2 && f.Type == Bytes:
					m.Method = f.Bytes
				}
			})
		case f.Num == 2 && f.Type == Bytes:
			err = eachField(f.Bytes, func(f Field) {
				switch {
				case f.Num == 1 && f.Type == Varint:
					m.ErrorCode = f.Int32()
				case f.Num == 2 && f.Type == Bytes:
					m.ErrorText = f.Bytes
				}
			})
		case f.Num == 3 && f.Type == Varint:
			m.Compress = f.Int32()
		case f.Num == 4 && f.Type == Varint:
			m.ID = f.Uint
		case f.Num == 5 && f.Type == Varint:
			if f.Int32() < 0 || f.Int32() > MaxBody {
				return Meta{}, fmt.Errorf("brpc: an attachment of %d bytes", f.Int32())
			}
			m.Attachment = int(f.Int32())
		}
		if err != nil {
			return Meta{}, err
		}
	}
	return m, nil
}

func eachField(b []byte, fn func(Field)) error {
	for len(b) > 0 {
		f, rest, err := Next(b)
		if err != nil {
			return err
		}
		fn(f)
		b = rest
	}
	return nil
}

// AppendRequest appends a request without its attachment, which has to follow.
func AppendRequest(b []byte, service, method string, id uint64, msg []byte, attachment int) []byte {
	var sub [160]byte
	s := AppendBytes(sub[:0], 1, service)
	s = AppendBytes(s, 2, method)
	return appendFrame(b, 1, s, id, msg, attachment)
}

// AppendResponse appends an answer without its attachment, which has to follow.
// With a code other than 0 msg is left out, as brpc does.
func AppendResponse(b []byte, code int32, text string, id uint64, msg []byte, attachment int) []byte {
	var sub [160]byte
	s := sub[:0]
	if code != 0 {
		s = AppendInt(s, 1, int64(code))
		s = AppendBytes(s, 2, text)
		msg, attachment = nil, 0
	}
	return appendFrame(b, 2, s, id, msg, attachment)
}

func appendFrame(b []byte, num int, sub []byte, id uint64, msg []byte, attachment int) []byte {
	start := len(b)
	b = append(b, "PRPC\x00\x00\x00\x00\x00\x00\x00\x00"...)
	b = AppendBytes(b, num, sub)
	b = AppendUint(b, 4, id)
	if attachment != 0 {
		b = AppendUint(b, 5, uint64(attachment))
	}
	meta := len(b) - start - HeaderSize
	b = append(b, msg...)
	binary.BigEndian.PutUint32(b[start+4:], uint32(len(b)-start-HeaderSize+attachment))
	binary.BigEndian.PutUint32(b[start+8:], uint32(meta))
	return b
}
