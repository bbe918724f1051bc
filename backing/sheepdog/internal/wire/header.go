package wire

import "encoding/binary"

var le = binary.LittleEndian

// Request is a request's header. The operations use different fields of it: the
// object operations those from OID to Offset, the VDI operations those from
// VDISize to LockType, and the others none of them.
type Request struct {
	Op     Op
	Proto  uint8 // 0: what the operation wants
	Flags  uint16
	Epoch  uint32 // of the sender; clients leave it 0
	ID     uint32 // echoed in the response
	Length uint32 // of the payload, or of what is to be read

	OID, COWOID uint64
	Copies      uint8 // 0: the sheep knows
	CopyPolicy  uint8
	Offset      uint32 // in the object

	VDISize     uint64
	BaseVID     uint32 // also the VDI of OpReleaseVDI
	StorePolicy uint8
	BlockShift  uint8
	SnapID      uint32
	LockType    uint32
}

// Kinds of VDI locks.
const (
	LockNormal uint32 = 0
	LockShared uint32 = 1
)

// isVDI reports whether the header has the fields of a VDI operation.
func (op Op) isVDI() bool { return op >= OpNewVDI && op <= OpClusterDefault }

// Put writes the header.
func (r *Request) Put(b *[HeaderSize]byte) {
	clear(b[:])
	b[0] = r.Proto
	if b[0] == 0 {
		b[0] = r.Op.Version()
	}
	b[1] = byte(r.Op)
	le.PutUint16(b[2:], r.Flags)
	le.PutUint32(b[4:], r.Epoch)
	le.PutUint32(b[8:], r.ID)
	le.PutUint32(b[12:], r.Length)
	if r.Op.isVDI() {
		le.PutUint64(b[16:], r.VDISize)
		le.PutUint32(b[24:], r.BaseVID)
		b[28], b[29], b[30], b[31] = r.Copies, r.CopyPolicy, r.StorePolicy, r.BlockShift
		le.PutUint32(b[32:], r.SnapID)
		le.PutUint32(b[36:], r.LockType)
		return
	}
	le.PutUint64(b[16:], r.OID)
	le.PutUint64(b[24:], r.COWOID)
	b[32], b[33] = r.Copies, r.CopyPolicy
	le.PutUint32(b[40:], r.Offset)
}

// ParseRequest reads a header.
func ParseRequest(b *[HeaderSize]byte) Request {
	r := Request{
		Proto: b[0], Op: Op(b[1]), Flags: le.Uint16(b[2:]), Epoch: le.Uint32(b[4:]),
		ID: le.Uint32(b[8:]), Length: le.Uint32(b[12:]),
	}
	if r.Op.isVDI() {
		r.VDISize, r.BaseVID = le.Uint64(b[16:]), le.Uint32(b[24:])
		r.Copies, r.CopyPolicy, r.StorePolicy, r.BlockShift = b[28], b[29], b[30], b[31]
		r.SnapID, r.LockType = le.Uint32(b[32:]), le.Uint32(b[36:])
		return r
	}
	r.OID, r.COWOID = le.Uint64(b[16:]), le.Uint64(b[24:])
	r.Copies, r.CopyPolicy, r.Offset = b[32], b[33], le.Uint32(b[40:])
	return r
}

// Response is a response's header. The operation, which the sheep echoes, says
// which of the fields behind Result have a meaning.
type Response struct {
	Op     Op
	Epoch  uint32
	ID     uint32
	Length uint32 // of the payload that follows
	Result Result

	VID        uint32
	Copies     uint8
	CopyPolicy uint8
	BlockShift uint8
}

// Put writes the header.
func (r *Response) Put(b *[HeaderSize]byte) {
	clear(b[:])
	b[1] = byte(r.Op)
	le.PutUint32(b[4:], r.Epoch)
	le.PutUint32(b[8:], r.ID)
	le.PutUint32(b[12:], r.Length)
	le.PutUint32(b[16:], uint32(r.Result))
	switch {
	case r.Op == OpClusterDefault:
		b[20], b[21], b[22] = r.Copies, r.CopyPolicy, r.BlockShift
	case r.Op.isVDI():
		le.PutUint32(b[24:], r.VID)
		b[32], b[33] = r.Copies, r.BlockShift
	default:
		b[20] = r.Copies
	}
}

// ParseResponse reads a header.
func ParseResponse(b *[HeaderSize]byte) Response {
	r := Response{
		Op: Op(b[1]), Epoch: le.Uint32(b[4:]), ID: le.Uint32(b[8:]),
		Length: le.Uint32(b[12:]), Result: Result(le.Uint32(b[16:])),
	}
	switch {
	case r.Op == OpClusterDefault:
		r.Copies, r.CopyPolicy, r.BlockShift = b[20], b[21], b[22]
	case r.Op.isVDI():
		r.VID, r.Copies, r.BlockShift = le.Uint32(b[24:]), b[32], b[33]
	default:
		r.Copies = b[20]
	}
	return r
}
