package sense

import "encoding/binary"

// Forwarded is the status and the sense data with which a copy source or a copy
// destination answered a copy manager (SPC-4 §4.5.2.7, §5.17.7.4).
type Forwarded struct {
	Destination bool // the copy destination answered so; else the copy source
	Status      byte // SCSI status code
	// Sense is the sense data as it came, at most 48 bytes; empty unless Status
	// is CHECK CONDITION.
	Sense []byte
}

// maxForwarded bounds forwarded sense data, so that all fits in MaxLen.
const maxForwarded = 48

func (f *Forwarded) cut() (data []byte, truncated bool) {
	if len(f.Sense) > maxForwarded {
		return f.Sense[:maxForwarded], true
	}
	return f.Sense, false
}

// fixed appends status and sense data to fixed format sense data, and sets the
// byte of COMMAND-SPECIFIC INFORMATION that says where they begin.
func (f *Forwarded) fixed(b []byte) []byte {
	at := 8
	if f.Destination {
		at = 9
	}
	b[at] = byte(len(b))
	data, _ := f.cut()
	b = append(append(b, f.Status), data...)
	b[7] = byte(len(b) - 8)
	return b
}

// descriptor appends the forwarded sense data descriptor.
func (f *Forwarded) descriptor(b []byte) []byte {
	data, truncated := f.cut()
	source := byte(0x01)
	if f.Destination {
		source = 0x02
	}
	if truncated {
		source |= 0x80 // FSDT
	}
	b = append(b, 0x0c, byte(2+len(data)), source, f.Status)
	return append(b, data...)
}

// WithForward sets what a copy source or destination answered.
func (s Sense) WithForward(f *Forwarded) Sense { s.Forward = f; return s }

// WithSegmentPointer points at a byte of the segment descriptor or, if segment is
// false, of the parameter list (SPC-4 §4.5.2.4.5).
func (s Sense) WithSegmentPointer(segment bool, byteN int) Sense {
	s.SKSV, s.SKS[0] = true, 0
	if segment {
		s.SKS[0] = 0x20 // SD
	}
	binary.BigEndian.PutUint16(s.SKS[1:], uint16(byteN))
	return s
}

// ILLEGAL REQUEST for lists of descriptors; byteN is the byte of the data-out
// that is at fault.

// TooManyTargets: TOO MANY TARGET DESCRIPTORS.
func TooManyTargets(byteN int) Sense {
	return New(IllegalRequest, 0x26, 0x06).withField(false, byteN, -1)
}

// UnsupportedTarget: UNSUPPORTED TARGET DESCRIPTOR TYPE CODE.
func UnsupportedTarget(byteN int) Sense {
	return New(IllegalRequest, 0x26, 0x07).withField(false, byteN, -1)
}

// TooManySegments: TOO MANY SEGMENT DESCRIPTORS.
func TooManySegments(byteN int) Sense {
	return New(IllegalRequest, 0x26, 0x08).withField(false, byteN, -1)
}

// UnsupportedSegment: UNSUPPORTED SEGMENT DESCRIPTOR TYPE CODE.
func UnsupportedSegment(byteN int) Sense {
	return New(IllegalRequest, 0x26, 0x09).withField(false, byteN, -1)
}

// InlineDataLength: INLINE DATA LENGTH EXCEEDED.
func InlineDataLength(byteN int) Sense {
	return New(IllegalRequest, 0x26, 0x0b).withField(false, byteN, -1)
}

// OperationInProgress: the list identifier is in use.
func OperationInProgress() Sense { return New(IllegalRequest, 0x00, 0x16) }

// InsufficientROD: INSUFFICIENT RESOURCES TO CREATE ROD.
func InsufficientROD() Sense { return New(IllegalRequest, 0x55, 0x0c) }

// COPY ABORTED while segment descriptors are processed.

// CopySegmentInvalid: the segment descriptor itself cannot be processed.
func CopySegmentInvalid() Sense { return New(CopyAborted, 0x00, 0x00) }

// CopyUnreachable: UNREACHABLE COPY TARGET, no CSCD has that identifier.
func CopyUnreachable() Sense { return New(CopyAborted, 0x08, 0x04) }

// CopyDeviceFailure: THIRD PARTY DEVICE FAILURE.
func CopyDeviceFailure() Sense { return New(CopyAborted, 0x0d, 0x01) }

// CopyNotReachable: COPY TARGET DEVICE NOT REACHABLE.
func CopyNotReachable() Sense { return New(CopyAborted, 0x0d, 0x02) }

// CopyWrongType: INCORRECT COPY TARGET DEVICE TYPE.
func CopyWrongType() Sense { return New(CopyAborted, 0x0d, 0x03) }

// CopyInexact: UNEXPECTED INEXACT SEGMENT.
func CopyInexact() Sense { return New(CopyAborted, 0x26, 0x0a) }

// CopyInvalidField: INVALID FIELD IN PARAMETER LIST, found while copying.
func CopyInvalidField() Sense { return New(CopyAborted, 0x26, 0x00) }

// CopyCleared: COMMANDS CLEARED BY DEVICE SERVER, after COPY OPERATION ABORT.
func CopyCleared() Sense { return New(CopyAborted, 0x2f, 0x02) }

// DataUnderrun: COPY TARGET DEVICE DATA UNDERRUN; INFORMATION is how many blocks
// were moved (SBC-4 §4.28.2).
func DataUnderrun(blocks uint64) Sense {
	k := CopyAborted
	if blocks == 0 {
		k = IllegalRequest
	}
	return New(k, 0x0d, 0x04).WithInfo(blocks)
}

// INVALID TOKEN OPERATION (SPC-4 §5.17.6.5.2.3).

func TokenUnsupportedType() Sense { return New(IllegalRequest, 0x23, 0x01) }
func TokenUnknown() Sense         { return New(IllegalRequest, 0x23, 0x04) }
func TokenCorrupt() Sense         { return New(IllegalRequest, 0x23, 0x05) }
func TokenExpired() Sense         { return New(IllegalRequest, 0x23, 0x07) }
func TokenCancelled() Sense       { return New(IllegalRequest, 0x23, 0x08) }
func TokenDeleted() Sense         { return New(IllegalRequest, 0x23, 0x09) }
func TokenLength() Sense          { return New(IllegalRequest, 0x23, 0x0a) }
