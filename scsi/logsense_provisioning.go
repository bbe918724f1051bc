package scsi

import (
	"encoding/binary"
	"math"

	"blockgate/backing"
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
// Provisioning VPD page; 0 if the store does not tell what it uses.
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
	available, used := u.resourceCounts(usage)
	param := func(code uint16, n uint32, scope byte) logParameter {
		b := make([]byte, 12)
		binary.BigEndian.PutUint16(b, code)
		b[2], b[3] = 0x03, 8 // a binary list that is not saved
		binary.BigEndian.PutUint32(b[4:], n)
		b[8] = scope
		return logParameter{code, b}
	}
	return []logParameter{
		param(resourceAvailable, available, scopeShared),
		param(resourceUsed, used, scopeUnit),
	}, nil
}

// resourceCounts gives usage in threshold sets: whole ones that are available,
// and those that are used also if they are used in part only.
func (u *Unit) resourceCounts(usage backing.Usage) (available, used uint32) {
	set := int64(u.BlockSize()) << u.thresholdExponent()
	return uint32(min(usage.Available/set, math.MaxUint32)), uint32(min((usage.Used+set-1)/set, math.MaxUint32))
}
