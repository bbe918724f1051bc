package scsi

import (
	"encoding/binary"
	"math"

	"blockgate/scsi/sense"
)

// capacity16Len is the length of the READ CAPACITY (16) parameter data in bytes.
const capacity16Len = 32

func sbcCapacityCommands() []Command {
	return []Command{{
		Name: "READ CAPACITY(10)", Op: 0x25, SA: NoSA,
		// The LBA and PMI are obsolete since SBC-3 and must be zero.
		Usage: []byte{0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		Types: TypeDisk | TypeCD, Dir: DirIn, Access: AccessRead, Reserve: ResAllowed, ALUA: InStandby,
		Run: readCapacity10,
	}, {
		Name: "READ CAPACITY(16)", Op: 0x9e, SA: 0x10,
		Usage: []byte{0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0,
			useBytes, useBytes, useBytes, useBytes, 0, 0},
		Types: TypeDisk, Dir: DirIn, Access: AccessRead, Reserve: ResAllowed, ALUA: InStandby,
		Run: readCapacity16,
	}}
}

// readCapacity10 answers FFFFFFFFh for the last LBA when it does not fit, which
// tells the initiator to use READ CAPACITY(16) (SBC-3 §5.15.2).
func readCapacity10(t *Task) {
	u := t.unit
	size := u.Blocks()
	if size == 0 {
		t.Fail(sense.MediumNotPresent())
		return
	}
	var p [8]byte
	binary.BigEndian.PutUint32(p[:], uint32(min(size-1, math.MaxUint32)))
	binary.BigEndian.PutUint32(p[4:], uint32(u.BlockSize()))
	t.Respond(p[:], int64(len(p)))
}

// readCapacity16 is SBC-3 §5.16.
func readCapacity16(t *Task) {
	u := t.unit
	size := u.Blocks()
	if size == 0 {
		t.Fail(sense.MediumNotPresent())
		return
	}
	var p [capacity16Len]byte
	binary.BigEndian.PutUint64(p[:], size-1)
	binary.BigEndian.PutUint32(p[8:], uint32(u.BlockSize()))
	p[13] = byte(u.physicalExp) & 0x0f
	binary.BigEndian.PutUint16(p[14:], uint16(u.lowestAligned)&0x3fff)
	if u.thin() {
		p[14] |= 0x80 // LBPME
		// Every Discarder reads discarded ranges back as zeroes.
		p[14] |= 0x40 // LBPRZ
	}
	t.Respond(p[:], int64(binary.BigEndian.Uint32(t.CDB[10:])))
}
