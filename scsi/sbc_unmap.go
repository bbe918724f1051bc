package scsi

import (
	"encoding/binary"
	"math"

	"blockgate/scsi/sense"
)

// Lengths in bytes of the UNMAP parameter list's header and of one block
// descriptor (SBC-3 §5.28.2).
const (
	unmapHeaderLen = 8
	unmapDescLen   = 16
)

func sbcUnmapCommands() []Command {
	return []Command{{
		Name: "UNMAP", Op: 0x42, SA: NoSA,
		// ANCHOR asks for a provisioning state that no store has.
		Usage: []byte{0x42, 0, 0, 0, 0, 0, useGroup, useBytes, useBytes, 0},
		Types: TypeDisk, Dir: DirOut, Access: AccessWrite, Reserve: ResWrite,
		Medium: true, Supported: (*Unit).thin,
		OutLen: unmapOutLen, Range: unmapRange, Run: unmap,
	}}
}

// unmapOutLen asks for the parameter list. None at all is not an error, one that
// does not reach the end of its header is.
func unmapOutLen(t *Task) (int64, *sense.Sense) {
	n := int64(binary.BigEndian.Uint16(t.CDB[7:]))
	if n > 0 && n < unmapHeaderLen {
		s := sense.ParameterListLength()
		return 0, &s
	}
	return n, nil
}

// unmapRange spans the blocks of all descriptors. It is asked when the task
// starts, with the parameter list there; a list that will be refused touches
// nothing.
func unmapRange(t *Task) (lba, nblocks uint64) {
	descs, s := unmapList(t.Out)
	if s != nil || len(descs)/unmapDescLen > maxUnmapDescs {
		return 0, 0
	}
	first, end := uint64(math.MaxUint64), uint64(0)
	for ; len(descs) > 0; descs = descs[unmapDescLen:] {
		lba, n := unmapDesc(descs)
		if n == 0 {
			continue
		}
		first, end = min(first, lba), max(end, lba+min(n, math.MaxUint64-lba))
	}
	if first >= end {
		return 0, 0
	}
	return first, end - first
}

// unmapList gives the block descriptors of a parameter list. A descriptor that
// the list's or the header's length cuts off is ignored (SBC-3 §5.28.2).
func unmapList(p []byte) ([]byte, *sense.Sense) {
	if len(p) < unmapHeaderLen {
		s := sense.ParameterListLength()
		return nil, &s
	}
	n := min(int(binary.BigEndian.Uint16(p[2:])), len(p)-unmapHeaderLen)
	return p[unmapHeaderLen:][:n/unmapDescLen*unmapDescLen], nil
}

// unmapDesc reads one block descriptor.
func unmapDesc(d []byte) (lba, nblocks uint64) {
	return binary.BigEndian.Uint64(d), uint64(binary.BigEndian.Uint32(d[8:]))
}

// checkUnmap holds the descriptors against the limits of the Block Limits VPD
// page and the size of the medium, all before the first block is unmapped.
func checkUnmap(u *Unit, descs []byte) *sense.Sense {
	maxBlocks, maxDescs := u.maxUnmap()
	if uint64(len(descs)/unmapDescLen) > maxDescs {
		s := sense.InvalidFieldInParameterList(2, -1)
		return &s
	}
	var total uint64
	for i := 0; i < len(descs); i += unmapDescLen {
		lba, nblocks := unmapDesc(descs[i:])
		// A descriptor of no blocks names none, so it may stand at the end.
		if nblocks > 0 || lba > u.Blocks() {
			if s := checkRange(u, lba, nblocks); s != nil {
				return s
			}
		}
		if total += nblocks; total > maxBlocks {
			s := sense.InvalidFieldInParameterList(unmapHeaderLen+i+8, -1)
			return &s
		}
	}
	return nil
}

// unmap is UNMAP (SBC-3 §5.28).
func unmap(t *Task) {
	u := t.unit
	if t.OutLen == 0 {
		return
	}
	if int64(len(t.Out)) < t.OutLen {
		t.Fail(sense.ParameterListLength())
		return
	}
	descs, s := unmapList(t.Out)
	if s == nil {
		s = checkUnmap(u, descs)
	}
	if s != nil {
		t.Fail(*s)
		return
	}
	done := false
	for len(descs) > 0 {
		lba, nblocks := unmapDesc(descs)
		descs = descs[unmapDescLen:]
		// A run of many descriptors is one to the store, which may be far away.
		for len(descs) > 0 {
			next, n := unmapDesc(descs)
			if next != lba+nblocks {
				break
			}
			nblocks += n
			descs = descs[unmapDescLen:]
		}
		if nblocks == 0 {
			continue
		}
		if !discard(t, byteOffset(u, lba), int64(nblocks)*int64(u.BlockSize())) {
			return
		}
		done = true
	}
	if done && cacheOff(t) {
		flushOut(t)
	}
}
