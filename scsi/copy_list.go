package scsi

import (
	"encoding/binary"

	"blockgate/scsi/sense"
)

// The parameter list of EXTENDED COPY(LID1) (SPC-4 §6.5, §6.4.3 to §6.4.6).
const (
	copyHeaderLen = 16
	cscdLen       = 32

	cscdIdentification = 0xe4
	cscdOwnUnit        = 0xffff // the unit that the command was sent to

	segBlockBlock  = 0x02
	segBlockOffset = 0x0a // block to block, both with byte offsets

	segBlockBlockLen  = 0x18 // bytes after the first four
	segBlockOffsetLen = 0x1c

	// listIDUnused is the LIST ID USAGE by which no list identifier is given.
	listIDReserved, listIDUnused = 1, 3
)

// copyList is a parameter list that has been understood. It refers to the
// data-out, which stays while the task runs.
type copyList struct {
	id       uint32
	keep     bool   // results are kept for the list identifier
	cscds    []byte // descriptors of cscdLen bytes, from copyHeaderLen on
	segments []copySegment
}

// copySegment is one segment descriptor.
type copySegment struct {
	kind     byte
	destCnt  bool // DC: the count is in destination blocks
	src, dst uint16
	count    uint32 // blocks, or bytes in a descriptor with offsets
	srcLBA   uint64
	dstLBA   uint64
	srcOff   uint16 // bytes into the first block
	dstOff   uint16
}

// parseCopyList checks everything about a list that can be told from itself; all
// of it is ILLEGAL REQUEST, and nothing has been copied then.
func parseCopyList(p []byte) (*copyList, *sense.Sense) {
	be := binary.BigEndian
	if len(p) < copyHeaderLen {
		s := sense.ParameterListLength()
		return nil, &s
	}
	ncscd, nseg, ninline := int64(be.Uint16(p[2:])), int64(be.Uint32(p[8:])), int64(be.Uint32(p[12:]))
	usage := p[1] >> 3 & 3
	switch {
	case ncscd+nseg > maxDescriptorList, copyHeaderLen+ncscd+nseg > int64(len(p)):
		s := sense.ParameterListLength()
		return nil, &s
	case usage == listIDReserved:
		return nil, badList(1, 4)
	case usage == listIDUnused && p[0] != 0:
		return nil, badList(0, -1)
	case ncscd%cscdLen != 0:
		return nil, badList(2, -1)
	case ncscd > maxCSCDs*cscdLen:
		s := sense.TooManyTargets(2)
		return nil, &s
	case ninline != 0: // no descriptor that refers to inline data is supported
		s := sense.InlineDataLength(12)
		return nil, &s
	}
	l := &copyList{id: uint32(p[0]), keep: usage != listIDUnused, cscds: p[copyHeaderLen:][:ncscd]}
	for at := 0; at < len(l.cscds); at += cscdLen {
		if s := checkCSCD(l.cscds[at:], copyHeaderLen+at); s != nil {
			return nil, s
		}
	}
	first := copyHeaderLen + int(ncscd)
	for rest := p[first:][:nseg]; len(rest) > 0; {
		at := first + int(nseg) - len(rest)
		if len(l.segments) == maxCopySegments {
			s := sense.TooManySegments(8)
			return nil, &s
		}
		seg, n, s := parseSegment(rest, at)
		if s != nil {
			return nil, s
		}
		l.segments = append(l.segments, seg)
		rest = rest[n:]
	}
	return l, nil
}

func badList(byteN, bit int) *sense.Sense {
	s := sense.InvalidFieldInParameterList(byteN, bit)
	return &s
}

// checkCSCD checks the form of a CSCD descriptor at byte at of the list. LU ID
// TYPE and RELATIVE INITIATOR PORT IDENTIFIER are ignored, as SPC-4 has it for
// identification descriptors of units in the same device.
func checkCSCD(d []byte, at int) *sense.Sense {
	if d[0] != cscdIdentification {
		s := sense.UnsupportedTarget(at)
		return &s
	}
	if d[7] > 20 {
		return badList(at+7, -1)
	}
	return nil
}

// parseSegment reads the segment descriptor at the beginning of p, which is byte
// at of the list, and tells its length.
func parseSegment(p []byte, at int) (copySegment, int, *sense.Sense) {
	be := binary.BigEndian
	var seg copySegment
	var want int
	switch p[0] {
	case segBlockBlock:
		want = segBlockBlockLen
	case segBlockOffset:
		want = segBlockOffsetLen
	default:
		s := sense.UnsupportedSegment(at)
		return seg, 0, &s
	}
	if len(p) < 4+want {
		s := sense.ParameterListLength()
		return seg, 0, &s
	}
	if int(be.Uint16(p[2:])) != want {
		return seg, 0, badList(at+2, -1)
	}
	seg = copySegment{
		kind: p[0], src: be.Uint16(p[4:]), dst: be.Uint16(p[6:]),
		srcLBA: be.Uint64(p[12:]), dstLBA: be.Uint64(p[20:]),
	}
	if seg.kind == segBlockBlock {
		seg.destCnt = p[1]&0x02 != 0
		seg.count = uint32(be.Uint16(p[10:]))
	} else {
		seg.count = be.Uint32(p[8:])
		seg.srcOff, seg.dstOff = be.Uint16(p[28:]), be.Uint16(p[30:])
	}
	return seg, 4 + want, nil
}
