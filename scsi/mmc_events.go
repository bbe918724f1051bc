package scsi

import (
	"encoding/binary"

	"blockgate/scsi/sense"
)

// Media events of GET EVENT STATUS NOTIFICATION (MMC-6 §6.6).
const (
	mediaNoChange byte = 0
	mediaNew      byte = 2
	mediaRemoval  byte = 3
)

const (
	classMedia     = 4
	classMediaMask = 1 << classMedia
)

// getEventStatus is GET EVENT STATUS NOTIFICATION. Events are polled for, each
// nexus has its own, and of the classes only that of the medium is known.
func getEventStatus(t *Task) {
	if t.CDB[1]&0x01 == 0 { // asynchronous
		t.Fail(sense.InvalidFieldInCDB(1, 0))
		return
	}
	b := []byte{0, 2, 0x80, classMediaMask} // NEA: no such event
	if t.CDB[4]&classMediaMask != 0 {
		u := t.unit
		u.mu.Lock()
		event := t.itl.media
		if alloc16(t) >= 8 && t.MaxIn >= 8 {
			t.itl.media = mediaNoChange // it is reported
		}
		u.mu.Unlock()
		status := byte(0x02) // the medium is present
		switch flags := u.flags.Load(); {
		case flags&unitEjected != 0:
			status = 0x01 // the door is open
		case flags&unitOffline != 0:
			status = 0x00
		}
		b = []byte{0, 6, classMedia, classMediaMask, event, status, 0, 0}
	}
	t.Respond(b, alloc16(t))
}

// mediaEventLocked notes for every nexus that the medium came or went.
func (u *Unit) mediaEventLocked(event byte) {
	for i := range u.itls {
		i.media = event
	}
}

// feature is one feature descriptor of GET CONFIGURATION (MMC-6 §5).
type feature struct {
	code    uint16
	version byte // bits 5 to 2 of the descriptor's byte 2
	persist bool
	current func(ready bool, profile uint16) bool // nil: always
	data    []byte
}

func whenReady(ready bool, _ uint16) bool { return ready }

func whenProfile(p uint16) func(bool, uint16) bool {
	return func(_ bool, current uint16) bool { return current == p }
}

// features are read-only, ascending.
var features = []feature{
	{code: 0x0001, version: 2, persist: true, data: []byte{0, 0, 0, 1, 0x01, 0, 0, 0}}, // core: SCSI, DBE
	{code: 0x0002, version: 1, persist: true, data: []byte{0, 0, 0, 0}},                // morphing: events are polled for
	{code: 0x0003, persist: true, data: []byte{0x29, 0, 0, 0}},                         // removable: tray, eject, lock
	{code: 0x0010, current: whenReady, data: []byte{0, 0, discBlock >> 8, 0, 0, 1, 0, 0}},
	{code: 0x001e, version: 2, current: whenProfile(profileCDROM), data: []byte{0, 0, 0, 0}},
	{code: 0x001f, current: whenProfile(profileDVDROM), data: []byte{}},
	{code: 0x0105, version: 1, persist: true, data: []byte{0, 0, 0, 0}}, // timeout
}

// getConfiguration is GET CONFIGURATION (MMC-6 §6.5).
func getConfiguration(t *Task) {
	u := t.unit
	rt, start := t.CDB[1]&0x03, binary.BigEndian.Uint16(t.CDB[2:])
	if rt == 3 {
		t.Fail(sense.InvalidFieldInCDB(1, 1))
		return
	}
	ready := u.flags.Load()&(unitOffline|unitEjected) == 0
	var profile uint16
	switch {
	case !ready:
	case u.Blocks() > maxCDBlocks:
		profile = profileDVDROM
	default:
		profile = profileCDROM
	}
	b := make([]byte, 8)
	binary.BigEndian.PutUint16(b[6:], profile)
	add := func(code uint16, flags byte, data []byte) {
		if code < start || rt == 1 && flags&0x01 == 0 || rt == 2 && code != start {
			return
		}
		b = append(b, byte(code>>8), byte(code), flags, byte(len(data)))
		b = append(b, data...)
	}
	list := make([]byte, 0, 8)
	for _, p := range []uint16{profileDVDROM, profileCDROM} {
		is := byte(0)
		if p == profile {
			is = 1
		}
		list = append(list, byte(p>>8), byte(p), is, 0)
	}
	add(0x0000, 0x03, list) // the profile list is persistent and current
	for _, f := range features {
		flags := f.version << 2
		if f.persist {
			flags |= 0x02
		}
		if f.current == nil || f.current(ready, profile) {
			flags |= 0x01
		}
		add(f.code, flags, f.data)
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	t.Respond(b, alloc16(t))
}

// discCapabilities fills mode page 2Ah, C/DVD Capabilities and Mechanical Status
// (MMC-3 §6.3.11), which MMC-4 has made obsolete and every host still reads.
func discCapabilities(b []byte, locked bool) {
	const (
		readsCDR, readsDVDROM = 0x01, 0x08
		tray                  = 0x20
		eject                 = 0x08
		lockable, isLocked    = 0x01, 0x02
		speed                 = 50 * 176 // of a drive that nobody need wait for, in kB/s
	)
	b[2] = readsCDR | readsDVDROM
	b[4] = 0x70 // mode 2 form 1 and 2, multi-session
	b[6] = tray | eject | lockable
	if locked {
		b[6] |= isLocked
	}
	binary.BigEndian.PutUint16(b[8:], speed)
	binary.BigEndian.PutUint16(b[12:], 512) // KiB of buffer
	binary.BigEndian.PutUint16(b[14:], speed)
}
