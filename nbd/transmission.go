package nbd

// Lengths of the headers of the transmission phase, in bytes.
const (
	RequestLen         = 28
	ExtendedRequestLen = 32
	SimpleReplyLen     = 16
	ChunkHeaderLen     = 20
	ExtendedChunkLen   = 32
)

// RequestHeaderLen is the length of a request's header.
func (m Mode) RequestHeaderLen() int {
	if m == Extended {
		return ExtendedRequestLen
	}
	return RequestLen
}

// ChunkHeaderLen is the length of a reply chunk's header. In mode Simple there
// are no chunks.
func (m Mode) ChunkHeaderLen() int {
	if m == Extended {
		return ExtendedChunkLen
	}
	return ChunkHeaderLen
}

// Request is the header of a request. Offset and Length are bytes.
type Request struct {
	Flags  CommandFlags
	Type   Command
	Cookie uint64 // the client's, given back with the reply
	Offset uint64
	Length uint64 // at most 32 bits unless in mode Extended
}

// Append appends the header.
func (r Request) Append(b []byte, m Mode) []byte {
	magic := RequestMagic
	if m == Extended {
		magic = ExtendedRequestMagic
	}
	b = be.AppendUint32(b, magic)
	b = be.AppendUint16(b, uint16(r.Flags))
	b = be.AppendUint16(b, uint16(r.Type))
	b = be.AppendUint64(b, r.Cookie)
	b = be.AppendUint64(b, r.Offset)
	if m == Extended {
		return be.AppendUint64(b, r.Length)
	}
	return be.AppendUint32(b, uint32(r.Length))
}

// DecodeRequest reads a header of m.RequestHeaderLen() bytes into r. It reports
// false if there is none.
func DecodeRequest(p []byte, m Mode, r *Request) bool {
	if m == Extended {
		if len(p) < ExtendedRequestLen || be.Uint32(p) != ExtendedRequestMagic {
			return false
		}
		r.Length = be.Uint64(p[24:])
	} else {
		if len(p) < RequestLen || be.Uint32(p) != RequestMagic {
			return false
		}
		r.Length = uint64(be.Uint32(p[24:]))
	}
	r.Flags, r.Type = CommandFlags(be.Uint16(p[4:])), Command(be.Uint16(p[6:]))
	r.Cookie, r.Offset = be.Uint64(p[8:]), be.Uint64(p[16:])
	return true
}

// PayloadLen is how many bytes follow the header. In mode Extended a WRITE that
// lacks FlagPayloadLen is taken as if it had it, as other servers do: its client
// is about to send the data all the same.
func (r *Request) PayloadLen(m Mode) uint64 {
	if r.Type == CmdWrite || m == Extended && r.Flags&FlagPayloadLen != 0 {
		return r.Length
	}
	return 0
}

// AppendSimpleReply appends a simple reply's header, behind which come, for a
// READ without error, the data.
func AppendSimpleReply(b []byte, e Errno, cookie uint64) []byte {
	b = be.AppendUint32(b, SimpleReplyMagic)
	b = be.AppendUint32(b, uint32(e))
	return be.AppendUint64(b, cookie)
}

// Chunk is the header of a reply chunk, behind which come Length bytes.
type Chunk struct {
	Flags  ChunkFlags
	Type   ChunkType
	Cookie uint64
	Offset uint64 // mode Extended only: that of the request
	Length uint64
}

// Append appends the header in mode Structured or Extended.
func (c Chunk) Append(b []byte, m Mode) []byte {
	magic := ChunkMagic
	if m == Extended {
		magic = ExtendedChunkMagic
	}
	b = be.AppendUint32(b, magic)
	b = be.AppendUint16(b, uint16(c.Flags))
	b = be.AppendUint16(b, uint16(c.Type))
	b = be.AppendUint64(b, c.Cookie)
	if m == Extended {
		b = be.AppendUint64(b, c.Offset)
		return be.AppendUint64(b, c.Length)
	}
	return be.AppendUint32(b, uint32(c.Length))
}

// Reply is what a client reads first of a reply: a simple reply, or the header of
// a chunk.
type Reply struct {
	Simple bool
	Error  Errno // of a simple reply
	Chunk        // of a simple reply only Cookie
}

// ReplyLen is how long the header is whose first four bytes are p: SimpleReplyLen,
// ChunkHeaderLen or ExtendedChunkLen, or 0 if it is none that mode m allows.
func ReplyLen(p []byte, m Mode) int {
	if len(p) < 4 {
		return 0
	}
	switch magic := be.Uint32(p); {
	case magic == SimpleReplyMagic && m != Extended:
		return SimpleReplyLen
	case magic == ChunkMagic && m == Structured:
		return ChunkHeaderLen
	case magic == ExtendedChunkMagic && m == Extended:
		return ExtendedChunkLen
	}
	return 0
}

// DecodeReply reads a header of ReplyLen bytes into r. It reports false if there
// is none.
func DecodeReply(p []byte, m Mode, r *Reply) bool {
	n := ReplyLen(p, m)
	if n == 0 || len(p) < n {
		return false
	}
	if n == SimpleReplyLen {
		*r = Reply{Simple: true, Error: Errno(be.Uint32(p[4:])), Chunk: Chunk{Cookie: be.Uint64(p[8:])}}
		return true
	}
	*r = Reply{Chunk: Chunk{Flags: ChunkFlags(be.Uint16(p[4:])), Type: ChunkType(be.Uint16(p[6:])), Cookie: be.Uint64(p[8:])}}
	if n == ExtendedChunkLen {
		r.Offset, r.Length = be.Uint64(p[16:]), be.Uint64(p[24:])
	} else {
		r.Length = uint64(be.Uint32(p[16:]))
	}
	return true
}
