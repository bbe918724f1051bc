package scsi

import (
	"encoding/binary"
	"math"

	"blockgate/scsi/sense"
)

// A multimedia unit is a read-only CD or DVD drive with one data track: what a
// host needs to mount an ISO image and to boot from it (MMC-6). Nothing can be
// burnt, and there is no audio.

// discBlock is the block length of a disc, in bytes.
const discBlock = 2048

// maxCDBlocks is what a CD holds, 80 minutes of 75 blocks a second; an image
// that is larger is a DVD.
const maxCDBlocks = 80 * 60 * 75

// msfOffset is the address in blocks of LBA 0 in minutes, seconds and frames.
const msfOffset = 150

// Profiles (MMC-6 table 93).
const (
	profileCDROM  = 0x0008
	profileDVDROM = 0x0010
)

// trackControl: ADR 1, a data track that may not be copied.
const trackControl = 0x14

// leadOut is the track number of the lead-out area.
const leadOut = 0xaa

func mmcCommands() []Command {
	return []Command{{
		Name: "READ TOC/PMA/ATIP", Op: 0x43, SA: NoSA,
		// Linux gives the format in the CONTROL byte, where SFF-8020 had it.
		Usage: []byte{0x43, 0x02, 0x0f, 0, 0, 0, useBytes, useBytes, useBytes, 0}, Lenient: true,
		Types: TypeCD, Dir: DirIn, Access: AccessRead, Reserve: ResRead, Run: readTOC,
	}, {
		Name: "GET CONFIGURATION", Op: 0x46, SA: NoSA,
		Usage: []byte{0x46, 0x03, useBytes, useBytes, 0, 0, 0, useBytes, useBytes, 0},
		Types: TypeCD, Dir: DirIn, Reserve: ResAllowed, NoUA: true, Run: getConfiguration,
	}, {
		Name: "GET EVENT STATUS NOTIFICATION", Op: 0x4a, SA: NoSA,
		Usage: []byte{0x4a, 0x01, 0, 0, useBytes, 0, 0, useBytes, useBytes, 0},
		Types: TypeCD, Dir: DirIn, Reserve: ResAllowed, NoUA: true, Run: getEventStatus,
	}, {
		Name: "READ DISC INFORMATION", Op: 0x51, SA: NoSA,
		Usage: []byte{0x51, 0x07, 0, 0, 0, 0, 0, useBytes, useBytes, 0},
		Types: TypeCD, Dir: DirIn, Access: AccessRead, Reserve: ResRead, Run: readDiscInformation,
	}, {
		Name: "READ TRACK INFORMATION", Op: 0x52, SA: NoSA,
		Usage: []byte{0x52, 0x03, useBytes, useBytes, useBytes, useBytes, 0, useBytes, useBytes, 0},
		Types: TypeCD, Dir: DirIn, Access: AccessRead, Reserve: ResRead, Run: readTrackInformation,
	}, {
		Name: "MECHANISM STATUS", Op: 0xbd, SA: NoSA,
		Usage: []byte{0xbd, 0, 0, 0, 0, 0, 0, 0, useBytes, useBytes, 0, 0},
		Types: TypeCD, Dir: DirIn, Reserve: ResAllowed, Run: mechanismStatus,
	}}
}

// discBlocks is the capacity in blocks, as far as the fields of MMC go.
func (u *Unit) discBlocks() uint32 { return uint32(min(u.Blocks(), math.MaxUint32)) }

// alloc16 is the ALLOCATION LENGTH of most MMC commands.
func alloc16(t *Task) int64 { return int64(binary.BigEndian.Uint16(t.CDB[7:])) }

// appendAddress appends an address of READ TOC: an LBA, or minutes, seconds and
// frames. A DVD has more blocks than fit the latter, which then stay at their end.
func appendAddress(b []byte, lba uint32, msf bool) []byte {
	if !msf {
		return binary.BigEndian.AppendUint32(b, lba)
	}
	m, s, f := minutes(lba)
	return append(b, 0, m, s, f)
}

func minutes(lba uint32) (m, s, f byte) {
	n := uint64(lba) + msfOffset
	if n >= 256*60*75 {
		return 255, 59, 74
	}
	return byte(n / (60 * 75)), byte(n / 75 % 60), byte(n % 75)
}

