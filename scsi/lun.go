package scsi

// lunReportLUNs is the REPORT LUNS well known logical unit (SAM-5 §4.7.5.5).
const lunReportLUNs = 0xc101 << 48

// MaxLUN is the largest logical unit number that can be addressed.
const MaxLUN = 1<<24 - 1

// FormatLUN gives the eight bytes of the LUN field, big endian, for a plain
// number: peripheral device addressing below 256, flat space addressing below
// 16384, extended flat space addressing up to MaxLUN (SAM-5 §4.7.5). Beyond
// MaxLUN the result is not addressable and 0 is returned.
func FormatLUN(n uint64) uint64 {
	switch {
	case n < 1<<8:
		return n << 48
	case n < 1<<14:
		return (1<<14 | n) << 48
	case n <= MaxLUN:
		return 0xd2<<56 | n<<32
	}
	return 0
}

// ParseLUN gives the plain number of a LUN field. It accepts the three forms of
// FormatLUN, each for every number that fits it, with bus identifier 0 and
// nothing in the lower levels. ok is false for anything else, well known
// logical units included.
func ParseLUN(field uint64) (n uint64, ok bool) {
	switch field >> 62 {
	case 0: // peripheral device
		if field&^(0xff<<48) != 0 {
			return 0, false
		}
		return field >> 48, true
	case 1: // flat space
		if field&(1<<48-1) != 0 {
			return 0, false
		}
		return field >> 48 & 0x3fff, true
	case 3: // extended: length 1, method 2 is flat space
		if field>>56 == 0xd2 && field&(1<<32-1) == 0 {
			return field >> 32 & MaxLUN, true
		}
	}
	return 0, false
}
