package nbd

import "math"

// Lengths inside of chunks, in bytes.
const (
	// OffsetDataLen goes before the data of a ChunkOffsetData: their offset.
	OffsetDataLen = 8
	// OffsetHoleLen is the whole payload of a ChunkOffsetHole.
	OffsetHoleLen = 12
	// MaxErrorLen bounds the payload of an error chunk.
	MaxErrorLen = 14 + MaxString
	// MaxExtents is how many extents a server sends in one chunk at most.
	MaxExtents = 1 << 20
)

// AppendOffset appends what goes before the data of a ChunkOffsetData.
func AppendOffset(b []byte, off uint64) []byte { return be.AppendUint64(b, off) }

// DecodeOffset reads OffsetDataLen bytes.
func DecodeOffset(p []byte) (off uint64, err error) {
	if len(p) < OffsetDataLen {
		return 0, malformed("data chunk of %d bytes", len(p))
	}
	return be.Uint64(p), nil
}

// AppendOffsetHole appends the payload of a ChunkOffsetHole.
func AppendOffsetHole(b []byte, off uint64, n uint32) []byte {
	return be.AppendUint32(be.AppendUint64(b, off), n)
}

// DecodeOffsetHole reads the payload of a ChunkOffsetHole. n is not 0.
func DecodeOffsetHole(p []byte) (off uint64, n uint32, err error) {
	if len(p) != OffsetHoleLen || be.Uint32(p[8:]) == 0 {
		return 0, 0, malformed("hole chunk of %d bytes", len(p))
	}
	return be.Uint64(p), be.Uint32(p[8:]), nil
}

// ErrorInfo is the payload of an error chunk.
type ErrorInfo struct {
	Error   Errno  // not None
	Message string // for a human, may be empty
	// Offset is where it happened, in bytes; of a ChunkErrorOffset only.
	Offset uint64
}

// Append appends the payload of an error chunk of type t. A message longer than
// MaxString is cut.
func (e ErrorInfo) Append(b []byte, t ChunkType) []byte {
	b = be.AppendUint32(b, uint32(e.Error))
	m := e.Message[:min(len(e.Message), MaxString)]
	b = be.AppendUint16(b, uint16(len(m)))
	b = append(b, m...)
	if t == ChunkErrorOffset {
		b = be.AppendUint64(b, e.Offset)
	}
	return b
}

// DecodeError reads the payload of an error chunk. Of types that are not defined
// here the part that is common to all is read.
func DecodeError(p []byte, t ChunkType) (ErrorInfo, error) {
	if len(p) < 6 || len(p) < 6+int(be.Uint16(p[4:])) {
		return ErrorInfo{}, malformed("error chunk of %d bytes", len(p))
	}
	n := int(be.Uint16(p[4:]))
	e := ErrorInfo{Error: Errno(be.Uint32(p)), Message: string(p[6 : 6+n])}
	if e.Error == None || n > MaxString {
		return e, malformed("error chunk without an error")
	}
	if t == ChunkErrorOffset {
		if len(p) < 14+n {
			return e, malformed("error chunk without an offset")
		}
		e.Offset = be.Uint64(p[6+n:])
	}
	return e, nil
}

// Extent is a run of bytes with one status in a metadata context.
type Extent struct {
	Length uint64 // bytes, not 0
	Flags  uint64
}

// extentLens are the lengths of what goes before the extents and of one of them.
func (m Mode) extentLens() (head, each int) {
	if m == Extended {
		return 8, 16
	}
	return 4, 8
}

// BlockStatusType is the type of chunk that carries extents.
func (m Mode) BlockStatusType() ChunkType {
	if m == Extended {
		return ChunkBlockStatusExt
	}
	return ChunkBlockStatus
}

// BlockStatusLen is the length of a chunk's payload with n extents, in bytes.
func (m Mode) BlockStatusLen(n int) int {
	head, each := m.extentLens()
	return head + n*each
}

// MaxExtent is how long an extent may be in this mode: what has 32 bits for it
// stays at a multiple of every minimum block size.
func (m Mode) MaxExtent() uint64 {
	if m == Extended {
		return math.MaxInt64 &^ (MaxMinBlock - 1)
	}
	return math.MaxUint32 &^ (MaxMinBlock - 1)
}

// AppendBlockStatus appends the payload of a chunk of type m.BlockStatusType()
// with at least one extent. None is longer than m.MaxExtent().
func AppendBlockStatus(b []byte, m Mode, context uint32, l []Extent) []byte {
	b = be.AppendUint32(b, context)
	if m == Extended {
		b = be.AppendUint32(b, uint32(len(l)))
		for _, e := range l {
			b = be.AppendUint64(b, e.Length)
			b = be.AppendUint64(b, e.Flags)
		}
		return b
	}
	for _, e := range l {
		b = be.AppendUint32(b, uint32(e.Length))
		b = be.AppendUint32(b, uint32(e.Flags))
	}
	return b
}

// DecodeBlockStatus reads the payload of a chunk of type m.BlockStatusType() and
// appends its extents to l.
func DecodeBlockStatus(p []byte, m Mode, l []Extent) (context uint32, extents []Extent, err error) {
	head, each := m.extentLens()
	if len(p) < head+each || (len(p)-head)%each != 0 {
		return 0, l, malformed("block status of %d bytes", len(p))
	}
	context = be.Uint32(p)
	if m == Extended && uint64(be.Uint32(p[4:])) != uint64((len(p)-head)/each) {
		return context, l, malformed("%d extents in %d bytes", be.Uint32(p[4:]), len(p))
	}
	for p = p[head:]; len(p) > 0; p = p[each:] {
		e := Extent{uint64(be.Uint32(p)), uint64(be.Uint32(p[4:]))}
		if m == Extended {
			e = Extent{be.Uint64(p), be.Uint64(p[8:])}
		}
		if e.Length == 0 {
			return context, l, malformed("extent without a length")
		}
		l = append(l, e)
	}
	return context, l, nil
}
