// Package iscsi holds the iSCSI protocol (RFC 7143) without sockets: PDU codec,
// text keys, negotiation, login, CHAP, and the target's session and connection
// machines. Bytes and time go in, bytes and effects come out.
package iscsi

import "encoding/binary"

// BHSLen is the length of a Basic Header Segment (RFC 7143 §11.2.1).
const BHSLen = 48

// Opcode is a PDU's opcode, without the immediate bit (RFC 7143 §11.2.1.2).
type Opcode uint8

// Opcodes.
const (
	OpNopOut     Opcode = 0x00
	OpSCSICmd    Opcode = 0x01
	OpTaskReq    Opcode = 0x02
	OpLoginReq   Opcode = 0x03
	OpTextReq    Opcode = 0x04
	OpDataOut    Opcode = 0x05
	OpLogoutReq  Opcode = 0x06
	OpSNACK      Opcode = 0x10
	OpNopIn      Opcode = 0x20
	OpSCSIResp   Opcode = 0x21
	OpTaskResp   Opcode = 0x22
	OpLoginResp  Opcode = 0x23
	OpTextResp   Opcode = 0x24
	OpDataIn     Opcode = 0x25
	OpLogoutResp Opcode = 0x26
	OpR2T        Opcode = 0x31
	OpAsync      Opcode = 0x32
	OpReject     Opcode = 0x3f
)

// ReservedTag is the tag value that names no task (RFC 7143 §11.2.1.8).
const ReservedTag = 0xffffffff

// BHS is a Basic Header Segment in place: methods read and write the wire form.
// Fields that only some PDUs have are named after the PDU in their comment.
type BHS [BHSLen]byte

func (h *BHS) Opcode() Opcode  { return Opcode(h[0] & 0x3f) }
func (h *BHS) Immediate() bool { return h[0]&0x40 != 0 }
func (h *BHS) SetOpcode(o Opcode, immediate bool) {
	h[0] = byte(o)
	if immediate {
		h[0] |= 0x40
	}
}

// Flags is byte 1: F, and per PDU C, R, W, ATTR, T, O, U, S, CSG, NSG.
func (h *BHS) Flags() byte     { return h[1] }
func (h *BHS) SetFlags(f byte) { h[1] = f }

// Flag bits of byte 1.
const (
	FlagFinal    = 0x80 // all
	FlagContinue = 0x40 // Text, Login
	FlagRead     = 0x40 // SCSI Command
	FlagWrite    = 0x20 // SCSI Command
	FlagAck      = 0x40 // Data-In
	FlagOverflow = 0x04 // SCSI Response, Data-In
	FlagUnder    = 0x02 // SCSI Response, Data-In
	FlagStatus   = 0x01 // Data-In
	FlagBidiOver = 0x10 // SCSI Response
	FlagBidiUnd  = 0x08 // SCSI Response
	FlagTransit  = 0x80 // Login
)

// AHSLen is the length of all Additional Header Segments in bytes (0 to 1020).
func (h *BHS) AHSLen() int { return int(h[4]) * 4 }

// DataLen is the length of the data segment in bytes, without padding (0 to 2^24-1).
func (h *BHS) DataLen() int { return int(h[5])<<16 | int(h[6])<<8 | int(h[7]) }

// SetDataLen sets the data segment length; TotalAHSLength becomes 0.
func (h *BHS) SetDataLen(n int) {
	binary.BigEndian.PutUint32(h[4:], uint32(n)&0xffffff)
}

// PadLen is the number of padding bytes after n data bytes.
func PadLen(n int) int { return -n & 3 }

func (h *BHS) u32(o int) uint32       { return binary.BigEndian.Uint32(h[o:]) }
func (h *BHS) setU32(o int, v uint32) { binary.BigEndian.PutUint32(h[o:], v) }

func (h *BHS) LUN() uint64        { return binary.BigEndian.Uint64(h[8:]) }
func (h *BHS) SetLUN(v uint64)    { binary.BigEndian.PutUint64(h[8:], v) }
func (h *BHS) ITT() uint32        { return h.u32(16) }
func (h *BHS) SetITT(v uint32)    { h.setU32(16, v) }
func (h *BHS) TTT() uint32        { return h.u32(20) }
func (h *BHS) SetTTT(v uint32)    { h.setU32(20, v) }
func (h *BHS) EDTL() uint32       { return h.u32(20) } // SCSI Command: Expected Data Transfer Length
func (h *BHS) SetEDTL(v uint32)   { h.setU32(20, v) }
func (h *BHS) RefTag() uint32     { return h.u32(20) } // Task Management: Referenced Task Tag
func (h *BHS) SetRefTag(v uint32) { h.setU32(20, v) }

