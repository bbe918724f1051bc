package scsi

import "encoding/binary"

const vpdCodeCopy = 0x8f

// What the copy manager processes, in ascending order.
var copyDescriptorTypes = []byte{segBlockBlock, segBlockOffset, cscdIdentification}

// vpdThirdPartyCopy is the Third-party Copy page (SPC-4 §7.8.17, SBC-4 §6.6.9).
func vpdThirdPartyCopy(t *Task, b []byte) []byte {
	be := binary.BigEndian
	u := t.unit

	// Block device ROD limits.
	d := make([]byte, 32)
	be.PutUint16(d[6:], maxTokenRanges)
	be.PutUint32(d[8:], maxTokenIdle)
	be.PutUint32(d[12:], defaultTokenIdle)
	be.PutUint64(d[16:], maxTokenBytes>>u.blockShift)
	be.PutUint64(d[24:], optimalTokenBytes>>u.blockShift)
	b = copyDescriptor(b, 0x0000, d)

	// Supported commands, as the table has them.
	var list []byte
	for _, op := range []byte{opThirdPartyOut, opThirdPartyIn} {
		at := len(list)
		list = append(list, op, 0)
		for _, c := range u.table.ops[op] {
			list = append(list, byte(c.SA))
		}
		list[at+1] = byte(len(list) - at - 2)
	}
	b = copyDescriptor(b, 0x0001, append([]byte{byte(len(list))}, list...))

	// Parameter data.
	d = make([]byte, 28)
	be.PutUint16(d[4:], maxCSCDs)
	be.PutUint16(d[6:], maxCopySegments)
	be.PutUint32(d[8:], maxDescriptorList)
	b = copyDescriptor(b, 0x0004, d)

	// Supported descriptors, and CSCD descriptor IDs besides those of descriptors.
	b = copyDescriptor(b, 0x0008, append([]byte{byte(len(copyDescriptorTypes))}, copyDescriptorTypes...))
	b = copyDescriptor(b, 0x000c, []byte{0, 2, cscdOwnUnit >> 8, cscdOwnUnit & 0xff})

	// ROD token features: local tokens only, and what block tokens can be.
	d = make([]byte, 44+48)
	be.PutUint32(d[12:], tokenLife)
	be.PutUint32(d[16:], tokenLife)
	be.PutUint32(d[20:], maxTokenIdle)
	be.PutUint16(d[42:], 48)
	f := d[44:]
	be.PutUint16(f[2:], 44)
	be.PutUint64(f[8:], maxTokenBytes)
	be.PutUint64(f[16:], optimalTokenBytes)
	be.PutUint64(f[24:], maxTokenBytes)
	be.PutUint64(f[32:], optimalTokenBytes)
	b = copyDescriptor(b, 0x0106, d)

	// Supported ROD types.
	const tokenIn, tokenOut = 0x02, 0x01
	d = []byte{0, 0, 0, 3 * 64}
	for _, r := range []struct {
		kind  uint32
		flags byte
	}{{rodChangeVulnerable, tokenIn | tokenOut}, {rodAnyPointInTime, tokenOut}, {rodBlockZero, tokenIn}} {
		var e [64]byte
		be.PutUint32(e[:], r.kind)
		e[4] = r.flags
		d = append(d, e[:]...)
	}
	b = copyDescriptor(b, 0x0108, d)

	// General copy operations. Any number of bytes can be copied.
	d = make([]byte, 32)
	be.PutUint32(d, maxCopies)
	be.PutUint32(d[4:], maxCopies)
	be.PutUint32(d[8:], maxSegmentBytes)
	return copyDescriptor(b, 0x8001, d)
}

// copyDescriptor appends a third-party copy descriptor, padded to four bytes.
func copyDescriptor(b []byte, kind uint16, data []byte) []byte {
	n := (len(data) + 3) &^ 3
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(n))
	b = append(b, data...)
	return append(b, make([]byte, n-len(data))...)
}

// receiveCopyParameters is RECEIVE COPY OPERATING PARAMETERS (SPC-4 §6.22), which
// tells what the VPD page tells in the form of SPC-3.
func receiveCopyParameters(t *Task) {
	be := binary.BigEndian
	b := make([]byte, 44)
	b[4] = 0x01 // SNLID: a copy may do without a list identifier
	be.PutUint16(b[8:], maxCSCDs)
	be.PutUint16(b[10:], maxCopySegments)
	be.PutUint32(b[12:], maxDescriptorList)
	be.PutUint32(b[16:], maxSegmentBytes)
	be.PutUint16(b[34:], maxCopies)
	b[36] = maxCopies
	b[43] = byte(len(copyDescriptorTypes))
	b = append(b, copyDescriptorTypes...)
	be.PutUint32(b, uint32(len(b)-4))
	t.Respond(b, int64(be.Uint32(t.CDB[10:])))
}