// readTOC is READ TOC/PMA/ATIP (MMC-6 §6.26) of the formats that a pressed disc
// has: the table of contents, the multi-session information, and the full table.
func readTOC(t *Task) {
	msf := t.CDB[1]&0x02 != 0
	format := t.CDB[2] & 0x0f
	if format == 0 {
		format = t.CDB[9] >> 6
	}
	first, end := t.CDB[6], t.unit.discBlocks()
	b := []byte{0, 0, 1, 1} // first and last track, or session
	switch format {
	case 0:
		if first > 1 && first != leadOut {
			t.Fail(sense.InvalidFieldInCDB(6, -1))
			return
		}
		if first <= 1 {
			b = appendAddress(append(b, 0, trackControl, 1, 0), 0, msf)
		}
		b = appendAddress(append(b, 0, trackControl, leadOut, 0), end, msf)
	case 1:
		b = appendAddress(append(b, 0, trackControl, 1, 0), 0, msf)
	case 2:
		if first > 1 {
			t.Fail(sense.InvalidFieldInCDB(6, -1))
			return
		}
		entry := func(point, m, s, f byte) {
			b = append(b, 1, trackControl, 0, point, 0, 0, 0, 0, m, s, f)
		}
		entry(0xa0, 1, 0, 0) // the first track is 1, the disc a CD-ROM
		entry(0xa1, 1, 0, 0) // and the last
		m, s, f := minutes(end)
		entry(0xa2, m, s, f)
		m, s, f = minutes(0)
		entry(1, m, s, f)
	default:
		t.Fail(sense.InvalidFieldInCDB(2, 3))
		return
	}
	binary.BigEndian.PutUint16(b, uint16(len(b)-2))
	t.Respond(b, alloc16(t))
}

// readDiscInformation is READ DISC INFORMATION (MMC-6 §6.21), the standard data
// type: a finalized disc with one session of one track.
func readDiscInformation(t *Task) {
	if t.CDB[1]&0x07 != 0 {
		t.Fail(sense.InvalidFieldInCDB(1, 2))
		return
	}
	var b [34]byte
	binary.BigEndian.PutUint16(b[:], uint16(len(b)-2))
	b[2] = 0x0e                         // the last session is complete, and so is the disc
	b[3], b[4], b[5], b[6] = 1, 1, 1, 1 // first track; sessions; first and last track of the last
	b[7] = 0x20                         // URU: the host application code means nothing
	copy(b[16:], "\xff\xff\xff\xff")    // no next session can begin
	copy(b[20:], "\xff\xff\xff\xff")    // and none could end
	t.Respond(b[:], alloc16(t))
}

// readTrackInformation is READ TRACK INFORMATION (MMC-6 §6.27).
func readTrackInformation(t *Task) {
	u := t.unit
	n := binary.BigEndian.Uint32(t.CDB[2:])
	var known bool
	switch t.CDB[1] & 0x03 {
	case 0: // by an LBA in it
		known = n < u.discBlocks()
	case 1, 2: // by track or session
		known = n == 1
	}
	if !known {
		t.Fail(sense.InvalidFieldInCDB(2, -1))
		return
	}
	var b [36]byte
	binary.BigEndian.PutUint16(b[:], uint16(len(b)-2))
	b[2], b[3] = 1, 1 // track and session
	b[5] = trackControl & 0x0f
	b[6] = 0x01 // data mode 1
	binary.BigEndian.PutUint32(b[24:], u.discBlocks())
	binary.BigEndian.PutUint32(b[28:], u.discBlocks()-1) // the last recorded address
	b[7] = 0x02                                          // LRA_V
	t.Respond(b[:], alloc16(t))
}

// mechanismStatus is MECHANISM STATUS (MMC-6 §6.9): no changer, the door open if
// the disc was ejected.
func mechanismStatus(t *Task) {
	var b [8]byte
	if t.unit.flags.Load()&unitEjected != 0 {
		b[1] = 0x10
	}
	t.Respond(b[:], int64(binary.BigEndian.Uint16(t.CDB[8:])))
}