// From the initiator.
func (h *BHS) CmdSN() uint32            { return h.u32(24) }
func (h *BHS) SetCmdSN(v uint32)        { h.setU32(24, v) }
func (h *BHS) ExpStatSN() uint32        { return h.u32(28) }
func (h *BHS) SetExpStatSN(v uint32)    { h.setU32(28, v) }
func (h *BHS) RefCmdSN() uint32         { return h.u32(32) } // Task Management
func (h *BHS) SetRefCmdSN(v uint32)     { h.setU32(32, v) }
func (h *BHS) ExpDataSN() uint32        { return h.u32(36) } // Task Management, SCSI Response
func (h *BHS) SetExpDataSN(v uint32)    { h.setU32(36, v) }
func (h *BHS) CDB() []byte              { return h[32:48] }  // SCSI Command, first 16 bytes
func (h *BHS) DataSN() uint32           { return h.u32(36) } // Data-Out, Data-In; R2TSN of an R2T
func (h *BHS) SetDataSN(v uint32)       { h.setU32(36, v) }
func (h *BHS) BufferOffset() uint32     { return h.u32(40) } // Data-Out, Data-In, R2T
func (h *BHS) SetBufferOffset(v uint32) { h.setU32(40, v) }
func (h *BHS) DesiredLen() uint32       { return h.u32(44) } // R2T: Desired Data Transfer Length
func (h *BHS) SetDesiredLen(v uint32)   { h.setU32(44, v) }

// From the target.
func (h *BHS) StatSN() uint32       { return h.u32(24) }
func (h *BHS) SetStatSN(v uint32)   { h.setU32(24, v) }
func (h *BHS) ExpCmdSN() uint32     { return h.u32(28) }
func (h *BHS) SetExpCmdSN(v uint32) { h.setU32(28, v) }
func (h *BHS) MaxCmdSN() uint32     { return h.u32(32) }
func (h *BHS) SetMaxCmdSN(v uint32) { h.setU32(32, v) }
func (h *BHS) Response() byte       { return h[2] } // SCSI, Task Management, Logout Response; Reject reason
func (h *BHS) SetResponse(v byte)   { h[2] = v }
func (h *BHS) Status() byte         { return h[3] } // SCSI Response, Data-In with S
func (h *BHS) SetStatus(v byte)     { h[3] = v }
func (h *BHS) Residual() uint32     { return h.u32(44) }
func (h *BHS) SetResidual(v uint32) { h.setU32(44, v) }

// Login (RFC 7143 §11.12, §11.13).
func (h *BHS) ISID() (v [6]byte)                 { copy(v[:], h[8:14]); return }
func (h *BHS) SetISID(v [6]byte)                 { copy(h[8:14], v[:]) }
func (h *BHS) TSIH() uint16                      { return binary.BigEndian.Uint16(h[14:]) }
func (h *BHS) SetTSIH(v uint16)                  { binary.BigEndian.PutUint16(h[14:], v) }
func (h *BHS) CID() uint16                       { return binary.BigEndian.Uint16(h[20:]) } // also Logout Request
func (h *BHS) SetCID(v uint16)                   { binary.BigEndian.PutUint16(h[20:], v) }
func (h *BHS) VersionMax() byte                  { return h[2] }
func (h *BHS) VersionMin() byte                  { return h[3] } // request; active version in a response
func (h *BHS) CSG() byte                         { return h[1] >> 2 & 3 }
func (h *BHS) NSG() byte                         { return h[1] & 3 }
func (h *BHS) StatusClass() byte                 { return h[36] }
func (h *BHS) StatusDetail() byte                { return h[37] }
func (h *BHS) SetLoginStatus(class, detail byte) { h[36], h[37] = class, detail }

// SNLess reports a < b in serial number arithmetic over 32 bits (RFC 1982, RFC
// 7143 §4.2.2.1).
func SNLess(a, b uint32) bool { return int32(a-b) < 0 }
