package scsi

import (
	"encoding/binary"

	"blockgate/scsi/sense"
)

// logPage is one log page (SPC-4 §7.3).
type logPage struct {
	code, sub byte
	last      uint16 // its highest parameter code
	params    []byte
}

const logInformational = 0x2f

// logPages are what a unit with a medium has: the lists of pages, and an
// informational exceptions page that never has one. There is no temperature to
// report (FFh).
var logPages = [...]logPage{
	{code: 0x00, sub: 0x00, params: []byte{0x00, logInformational}},
	{code: 0x00, sub: 0xff, params: []byte{0x00, 0x00, 0x00, 0xff, logInformational, 0x00}},
	{code: logInformational, sub: 0x00, params: []byte{0x00, 0x00, 0x03, 0x04, 0x00, 0x00, 0xff, 0x00}},
}

// logSense is LOG SENSE (SPC-4 §6.9). The page control field makes no difference:
// there are no thresholds.
func logSense(t *Task) {
	code, sub := t.CDB[2]&0x3f, t.CDB[3]
	var known bool
	for _, p := range logPages {
		if p.code != code {
			continue
		}
		known = true
		if p.sub != sub {
			continue
		}
		if binary.BigEndian.Uint16(t.CDB[5:]) > p.last {
			t.Fail(sense.InvalidFieldInCDB(5, -1))
			return
		}
		b := []byte{code, sub, 0, 0}
		if sub != 0 {
			b[0] |= 0x40 // SPF
		}
		b = append(b, p.params...)
		binary.BigEndian.PutUint16(b[2:], uint16(len(p.params)))
		t.Respond(b, int64(binary.BigEndian.Uint16(t.CDB[7:])))
		return
	}
	if known {
		t.Fail(sense.InvalidFieldInCDB(3, -1))
	} else {
		t.Fail(sense.InvalidFieldInCDB(2, 5))
	}
}
