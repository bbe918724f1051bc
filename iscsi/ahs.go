package iscsi

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// AHS types (RFC 7143 §11.2.2.1).
const (
	AHSExtendedCDB = 1 // §11.2.2.3
	AHSBidiRead    = 2 // §11.2.2.4: Bidirectional Read Expected Data Transfer Length
)

// MaxAHSLen is the most bytes TotalAHSLength can express.
const MaxAHSLen = 255 * 4

// MaxCDBLen is the longest CDB there is (SPC-4 §4.2.3: variable length, 8 + 252).
const MaxCDBLen = 260

// ErrAHS is wrapped by the errors of malformed Additional Header Segments.
var ErrAHS = errors.New("iscsi: malformed additional header segment")

// AHS is one Additional Header Segment.
type AHS struct {
	Type byte
	// Data is what follows the type: the AHS-specific byte and the rest, without
	// padding. It has at least one byte.
	Data []byte
}

// NextAHS takes the first segment off b, which is the whole AHS area of a PDU or
// the rest of an earlier call. Data shares memory with b. An empty b is an error:
// the caller loops while there is something left.
func NextAHS(b []byte) (a AHS, rest []byte, err error) {
	if len(b) > MaxAHSLen {
		return a, nil, fmt.Errorf("%w: %d bytes", ErrAHS, len(b))
	}
	if len(b) < 4 {
		return a, nil, fmt.Errorf("%w: %d bytes left, 4 are the least", ErrAHS, len(b))
	}
	n := int(binary.BigEndian.Uint16(b)) // the length leaves out itself and the type
	end := 3 + n
	whole := end + PadLen(end)
	if n == 0 || whole > len(b) {
		return a, nil, fmt.Errorf("%w: length %d with %d bytes left", ErrAHS, n, len(b))
	}
	return AHS{Type: b[2] & 0x3f, Data: b[3:end:end]}, b[whole:], nil
}

// CommandAHS is what the segments of a SCSI Command PDU say.
type CommandAHS struct {
	// ExtendedCDB holds the bytes of the CDB after the 16 of the BHS; nil if the
	// CDB is no longer than those. It shares memory with what was parsed.
	ExtendedCDB []byte
	Bidi        bool   // a BidiRead segment is there
	BidiReadLen uint32 // bytes the initiator expects to read
}

// ParseCommandAHS reads the AHS area of a SCSI Command PDU. Each known type may
// occur once; unknown types are errors, since a target that skipped one would run
// another command than was meant. Empty b is fine.
func ParseCommandAHS(b []byte) (c CommandAHS, err error) {
	for len(b) > 0 {
		var a AHS
		if a, b, err = NextAHS(b); err != nil {
			return CommandAHS{}, err
		}
		body := a.Data[1:] // after the reserved byte
		switch {
		case a.Type == AHSExtendedCDB && c.ExtendedCDB == nil:
			if len(body) == 0 || 16+len(body) > MaxCDBLen {
				return CommandAHS{}, fmt.Errorf("%w: extended CDB of %d bytes", ErrAHS, len(body))
			}
			c.ExtendedCDB = body
		case a.Type == AHSBidiRead && !c.Bidi:
			if len(body) != 4 {
				return CommandAHS{}, fmt.Errorf("%w: bidirectional length of %d bytes", ErrAHS, len(body))
			}
			c.Bidi, c.BidiReadLen = true, binary.BigEndian.Uint32(body)
		default:
			return CommandAHS{}, fmt.Errorf("%w: type %d is unknown or repeated", ErrAHS, a.Type)
		}
	}
	return c, nil
}

// AppendExtendedCDB appends the segment for a CDB longer than 16 bytes; rest is
// the CDB from byte 16 on, 1 to MaxCDBLen-16 bytes.
func AppendExtendedCDB(dst, rest []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(rest)+1))
	dst = append(dst, AHSExtendedCDB, 0)
	dst = append(dst, rest...)
	return append(dst, make([]byte, PadLen(len(rest)))...)
}

// AppendBidiRead appends the segment that gives the length of the data a
// bidirectional command reads.
func AppendBidiRead(dst []byte, n uint32) []byte {
	return binary.BigEndian.AppendUint32(append(dst, 0, 5, AHSBidiRead, 0), n)
}
