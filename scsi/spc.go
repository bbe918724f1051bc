package scsi

import (
	"encoding/binary"

	"blockgate/internal/bufpool"
	"blockgate/scsi/sense"
)

// Opcodes that the framework itself looks at.
const (
	opTestUnitReady     = 0x00
	opRequestSense      = 0x03
	opInquiry           = 0x12
	opReadCapacity10    = 0x25
	opServiceActionIn16 = 0x9e
	opReportLUNs        = 0xa0
)

// withMedium are the device types whose units have a medium.
const withMedium = TypeDisk | TypeCD

// spcCommands gives the rows of the primary commands (SPC-4 §6).
func spcCommands() []Command {
	return []Command{{
		Name: "TEST UNIT READY", Op: opTestUnitReady, SA: NoSA,
		Usage: []byte{opTestUnitReady, 0, 0, 0, 0, 0},
		Types: AnyType, Reserve: ResAllowedPR,
		Run: func(*Task) {}, // Admit has found the unit ready
	}, {
		Name: "REQUEST SENSE", Op: opRequestSense, SA: NoSA,
		Usage: []byte{opRequestSense, 0x01, 0, 0, 0xff, 0},
		Types: AnyType, Dir: DirIn, Reserve: ResAllowed, ALUA: InStandby | InUnavailable | InTransition | InOffline,
		NoUA: true, Run: requestSense,
	}, {
		Name: "INQUIRY", Op: opInquiry, SA: NoSA,
		Usage: []byte{opInquiry, 0x01, 0xff, 0xff, 0xff, 0},
		Types: AnyType, Dir: DirIn, Reserve: ResAllowed, ALUA: InStandby | InUnavailable | InTransition | InOffline,
		NoUA: true, Run: inquiry,
	}, {
		Name: "REPORT LUNS", Op: opReportLUNs, SA: NoSA,
		Usage: []byte{opReportLUNs, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0},
		Types: AnyType, Dir: DirIn, Reserve: ResAllowed, ALUA: InStandby | InUnavailable | InTransition | InOffline,
		NoUA: true, Run: reportLUNs,
	}, {
		Name: "MODE SENSE(6)", Op: 0x1a, SA: NoSA,
		Usage: []byte{0x1a, 0x08, 0xff, 0xff, 0xff, 0},
		Types: withMedium, Dir: DirIn, Reserve: ResRead, ALUA: InStandby, Run: modeSense,
	}, {
		Name: "MODE SENSE(10)", Op: 0x5a, SA: NoSA,
		Usage: []byte{0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0},
		Types: withMedium, Dir: DirIn, Reserve: ResRead, ALUA: InStandby, Run: modeSense,
	}, {
		Name: "MODE SELECT(6)", Op: 0x15, SA: NoSA,
		Usage: []byte{0x15, 0x11, 0, 0, 0xff, 0},
		Types: withMedium, Dir: DirOut, Reserve: ResWrite, ALUA: InStandby, Medium: true, Waits: true,
		OutLen: modeSelectLen, Run: modeSelect,
	}, {
		Name: "MODE SELECT(10)", Op: 0x55, SA: NoSA,
		Usage: []byte{0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0},
		Types: withMedium, Dir: DirOut, Reserve: ResWrite, ALUA: InStandby, Medium: true, Waits: true,
		OutLen: modeSelectLen, Run: modeSelect,
	}, {
		Name: "LOG SENSE", Op: 0x4d, SA: NoSA,
		Usage: []byte{0x4d, 0, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, 0},
		Types: withMedium, Dir: DirIn, Reserve: ResAllowedPR, ALUA: InStandby, Waits: true, Run: logSense,
	}, {
		Name: "SEND DIAGNOSTIC", Op: 0x1d, SA: NoSA,
		Usage: []byte{0x1d, 0x17, 0, 0, 0, 0},
		Types: withMedium, Reserve: ResWrite, Medium: true, Run: sendDiagnostic,
	}, {
		Name: "START STOP UNIT", Op: 0x1b, SA: NoSA,
		Usage: []byte{0x1b, 0x01, 0, 0x0f, 0xf7, 0},
		Types: withMedium, Reserve: ResOwn, Medium: true, Waits: true, Run: startStopUnit,
	}, {
		Name: "PREVENT ALLOW MEDIUM REMOVAL", Op: 0x1e, SA: NoSA,
		Usage: []byte{0x1e, 0, 0, 0, 0x03, 0},
		Types: withMedium, Reserve: ResOwn, Run: preventAllow,
	}, {
		Name: "REPORT SUPPORTED OPERATION CODES", Op: opMaintenanceIn, SA: 0x0c,
		Usage: []byte{opMaintenanceIn, 0x0c, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0},
		Types: AnyType, Dir: DirIn, Reserve: ResRead, ALUA: InStandby, Run: reportSupportedOpcodes,
	}, {
		Name: "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", Op: opMaintenanceIn, SA: 0x0d,
		Usage: []byte{opMaintenanceIn, 0x0d, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0},
		Types: AnyType, Dir: DirIn, Reserve: ResRead, ALUA: InStandby, Run: reportSupportedTMFs,
	}}
}

