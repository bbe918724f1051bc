package state

import (
	"crypto/rand"
	"encoding/hex"
)

// newNAA makes a 128-bit NAA identifier of type 6 (IEEE Registered Extended,
// SPC-4 §7.8.6.6.5) as 32 hex digits. We own no IEEE company id, so all but
// the leading digit is random: 124 bits keep two volumes apart wherever they
// were made.
func newNAA() string {
	var b [16]byte
	rand.Read(b[:])
	b[0] = 0x60 | b[0]&0x0f
	return hex.EncodeToString(b[:])
}

// newSerial makes a unit serial number of 16 hex digits.
func newSerial() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// identify fills what the unit lacks of an identity: first from old, which may
// be nil, then from random bits.
func (u *UnitParams) identify(old *UnitParams) {
	if old != nil {
		if u.NAA == "" {
			u.NAA = old.NAA
		}
		if u.Serial == "" {
			u.Serial = old.Serial
		}
	}
	if u.NAA == "" {
		u.NAA = newNAA()
	}
	if u.Serial == "" {
		u.Serial = newSerial()
	}
}
