package scsi

import (
	"bytes"
	"encoding/binary"

	"blockgate/scsi/sense"
)

// extendedCopy is EXTENDED COPY(LID1) (SPC-4 §6.5). The segments are processed
// in order and each ends before the next begins.
func extendedCopy(t *Task) {
	if t.OutLen == 0 {
		return
	}
	if int64(len(t.Out)) < t.OutLen {
		t.Fail(sense.ParameterListLength())
		return
	}
	l, s := parseCopyList(t.Out)
	if s != nil {
		t.Fail(*s)
		return
	}
	op := beginCopy(t, l.id, l.keep)
	if op == nil {
		return
	}
	defer op.end()
	for i := range l.segments {
		op.record.segments.Store(uint32(i + 1))
		if s := op.segment(l, i); s != nil {
			// The segment number goes into the third and fourth byte.
			t.Fail(s.WithCommandInfo(uint64(i)))
			return
		}
	}
}

// segment processes one segment descriptor. What goes wrong is COPY ABORTED.
func (op *copyOp) segment(l *copyList, i int) *sense.Sense {
	seg := &l.segments[i]
	src, s := op.cscd(l, seg.src, 4)
	if s != nil {
		return s
	}
	dst, s := op.cscd(l, seg.dst, 6)
	if s != nil {
		return s
	}
	from, to, n, s := seg.places(src, dst)
	if s != nil || n == 0 {
		return s
	}
	var written int64
	f := op.move(to, from, n, nil, func(k int64) { written += k; op.record.moved.Add(uint64(k)) })
	if f == nil {
		return nil
	}
	return f.abort(src, dst, n-written, written > 0)
}

// places tells what a segment descriptor copies, in bytes, after holding it
// against the sizes of the two units.
func (seg *copySegment) places(src, dst *copyAccess) (from, to copyPlace, n int64, s *sense.Sense) {
	bad := func(c sense.Sense, field int) (copyPlace, copyPlace, int64, *sense.Sense) {
		c = c.WithSegmentPointer(true, field)
		return copyPlace{}, copyPlace{}, 0, &c
	}
	sbs, dbs := int64(src.unit.BlockSize()), int64(dst.unit.BlockSize())
	n = int64(seg.count)
	countField := 8
	if seg.kind == segBlockBlock {
		countField = 10
		if seg.destCnt {
			n *= dbs
		} else {
			n *= sbs
		}
		// What does not fit would have to be kept for the next segment or padded,
		// by the CAT and PAD bits, which is not offered.
		if n%sbs != 0 || n%dbs != 0 {
			return bad(sense.CopyInexact(), countField)
		}
	}
	switch {
	case n > maxSegmentBytes:
		return bad(sense.CopyInvalidField(), countField)
	case int64(seg.srcOff) >= sbs:
		return bad(sense.CopyInvalidField(), 28)
	case int64(seg.dstOff) >= dbs:
		return bad(sense.CopyInvalidField(), 30)
	case !fits(src.unit, seg.srcLBA, int64(seg.srcOff)+n):
		return bad(sense.CopySegmentInvalid(), 12)
	case !fits(dst.unit, seg.dstLBA, int64(seg.dstOff)+n):
		return bad(sense.CopySegmentInvalid(), 20)
	}
	from = copyPlace{src, byteOffset(src.unit, seg.srcLBA) + int64(seg.srcOff)}
	to = copyPlace{dst, byteOffset(dst.unit, seg.dstLBA) + int64(seg.dstOff)}
	return from, to, n, nil
}

// fits says whether n bytes from the beginning of lba are on the medium.
func fits(u *Unit, lba uint64, n int64) bool {
	bs := int64(u.BlockSize())
	return checkRange(u, lba, uint64((n+bs-1)/bs)) == nil
}

// cscd finds the unit that a CSCD descriptor ID of a segment descriptor stands
// for; field is where in the segment descriptor the ID is.
func (op *copyOp) cscd(l *copyList, id uint16, field int) (*copyAccess, *sense.Sense) {
	if id == cscdOwnUnit {
		return op.open(op.t.unit, op.t.itl), nil
	}
	at := int(id) * cscdLen
	if at >= len(l.cscds) {
		s := sense.CopyUnreachable().WithSegmentPointer(true, field)
		return nil, &s
	}
	d := l.cscds[at:][:cscdLen]
	bad := func(s sense.Sense, byteN int) (*copyAccess, *sense.Sense) {
		s = s.WithSegmentPointer(false, copyHeaderLen+at+byteN)
		return nil, &s
	}
	a := op.find(d)
	if a == nil {
		return bad(sense.CopyNotReachable(), 0)
	}
	a.descriptor = copyHeaderLen + at
	c := a.unit.cfg.Load()
	if d[1]&0x1f != byte(c.Type) || a.unit.typeBit != TypeDisk {
		return bad(sense.CopyWrongType(), 0)
	}
	if bs := binary.BigEndian.Uint32(d[28:]) & 0xffffff; bs != 0 && int(bs) != a.unit.BlockSize() {
		return bad(sense.CopyInvalidField(), 29)
	}
	return a, nil
}

// find looks for the unit of an identification descriptor among those that the
// initiator sees. The unit that the command was sent to goes first; otherwise a
// designator that fits several names none.
func (op *copyOp) find(d []byte) *copyAccess {
	own := op.t.unit
	if own.designatedBy(d) {
		return op.open(own, op.t.itl)
	}
	var found *copyAccess
	for _, u := range own.copies.designated(d) {
		if a := op.open(u, nil); a != nil {
			if found != nil {
				return nil
			}
			found = a
		}
	}
	return found
}

// designated lists the units that a CSCD descriptor fits.
func (m *CopyManager) designated(d []byte) []*Unit {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var us []*Unit
	for u := range m.units {
		if u.designatedBy(d) {
			us = append(us, u)
		}
	}
	return us
}

// designatedBy says whether the Device Identification page of the unit has the
// designator of an identification descriptor (SPC-4 §6.4.5.6).
func (u *Unit) designatedBy(d []byte) bool {
	codeSet, kind, data := d[4]&0x0f, d[5], d[8:8+d[7]]
	c := u.cfg.Load()
	switch {
	case kind == assocUnit|designatorNAA && codeSet == codeBinary:
		return c.NAA != [16]byte{} && bytes.Equal(data, c.NAA[:])
	case kind == assocUnit|designatorT10 && codeSet == codeASCII:
		return bytes.Equal(data, c.t10Designator())
	}
	return false
}

// abort is the sense data for a failed source or destination (SPC-4 §5.17.7.4):
// residual bytes have not been written, of which INFORMATION tells if others have.
func (f *copyFault) abort(src, dst *copyAccess, residual int64, written bool) *sense.Sense {
	s := sense.CopyDeviceFailure().WithForward(&sense.Forwarded{
		Destination: !f.source, Status: byte(f.status), Sense: f.sense,
	})
	at := dst.descriptor
	if f.source {
		at = src.descriptor
	}
	if at != 0 {
		s = s.WithSegmentPointer(false, at)
	}
	if written {
		bs := int64(dst.unit.BlockSize())
		s = s.WithInfo(uint64((residual + bs - 1) / bs))
	}
	return &s
}
