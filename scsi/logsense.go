package scsi

import (
	"encoding/binary"

	"blockgate/scsi/sense"
)

// Log page codes.
const (
	logSupported     = 0x00
	logProvisioning  = 0x0c
	logInformational = 0x2f

	logSubpages = 0xff // subpage of page 00h: the list with subpages
)

// logPage is one log page that a unit has (SPC-4 §7.3). There is no temperature
// and nothing else to report that would not be made up.
type logPage struct {
	code, sub byte
	supported func(u *Unit) bool // nil: every unit with a medium
	// build gives the parameters, ascending by code. The result is not changed.
	build func(t *Task) ([]logParameter, error)
}

// logParameter is one parameter; what stands in the list pages is raw.
type logParameter struct {
	code  uint16
	bytes []byte // with the header
}

// logPages are read-only, ascending.
var logPages = [...]logPage{
	{code: logProvisioning, supported: func(u *Unit) bool { return u.thresholdExponent() != 0 }, build: logResources},
	{code: logInformational, build: logExceptions},
}

// logPages are the unit's pages besides the lists.
func (u *Unit) logPages() []logPage {
	var l []logPage
	for _, p := range logPages {
		if p.supported == nil || p.supported(u) {
			l = append(l, p)
		}
	}
	return l
}

// logExceptions is the Informational Exceptions page: none, and no temperature.
func logExceptions(*Task) ([]logParameter, error) {
	return []logParameter{{0, []byte{0x00, 0x00, 0x03, 0x04, 0x00, 0x00, 0xff, 0x00}}}, nil
}

// logSense is LOG SENSE (SPC-4 §6.9). The page control field makes no difference:
// values are as they are, and there are no thresholds.
func logSense(t *Task) {
	code, sub := t.CDB[2]&0x3f, t.CDB[3]
	from := binary.BigEndian.Uint16(t.CDB[5:])
	pages := t.unit.logPages()
	b := []byte{code, sub, 0, 0}
	switch {
	case code == logSupported && sub == 0:
		b = append(b, logSupported)
		for _, p := range pages {
			b = append(b, p.code)
		}
	case code == logSupported && sub == logSubpages:
		b[0] |= 0x40 // SPF
		b = append(b, logSupported, 0, logSupported, logSubpages)
		for _, p := range pages {
			b = append(b, p.code, p.sub)
		}
	default:
		var ok bool
		if b, ok = logParameters(t, pages, b, from); !ok {
			return
		}
		from = 0
	}
	if from != 0 { // a list has no parameters
		t.Fail(sense.InvalidFieldInCDB(5, -1))
		return
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-4))
	t.Respond(b, int64(binary.BigEndian.Uint16(t.CDB[7:])))
}

// logParameters appends the parameters of the page that b is the header of, from
// the code from on. ok false: the task has failed.
func logParameters(t *Task, pages []logPage, b []byte, from uint16) (_ []byte, ok bool) {
	known := b[0] == logSupported
	for _, p := range pages {
		if p.code != b[0] {
			continue
		}
		known = true
		if p.sub != b[1] {
			continue
		}
		params, err := p.build(t)
		if err != nil {
			t.FailStore(err, AccessNone, 0)
			return nil, false
		}
		if from > params[len(params)-1].code {
			t.Fail(sense.InvalidFieldInCDB(5, -1))
			return nil, false
		}
		for _, q := range params {
			if q.code >= from {
				b = append(b, q.bytes...)
			}
		}
		return b, true
	}
	if known {
		t.Fail(sense.InvalidFieldInCDB(3, -1))
	} else {
		t.Fail(sense.InvalidFieldInCDB(2, 5))
	}
	return nil, false
}
