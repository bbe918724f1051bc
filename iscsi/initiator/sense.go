package initiator

import (
	"encoding/binary"

	"blockgate/scsi/sense"
)

// ParseSense decodes sense data in fixed (70h, 71h) or descriptor (72h, 73h)
// format (SPC-4 §4.5). ok is false if b holds neither; truncated data gives
// what is there.
func ParseSense(b []byte) (s sense.Sense, ok bool) {
	if len(b) < 2 {
		return s, false
	}
	switch b[0] & 0x7f {
	case 0x70, 0x71:
		return parseFixed(b)
	case 0x72, 0x73:
		return parseDescriptors(b)
	}
	return s, false
}

func parseFixed(b []byte) (s sense.Sense, ok bool) {
	if len(b) < 3 {
		return s, false
	}
	s.Key = sense.Key(b[2] & 0x0f)
	if len(b) >= 7 && b[0]&0x80 != 0 {
		s.Info, s.InfoValid = uint64(binary.BigEndian.Uint32(b[3:])), true
	}
	if len(b) >= 12 {
		if v := binary.BigEndian.Uint32(b[8:]); v != 0 {
			s.CmdInfo, s.CmdInfoValid = uint64(v), true
		}
	}
	if len(b) >= 14 {
		s.ASC, s.ASCQ = b[12], b[13]
	}
	if len(b) >= 18 && b[15]&0x80 != 0 {
		s.SKSV = true
		copy(s.SKS[:], b[15:18])
		s.SKS[0] &^= 0x80
	}
	return s, true
}

func parseDescriptors(b []byte) (s sense.Sense, ok bool) {
	if len(b) < 4 {
		return s, false
	}
	s.Key, s.ASC, s.ASCQ = sense.Key(b[1]&0x0f), b[2], b[3]
	if len(b) < 8 {
		return s, true
	}
	d := b[8:min(len(b), 8+int(b[7]))]
	for len(d) >= 2 && len(d) >= 2+int(d[1]) {
		v := d[:2+int(d[1])]
		switch {
		case v[0] == 0x00 && len(v) >= 12:
			s.Info, s.InfoValid = binary.BigEndian.Uint64(v[4:]), v[2]&0x80 != 0
		case v[0] == 0x01 && len(v) >= 12:
			s.CmdInfo, s.CmdInfoValid = binary.BigEndian.Uint64(v[4:]), true
		case v[0] == 0x02 && len(v) >= 7 && v[4]&0x80 != 0:
			s.SKSV = true
			copy(s.SKS[:], v[4:7])
			s.SKS[0] &^= 0x80
		}
		d = d[len(v):]
	}
	return s, true
}
