package scsi

import (
	"encoding/binary"

	"blockgate/scsi/sense"
)

const opMaintenanceIn = 0xa3

// Values of the SUPPORT field (SPC-4 table 285).
const (
	supportNone     = 0x01
	supportStandard = 0x03
)

// commandTimeouts is a command timeouts descriptor that names no times (SPC-4
// §6.35.4): they depend on the store.
func commandTimeouts() []byte {
	b := make([]byte, 12)
	b[1] = 10
	return b
}

// usageOf is the CDB usage data of a row: the map, with the opcode and the
// service action themselves in their places.
func usageOf(c *Command) []byte {
	b := append([]byte(nil), c.Usage...)
	b[0] = c.Op
	if c.SA != NoSA {
		b[1] = b[1]&0xe0 | byte(c.SA)
	}
	return b
}

// reportSupportedOpcodes is REPORT SUPPORTED OPERATION CODES (SPC-4 §6.35).
func reportSupportedOpcodes(t *Task) {
	rctd, option := t.CDB[2]&0x80 != 0, t.CDB[2]&0x07
	alloc := int64(binary.BigEndian.Uint32(t.CDB[6:]))
	if option == 0 {
		t.Respond(t.unit.allOpcodes(rctd), alloc)
		return
	}
	op, sa := t.CDB[3], int(binary.BigEndian.Uint16(t.CDB[4:]))
	var plain, withSA, match *Command
	for _, c := range t.unit.table.ops[op] {
		if !t.unit.offers(c) {
			continue
		}
		if c.SA == NoSA {
			plain = c
		} else {
			withSA = c
			if c.SA == sa {
				match = c
			}
		}
	}
	switch option {
	case 1:
		if withSA != nil {
			t.Fail(sense.InvalidFieldInCDB(2, 2))
			return
		}
		match = plain
	case 2:
		if plain != nil {
			t.Fail(sense.InvalidFieldInCDB(2, 2))
			return
		}
	case 3:
		if plain != nil && sa == 0 {
			match = plain
		}
	default:
		t.Fail(sense.InvalidFieldInCDB(2, 2))
		return
	}
	b := []byte{0, supportNone, 0, 0}
	if match != nil {
		b[1] = supportStandard
		u := usageOf(match)
		binary.BigEndian.PutUint16(b[2:], uint16(len(u)))
		b = append(b, u...)
		if rctd {
			b[1] |= 0x80
			b = append(b, commandTimeouts()...)
		}
	}
	t.Respond(b, alloc)
}

// allOpcodes is the all_commands parameter data.
func (u *Unit) allOpcodes(rctd bool) []byte {
	b := make([]byte, 4)
	for i := range u.table.rows {
		c := &u.table.rows[i]
		if !u.offers(c) {
			continue
		}
		d := [8]byte{0: c.Op}
		if c.SA != NoSA {
			binary.BigEndian.PutUint16(d[2:], uint16(c.SA))
			d[5] |= 0x01 // SERVACTV
		}
		binary.BigEndian.PutUint16(d[6:], uint16(len(c.Usage)))
		if rctd {
			d[5] |= 0x02 // CTDP
		}
		b = append(b, d[:]...)
		if rctd {
			b = append(b, commandTimeouts()...)
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// reportSupportedTMFs is REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4 §6.36):
// all but CLEAR ACA and WAKEUP.
func reportSupportedTMFs(t *Task) {
	b := make([]byte, 4, 16)
	b[0] = 0x80 | 0x40 | 0x10 | 0x08 | 0x04 | 0x02 // ATS, ATSS, CTSS, LURS, QTS, TRS
	b[1] = 0x04 | 0x02 | 0x01                      // QAES, QTSS, ITNRS
	if t.CDB[2]&0x80 != 0 {                        // REPD: no timeouts to tell
		b = b[:16]
		b[3] = 12
	}
	t.Respond(b, int64(binary.BigEndian.Uint32(t.CDB[6:])))
}
