package pr

import (
	"encoding/binary"

	"blockgate/scsi/sense"
)

// Service actions of PERSISTENT RESERVE IN (SPC-4 table 201).
const (
	ReadKeys           = 0x00
	ReadReservation    = 0x01
	ReportCapabilities = 0x02
	ReadFullStatus     = 0x03
)

// maxIn is the longest parameter data a CDB can ask for: its ALLOCATION LENGTH
// has 16 bits.
const maxIn = 0xffff

// In gives the parameter data of a PERSISTENT RESERVE IN command; the caller cuts
// it to the allocation length. The length fields in it count everything there is
// to report, the data itself ends at 65 535 bytes, which is all that a CDB can
// ask for. The data belongs to the caller. An unknown service action is INVALID
// FIELD IN CDB.
func (r *Reservations) In(serviceAction byte) ([]byte, *sense.Sense) {
	s := r.cur.Load()
	switch serviceAction {
	case ReadKeys:
		return cut(s.readKeys()), nil
	case ReadReservation:
		return s.readReservation(), nil
	case ReportCapabilities:
		return s.reportCapabilities(r.store != nil), nil
	case ReadFullStatus:
		return cut(s.readFullStatus()), nil
	}
	e := sense.InvalidFieldInCDB(1, 4)
	return nil, &e
}

func cut(b []byte) []byte { return b[:min(len(b), maxIn)] }

// header begins parameter data with PRGENERATION and ADDITIONAL LENGTH.
func (s *state) header(additional int) []byte {
	b := make([]byte, 8, 8+min(additional, maxIn+512))
	binary.BigEndian.PutUint32(b, s.gen)
	binary.BigEndian.PutUint32(b[4:], uint32(additional))
	return b
}

// readKeys: SPC-4 §6.15.2.
func (s *state) readKeys() []byte {
	b := s.header(8 * len(s.order))
	for _, n := range s.order {
		b = binary.BigEndian.AppendUint64(b, s.keys[n])
	}
	return b
}

// readReservation: SPC-4 §6.15.3. Under an all registrants type there is no one
// holder and the key is 0.
func (s *state) readReservation() []byte {
	if s.typ == None {
		return s.header(0)
	}
	b := append(s.header(16), make([]byte, 16)...)
	if !s.typ.AllRegistrants() {
		binary.BigEndian.PutUint64(b[8:], s.keys[s.holder])
	}
	b[21] = byte(s.typ) // SCOPE, in the upper half, is LU_SCOPE (0)
	return b
}

// reportCapabilities: SPC-4 §6.15.4.
func (s *state) reportCapabilities(ptpl bool) []byte {
	const (
		crh, sipC, atpC, ptplC = 0x10, 0x08, 0x04, 0x01
		// TMV, and ALLOW COMMANDS 001b: TEST UNIT READY runs under every type.
		// More is not said, as the command table is not ours.
		tmv, allow, ptplA = 0x80, 0x10, 0x01
		allTypes          = 0xea01
	)
	b := []byte{0, 8, crh | sipC | atpC, tmv | allow, allTypes >> 8, allTypes & 0xff, 0, 0}
	if ptpl {
		b[2] |= ptplC
	}
	if s.aptpl {
		b[3] |= ptplA
	}
	return b
}

// readFullStatus: SPC-4 §6.15.5. Each registration names its target port;
// ALL_TG_PT stays 0 as a registration made with it is kept as one for each port.
func (s *state) readFullStatus() []byte {
	total := 0
	for _, n := range s.order {
		total += 24 + transportIDLen(n.Initiator)
	}
	b := s.header(total)
	for _, n := range s.order {
		if len(b) >= maxIn {
			break
		}
		b = binary.BigEndian.AppendUint64(b, s.keys[n])
		b = append(b, 0, 0, 0, 0)
		if s.holds(n) {
			b = append(b, 0x01, byte(s.typ))
		} else {
			b = append(b, 0, 0)
		}
		b = append(b, 0, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, n.RelPort)
		b = binary.BigEndian.AppendUint32(b, uint32(transportIDLen(n.Initiator)))
		b = AppendTransportID(b, n.Initiator)
	}
	return b
}
