package scsi

import (
	"encoding/binary"
	"math"
)

// Parameters of the Logical Block Provisioning log page (SBC-3 §6.3.4).
const (
	resourceAvailable = 0x0001
	resourceUsed      = 0x0002
)

// Values of a parameter's SCOPE field.
const (
	scopeUnit   = 0x01
	scopeShared = 0x02
)

// thresholdSet is the unit in which resources are counted, in bytes: counts have
// 32 bits, which reach to 4 PiB.
const thresholdSet = 1 << 20

// thresholdExponent is log2 of a threshold set in blocks, for the Logical Block
// Provisioning VPD page; 0 if the store does not tell what it uses. Thresholds
// that would raise a unit attention are not kept: the store tells when it is
// asked and at no other time, and the page that would set them (1Ch, 02h) has
// none.
func (u *Unit) thresholdExponent() byte {
	if u.caps.usager == nil || !u.thin() {
		return 0
	}
	e := byte(1) // 0 would mean that there are no counts
	for int64(u.BlockSize())<<e < thresholdSet {
		e++
	}
	return e
}

// logResources gives the available and the used resource count. What is
// available is shared with everything else on the medium behind the store.
func logResources(t *Task) ([]logParameter, error) {
	u := t.unit
	usage, err := u.caps.usager.Usage(t.Context())
	if err != nil {
		return nil, err
	}
	set := int64(u.BlockSize()) << u.thresholdExponent()
	param := func(code uint16, n int64, scope byte) logParameter {
		b := make([]byte, 12)
		binary.BigEndian.PutUint16(b, code)
		b[2], b[3] = 0x03, 8 // a binary list that is not saved
		binary.BigEndian.PutUint32(b[4:], uint32(min(n, math.MaxUint32)))
		b[8] = scope
		return logParameter{code, b}
	}
	return []logParameter{
		param(resourceAvailable, usage.Available/set, scopeShared),
		// What is used in part is not available any more.
		param(resourceUsed, (usage.Used+set-1)/set, scopeUnit),
	}, nil
}
