package scsi

import (
	"encoding/binary"
	"sync"

	"blockgate/scsi/sense"
)

// Limits of the copy manager, as the Third-party Copy VPD page reports them.
const (
	maxCopies         = 64        // copies at a time, of all units together
	maxCSCDs          = 64        // CSCD descriptors in one list
	maxCopySegments   = 256       // segment descriptors in one list
	maxDescriptorList = 16 << 10  // bytes of both together
	maxSegmentBytes   = 256 << 20 // what one segment may write

	// maxCopyParams bounds the data-out of EXTENDED COPY: more than every list
	// that is processed has, so that the others are refused for what is wrong
	// with them.
	maxCopyParams = 64 << 10
)

// CopyManager lets units copy from and to each other (SPC-4 §5.17): it knows the
// units that share it and keeps the ROD tokens made of them. A gateway has one,
// given to each unit by UnitConfig.Copies. Safe for concurrent use.
type CopyManager struct {
	mu     sync.RWMutex // before any Unit.mu
	units  map[*Unit]struct{}
	active int // copies now
	tokens tokenStore
}

// NewCopyManager makes a copy manager without units.
func NewCopyManager() *CopyManager {
	return &CopyManager{units: map[*Unit]struct{}{}, tokens: newTokenStore()}
}

// add makes a unit one that can be named as a copy source or destination.
func (m *CopyManager) add(u *Unit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.units[u] = struct{}{}
}

// remove forgets a unit; copies that run fail at their next piece.
func (m *CopyManager) remove(u *Unit) {
	m.mu.Lock()
	delete(m.units, u)
	gone := m.tokens.forget(u)
	m.mu.Unlock()
	for _, t := range gone {
		u.unwatch(t)
	}
}

// enter takes one of the places for copies.
func (m *CopyManager) enter() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.active >= maxCopies {
		return false
	}
	m.active++
	return true
}

func (m *CopyManager) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.active--
}

// copies reports whether the unit has the third-party copy commands.
func (u *Unit) hasCopies() bool { return u.copies != nil && u.typeBit == TypeDisk }

const (
	opThirdPartyOut = 0x83
	opThirdPartyIn  = 0x84

	saExtendedCopy    = 0x00
	saPopulateToken   = 0x10
	saWriteUsingToken = 0x11
	saCopyAbort       = 0x1c

	saStatusLID1  = 0x00
	saParameters  = 0x03
	saFailure     = 0x04
	saStatusLID4  = 0x05
	saTokenResult = 0x07
)

// copyCommands gives the rows of the third-party copy commands (SPC-4 table 107,
// SBC-4 §5.12, §5.59). They have no blocks of their own in the task set: what
// they touch, on whichever unit, they hold piece by piece (see copyHold).
func copyCommands() []Command {
	const b = useBytes
	lid4 := func(op, sa, group byte) []byte {
		return []byte{op, sa, 0, 0, 0, 0, b, b, b, b, b, b, b, b, group, 0}
	}
	in := func(sa byte, name string, use []byte, run func(*Task)) Command {
		use[0], use[1] = opThirdPartyIn, sa
		return Command{
			Name: name, Op: opThirdPartyIn, SA: int(sa), Usage: use,
			Types: TypeDisk, Dir: DirIn, Reserve: ResWrite, Supported: (*Unit).hasCopies, Run: run,
		}
	}
	lid1In := func() []byte { return []byte{0, 0, b, 0, 0, 0, 0, 0, 0, 0, b, b, b, b, 0, 0} }
	lid4In := func() []byte { return []byte{0, 0, b, b, b, b, 0, 0, 0, 0, b, b, b, b, 0, 0} }
	parameters := lid1In()
	parameters[2] = 0
	return []Command{{
		Name: "EXTENDED COPY(LID1)", Op: opThirdPartyOut, SA: saExtendedCopy,
		Usage: []byte{opThirdPartyOut, saExtendedCopy, 0, 0, 0, 0, 0, 0, 0, 0, b, b, b, b, 0, 0},
		Types: TypeDisk, Dir: DirOut, Reserve: ResWrite, Medium: true, Waits: true,
		Supported: (*Unit).hasCopies, OutLen: copyOutLen, Run: extendedCopy,
	}, {
		Name: "POPULATE TOKEN", Op: opThirdPartyOut, SA: saPopulateToken,
		Usage: lid4(opThirdPartyOut, saPopulateToken, useGroup),
		Types: TypeDisk, Dir: DirOut, Access: AccessRead, Reserve: ResRead, Medium: true, Waits: true,
		Supported: (*Unit).hasCopies, OutLen: copyOutLen, Range: noBlocks, Run: populateToken,
	}, {
		Name: "WRITE USING TOKEN", Op: opThirdPartyOut, SA: saWriteUsingToken,
		Usage: lid4(opThirdPartyOut, saWriteUsingToken, useGroup),
		Types: TypeDisk, Dir: DirOut, Access: AccessWrite, Reserve: ResWrite, Medium: true, Waits: true,
		Supported: (*Unit).hasCopies, OutLen: copyOutLen, Range: noBlocks, Run: writeUsingToken,
	}, {
		Name: "COPY OPERATION ABORT", Op: opThirdPartyOut, SA: saCopyAbort,
		Usage: []byte{opThirdPartyOut, saCopyAbort, b, b, b, b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		Types: TypeDisk, Reserve: ResWrite, Supported: (*Unit).hasCopies, Run: copyOperationAbort,
	},
		in(saStatusLID1, "RECEIVE COPY STATUS(LID1)", lid1In(), receiveCopyStatus1),
		in(saParameters, "RECEIVE COPY OPERATING PARAMETERS", parameters, receiveCopyParameters),
		in(saFailure, "RECEIVE COPY FAILURE DETAILS(LID1)", lid1In(), receiveCopyFailure),
		in(saStatusLID4, "RECEIVE COPY STATUS(LID4)", lid4In(), receiveCopyStatus4),
		in(saTokenResult, "RECEIVE ROD TOKEN INFORMATION", lid4In(), receiveTokenInformation),
	}
}

// noBlocks is Command.Range of commands that hold their blocks piece by piece.
func noBlocks(*Task) (lba, nblocks uint64) { return 0, 0 }

// copyOutLen asks for the parameter list; none at all is not an error.
func copyOutLen(t *Task) (int64, *sense.Sense) {
	n := binary.BigEndian.Uint32(t.CDB[10:])
	if n > maxCopyParams || n > 0 && n < copyHeaderLen {
		s := sense.ParameterListLength()
		return 0, &s
	}
	return int64(n), nil
}

// copyListID is the list identifier of a CDB that has one.
func copyListID(cdb []byte) uint32 {
	switch {
	case cdb[0] == opThirdPartyOut && cdb[1]&0x1f != saCopyAbort:
		return binary.BigEndian.Uint32(cdb[6:])
	case cdb[0] == opThirdPartyIn && cdb[1]&0x1f < saStatusLID4:
		return uint32(cdb[2])
	}
	return binary.BigEndian.Uint32(cdb[2:])
}

// lendWorkers changes how many goroutines may wait for the store. A copy takes a
// worker for long, so it gives the unit another one meanwhile: however many
// copies run, the unit's other commands have all of theirs.
func (u *Unit) lendWorkers(n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	q := &u.mediumWork
	q.limit += n
	if q.head != nil && q.workers < q.limit {
		q.workers++
		go u.work(q)
	}
}
