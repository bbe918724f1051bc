package scsi

import (
	"encoding/binary"

	"blockgate/scsi/sense"
)

func sbcDefectCommands() []Command {
	return []Command{{
		Name: "READ DEFECT DATA(10)", Op: 0x37, SA: NoSA,
		Usage: []byte{0x37, 0, 0x1f, 0, 0, 0, 0, useBytes, useBytes, 0},
		Types: TypeDisk, Dir: DirIn, Access: AccessRead, Reserve: ResRead,
		Run: readDefectData10,
	}, {
		Name: "READ DEFECT DATA(12)", Op: 0xb7, SA: NoSA,
		Usage: []byte{0xb7, 0x1f, useBytes, useBytes, useBytes, useBytes,
			useBytes, useBytes, useBytes, useBytes, 0, 0},
		Types: TypeDisk, Dir: DirIn, Access: AccessRead, Reserve: ResRead,
		Run: readDefectData12,
	}}
}

// defectHeader checks the byte of the CDB that names the lists and their format,
// and gives the one that answers it: both lists are there if they were asked for
// (PLISTV, GLISTV), in the format that was asked for. A store has no defects
// that an initiator could manage, so the lists are empty. ok false: the format
// is vendor specific or reserved, and the task has failed.
func defectHeader(t *Task, at int) (b byte, ok bool) {
	b = t.CDB[at] & 0x1f
	if b&0x07 > 5 {
		t.Fail(sense.InvalidFieldInCDB(at, 2))
		return 0, false
	}
	return b, true
}

// readDefectData10 is SBC-3 §5.17.
func readDefectData10(t *Task) {
	b, ok := defectHeader(t, 2)
	if !ok {
		return
	}
	p := [4]byte{1: b}
	t.Respond(p[:], int64(binary.BigEndian.Uint16(t.CDB[7:])))
}

// readDefectData12 is SBC-3 §5.18. An address descriptor index beyond the list's
// end, which is every one but zero, does not exist.
func readDefectData12(t *Task) {
	b, ok := defectHeader(t, 1)
	if !ok {
		return
	}
	if binary.BigEndian.Uint32(t.CDB[2:]) != 0 {
		t.Fail(sense.InvalidFieldInCDB(2, -1))
		return
	}
	p := [8]byte{1: b}
	t.Respond(p[:], int64(binary.BigEndian.Uint32(t.CDB[6:])))
}