// requestSense gives a pending unit attention, or the reason why the unit is not
// ready, as parameter data (SPC-4 §6.39).
func requestSense(t *Task) {
	u := t.unit
	s := sense.Nothing()
	flags := u.flags.Load()
	if u.absent {
		s = sense.LUNotSupported()
	} else if a, ok := t.itl.takeAttention(); ok {
		s = a
	} else if st := t.itl.accessState(); st > ActiveNonOptimized {
		s = st.sense()
	} else if flags&unitOperating != 0 {
		s = u.progress()
	} else if flags&unitSanitizeFailed != 0 {
		s = sense.SanitizeFailed()
	} else if flags&(unitOffline|unitEjected) != 0 {
		s = u.notReady(flags)
	} else if flags&unitRefuses != 0 && u.cfg.Load().Stall.Action == StallFail {
		s = sense.NotReadyNoCause()
	}
	var buf [sense.MaxLen]byte
	t.Respond(s.Encode(buf[:], t.CDB[1]&0x01 != 0), int64(t.CDB[4]))
}

// reportLUNs lists what the nexus sees (SPC-4 §6.33).
func reportLUNs(t *Task) {
	sel := t.CDB[2]
	if sel > 2 {
		t.Fail(sense.InvalidFieldInCDB(2, -1))
		return
	}
	b := make([]byte, 8)
	if sel != 0 {
		b = binary.BigEndian.AppendUint64(b, lunReportLUNs)
	}
	if sel != 1 {
		for _, n := range t.Nexus.luns.Load().numbers() {
			b = binary.BigEndian.AppendUint64(b, FormatLUN(n))
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-8))
	t.Nexus.clearReportedLUNs()
	t.Respond(b, int64(binary.BigEndian.Uint32(t.CDB[6:])))
}

// sendDiagnostic performs the default self-test, which is to read a block; other
// tests and parameter lists are refused by the usage map.
func sendDiagnostic(t *Task) {
	if t.CDB[1]&0x04 == 0 {
		return
	}
	b := bufpool.Get(t.unit.BlockSize())
	defer bufpool.Put(b)
	if err := t.Store().ReadAt(t.Context(), b.B, 0); err != nil {
		t.FailStore(err, AccessRead, 0)
	}
}

// startStopUnit loads and ejects; there is no spindle to stop, so that a unit
// told to stop writes its cache back and stays ready (SBC-3 §5.25).
func startStopUnit(t *Task) {
	u := t.unit
	b := t.CDB[4]
	start, loej, noFlush, power := b&0x01 != 0, b&0x02 != 0, b&0x04 != 0, b>>4
	if !(start && power == 0) && t.conflictsAs(ResWrite) {
		t.Status = ReservationConflict
		return
	}
	if power != 0 {
		loej, start = false, true // LOEJ and START mean nothing then
	}
	if loej && !u.cfg.Load().Removable {
		t.Fail(sense.InvalidFieldInCDB(4, 1))
		return
	}
	if !start && !noFlush && u.flags.Load()&(unitEjected|unitReadOnly) == 0 {
		if err := t.Store().Flush(t.Context()); err != nil {
			t.FailStore(err, AccessNone, 0)
			return
		}
	}
	if !loej {
		if u.flags.Load()&unitEjected != 0 && power == 0 && start {
			t.Fail(sense.MediumNotPresent())
		}
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	// What is prevented is removal, but initiators of disks have come to expect
	// that the medium then moves in neither direction.
	if u.preventedLocked() && (!start || u.typeBit == TypeDisk) {
		t.Fail(sense.MediumRemovalPrevented())
		return
	}
	if was := u.flags.Load()&unitEjected != 0; was && start {
		u.raiseLocked(attnMediumChanged, t.itl)
		u.mediaEventLocked(mediaNew)
	} else if !was && !start {
		u.mediaEventLocked(mediaRemoval)
	}
	u.setFlag(unitEjected, !start)
}

// preventAllow sets or clears this nexus's prevention (SPC-4 §6.16).
func preventAllow(t *Task) {
	prevent := t.CDB[4]&0x03 != 0
	if prevent && t.conflictsAs(ResWrite) || t.conflictsAs(ResAllowedPR) {
		t.Status = ReservationConflict
		return
	}
	t.unit.mu.Lock()
	defer t.unit.mu.Unlock()
	if !t.itl.gone {
		t.itl.prevent = prevent
	}
}
