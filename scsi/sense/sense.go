// Package sense builds and encodes SCSI sense data (SPC-4 §4.5). Every condition
// the device server reports has a named constructor here; nothing else in the
// house writes sense bytes.
package sense

import (
	"encoding/binary"
	"fmt"
)

// Key is a sense key (SPC-4 table 43).
type Key uint8

// Sense keys.
const (
	NoSense        Key = 0x0
	RecoveredError Key = 0x1
	NotReady       Key = 0x2
	MediumError    Key = 0x3
	HardwareError  Key = 0x4
	IllegalRequest Key = 0x5
	UnitAttention  Key = 0x6
	DataProtect    Key = 0x7
	BlankCheck     Key = 0x8
	CopyAborted    Key = 0xa
	AbortedCommand Key = 0xb
	VolumeOverflow Key = 0xd
	Miscompare     Key = 0xe
	Completed      Key = 0xf
)

// MaxLen is the longest sense data Encode writes, in bytes.
const MaxLen = 96

// Sense is one condition. It is a value: copy it freely.
type Sense struct {
	Key       Key
	ASC, ASCQ uint8

	// Info is the INFORMATION field, if InfoValid: an LBA or an offset.
	Info      uint64
	InfoValid bool

	// SKSV and SKS: the three bytes of the sense-key-specific field, whose first
	// bit (SKSV) is set by Encode.
	SKSV bool
	SKS  [3]byte

	// CmdInfo is the COMMAND-SPECIFIC INFORMATION field, if CmdInfoValid.
	CmdInfo      uint64
	CmdInfoValid bool

	// Forward, if not nil, is what another logical unit answered to a copy
	// manager (see Forwarded). It is shared by copies and never changed.
	Forward *Forwarded
}

// New makes a condition from its key and additional sense code.
func New(k Key, asc, ascq uint8) Sense { return Sense{Key: k, ASC: asc, ASCQ: ascq} }

// WithInfo sets the INFORMATION field.
func (s Sense) WithInfo(v uint64) Sense { s.Info, s.InfoValid = v, true; return s }

// WithCommandInfo sets the COMMAND-SPECIFIC INFORMATION field.
func (s Sense) WithCommandInfo(v uint64) Sense { s.CmdInfo, s.CmdInfoValid = v, true; return s }

// withField points at the offending byte, and bit if 0 to 7 (SPC-4 §4.5.2.4.2).
func (s Sense) withField(cdb bool, byteN int, bit int) Sense {
	s.SKSV = true
	if cdb {
		s.SKS[0] |= 0x40
	}
	if bit >= 0 && bit < 8 {
		s.SKS[0] |= 0x08 | byte(bit)
	}
	binary.BigEndian.PutUint16(s.SKS[1:], uint16(byteN))
	return s
}

// WithProgress sets the progress indication, in 65536ths (SPC-4 §4.5.2.4.4).
func (s Sense) WithProgress(p uint16) Sense {
	s.SKSV = true
	s.SKS[0] = 0
	binary.BigEndian.PutUint16(s.SKS[1:], p)
	return s
}

func (s Sense) String() string {
	return fmt.Sprintf("sense %x/%02x/%02x", uint8(s.Key), s.ASC, s.ASCQ)
}

// Encode writes the sense data to dst, which must hold MaxLen bytes, in fixed
// (70h) or descriptor (72h) format, and returns what it wrote. An INFORMATION
// value above 32 bits is given in descriptor format only; in fixed format VALID
// stays 0 then (SPC-4 §4.5.3).
func (s Sense) Encode(dst []byte, descriptor bool) []byte {
	if descriptor {
		return s.encodeDescriptor(dst)
	}
	b := dst[:18]
	clear(b)
	b[0] = 0x70
	b[2] = byte(s.Key)
	if s.InfoValid && s.Info <= 0xffffffff {
		b[0] |= 0x80
		binary.BigEndian.PutUint32(b[3:], uint32(s.Info))
	}
	b[7] = 10
	if s.CmdInfoValid {
		binary.BigEndian.PutUint32(b[8:], uint32(s.CmdInfo))
	}
	b[12], b[13] = s.ASC, s.ASCQ
	if s.SKSV {
		copy(b[15:18], s.SKS[:])
		b[15] |= 0x80
	}
	if s.Forward != nil {
		b = s.Forward.fixed(b)
	}
	return b
}

func (s Sense) encodeDescriptor(dst []byte) []byte {
	b := append(dst[:0], 0x72, byte(s.Key), s.ASC, s.ASCQ, 0, 0, 0, 0)
	if s.InfoValid {
		b = append(b, 0x00, 0x0a, 0x80, 0x00)
		b = binary.BigEndian.AppendUint64(b, s.Info)
	}
	if s.CmdInfoValid {
		b = append(b, 0x01, 0x0a, 0x00, 0x00)
		b = binary.BigEndian.AppendUint64(b, s.CmdInfo)
	}
	if s.SKSV {
		b = append(b, 0x02, 0x06, 0x00, 0x00, s.SKS[0]|0x80, s.SKS[1], s.SKS[2], 0x00)
	}
	if s.Forward != nil {
		b = s.Forward.descriptor(b)
	}
	b[7] = byte(len(b) - 8)
	return b
}
