package scsi

import (
	"encoding/binary"
	"math"

	"blockgate/scsi/sense"
)

// Bits of the device-specific parameter (SBC-3 §6.4.1).
const (
	modeWP     = 0x80
	modeDPOFUA = 0x10
)

// modeSense is MODE SENSE(6) and (10) (SPC-4 §6.13, §6.14).
func modeSense(t *Task) {
	u := t.unit
	ten := t.CDB[0] == 0x5a
	pc, code, sub := t.CDB[2]>>6, t.CDB[2]&0x3f, t.CDB[3]
	if pc == 3 {
		t.Fail(sense.SavingNotSupported())
		return
	}
	if code == pageAll && sub != 0 && sub != subpageAll {
		t.Fail(sense.InvalidFieldInCDB(3, -1))
		return
	}
	u.mu.Lock()
	values, mask := u.mode, false
	locked := u.preventedLocked()
	u.mu.Unlock()
	switch pc {
	case 1:
		values, mask = everyBit, true
	case 2:
		values = defaultModePages(u)
	}
	values.locked = locked
	var pages []byte
	var known bool
	for _, p := range modePageList {
		p = p.of(u)
		if p.types&u.typeBit == 0 || code != pageAll && code != p.code {
			continue
		}
		known = true
		if sub == p.sub || sub == subpageAll {
			pages = append(pages, p.render(values, mask)...)
		}
	}
	if len(pages) == 0 {
		if known {
			t.Fail(sense.InvalidFieldInCDB(3, -1))
		} else {
			t.Fail(sense.InvalidFieldInCDB(2, 5))
		}
		return
	}

	var desc []byte
	longLBA := ten && t.CDB[1]&0x10 != 0
	if t.CDB[1]&0x08 == 0 && u.typeBit != TypeCD { // DBD; MMC has no block descriptors
		desc = u.blockDescriptor(longLBA)
	}
	device := byte(modeDPOFUA)
	if u.typeBit == TypeCD {
		device = 0 // reserved in MMC
	} else if u.flags.Load()&(unitReadOnly|unitSWP) != 0 {
		device |= modeWP
	}
	var b []byte
	var alloc int64
	if ten {
		b = make([]byte, 8, 8+len(desc)+len(pages))
		binary.BigEndian.PutUint16(b, uint16(6+len(desc)+len(pages)))
		b[3] = device
		if longLBA {
			b[4] = 0x01
		}
		b[7] = byte(len(desc))
		alloc = int64(binary.BigEndian.Uint16(t.CDB[7:]))
	} else {
		b = make([]byte, 4, 4+len(desc)+len(pages))
		b[0] = byte(3 + len(desc) + len(pages))
		b[2] = device
		b[3] = byte(len(desc))
		alloc = int64(t.CDB[4])
	}
	b = append(b, desc...)
	b = append(b, pages...)
	t.Respond(b, alloc)
}

// blockDescriptor is the short or long LBA mode parameter block descriptor
// (SBC-3 §6.4.2).
func (u *Unit) blockDescriptor(long bool) []byte {
	if long {
		b := make([]byte, 16)
		binary.BigEndian.PutUint64(b, u.Blocks())
		binary.BigEndian.PutUint32(b[12:], uint32(u.BlockSize()))
		return b
	}
	b := make([]byte, 8)
	binary.BigEndian.PutUint32(b[4:], uint32(u.BlockSize()))
	binary.BigEndian.PutUint32(b, uint32(min(u.Blocks(), math.MaxUint32)))
	return b
}
