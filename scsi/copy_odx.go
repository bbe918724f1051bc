package scsi

import (
	"cmp"
	"encoding/binary"
	"slices"

	"blockgate/scsi/sense"
)

// Parameter lists of POPULATE TOKEN and WRITE USING TOKEN (SBC-4 §5.12.2,
// §5.59.2): a header and block device range descriptors.
const (
	populateHeaderLen = 16
	writeHeaderLen    = 536
	rangeDescLen      = 16
)

// tokenRanges reads the range descriptors of a parameter list p whose header has
// n bytes, the last two of which are their length, and which begins with the
// length of the whole. Descriptors that are cut off do not count.
func tokenRanges(u *Unit, p []byte, n int) ([]blockRange, *sense.Sense) {
	be := binary.BigEndian
	if len(p) < n {
		s := sense.ParameterListLength()
		return nil, &s
	}
	list := int(be.Uint16(p[n-2:]))
	switch {
	case int(be.Uint16(p)) < n+rangeDescLen-2:
		return nil, badList(0, -1)
	case list < rangeDescLen:
		return nil, badList(n-2, -1)
	}
	list = min(list, int(be.Uint16(p))+2-n, len(p)-n)
	if list/rangeDescLen > maxTokenRanges {
		s := sense.TooManySegments(n - 2)
		return nil, &s
	}
	ranges := make([]blockRange, 0, list/rangeDescLen)
	var total uint64
	for at := n; at+rangeDescLen <= n+list; at += rangeDescLen {
		r := blockRange{be.Uint64(p[at:]), uint64(be.Uint32(p[at+8:]))}
		if total += r.nblocks; total > maxTokenBytes>>u.blockShift {
			return nil, badList(at+8, -1)
		}
		if r.nblocks > 0 || r.lba > u.Blocks() {
			if s := checkRange(u, r.lba, r.nblocks); s != nil {
				return nil, s
			}
		}
		ranges = append(ranges, r)
	}
	sorted := slices.SortedFunc(slices.Values(ranges), func(a, b blockRange) int { return cmp.Compare(a.lba, b.lba) })
	end := uint64(0)
	for _, r := range sorted {
		if r.nblocks == 0 {
			continue
		}
		if r.lba < end {
			return nil, badList(n-2, -1) // a block is there twice
		}
		end = r.lba + r.nblocks
	}
	return ranges, nil
}

// populateToken is POPULATE TOKEN (SBC-4 §5.12). IMMED is taken as zero, as SPC-4
// §5.17.4.3 lets who does nothing in the background: there is next to nothing to
// wait for.
func populateToken(t *Task) {
	if t.OutLen == 0 {
		return
	}
	if int64(len(t.Out)) < t.OutLen {
		t.Fail(sense.ParameterListLength())
		return
	}
	ranges, s := tokenRanges(t.unit, t.Out, populateHeaderLen)
	if s != nil {
		t.Fail(*s)
		return
	}
	idle := binary.BigEndian.Uint32(t.Out[4:])
	kind := binary.BigEndian.Uint32(t.Out[8:])
	switch {
	case idle > maxTokenIdle:
		t.Fail(*badList(4, -1))
		return
	case t.Out[2]&0x02 != 0 && kind != rodChangeVulnerable && kind != rodAnyPointInTime:
		t.Fail(*badList(8, -1))
		return
	case idle == 0:
		idle = defaultTokenIdle
	}
	op := beginCopy(t, copyListID(t.CDB), true)
	if op == nil {
		return
	}
	defer op.end()
	k := newToken(t, ranges, idle)
	if k.nbytes == 0 {
		t.Fail(sense.DataUnderrun(0)) // there is no token for nothing
		return
	}
	// From here on every change cancels the token. Changes that have begun
	// already do not, so they are waited for: the data is what they leave.
	u := t.unit
	u.watch(k)
	own := op.open(u, t.itl)
	for _, r := range ranges {
		if r.nblocks == 0 {
			continue
		}
		if f := op.hold(own, holdStill, r.lba, r.nblocks).release(); f != nil {
			u.unwatch(k)
			f.answer(t)
			return
		}
	}
	if !u.copies.addToken(k) { // the unit is being closed
		u.unwatch(k)
		t.Fail(sense.LUNotSupported())
		return
	}
	op.token = k.bytes[:]
	op.record.moved.Store(uint64(k.nbytes))
}

// answer ends the task in the way in which its own unit answered to the copy
// manager.
func (f *copyFault) answer(t *Task) {
	switch {
	case f.reason != nil:
		t.Fail(*f.reason)
	case f.status == TaskAborted:
		// By COPY OPERATION ABORT or a task management function: see copyOp.end.
		t.Fail(sense.CopyCleared())
	default:
		t.Status = f.status
		t.Sense = append(t.senseBuf[:0], f.sense...)
	}
}

// writeUsingToken is WRITE USING TOKEN (SBC-4 §5.59), also always in the
// foreground.
func writeUsingToken(t *Task) {
	if t.OutLen == 0 {
		return
	}
	if int64(len(t.Out)) < t.OutLen {
		t.Fail(sense.ParameterListLength())
		return
	}
	u := t.unit
	ranges, s := tokenRanges(u, t.Out, writeHeaderLen)
	if s != nil {
		t.Fail(*s)
		return
	}
	be := binary.BigEndian
	offset, token, del := be.Uint64(t.Out[8:]), t.Out[16:16+rodTokenLen], t.Out[2]&0x02 != 0
	op := beginCopy(t, copyListID(t.CDB), true)
	if op == nil {
		return
	}
	defer op.end()
	if be.Uint32(token) == rodBlockZero && be.Uint16(token[6:]) == rodLength {
		op.writeZeroes(ranges)
		return
	}
	k, s := u.copies.useToken(token)
	if s != nil {
		t.Fail(*s)
		return
	}
	defer func() {
		k.done()
		if del {
			k.invalidate(tokenDeleted)
			k.unit.unwatch(k)
		}
	}()
	if offset >= uint64(k.nbytes+int64(u.BlockSize())-1)>>u.blockShift {
		t.Fail(*badList(8, -1))
		return
	}
	op.writeToken(k, ranges, int64(offset)<<u.blockShift)
}

// writeZeroes writes what the block device zero ROD token stands for.
func (op *copyOp) writeZeroes(ranges []blockRange) {
	u := op.t.unit
	own := op.open(u, op.t.itl)
	for _, r := range ranges {
		f := op.zeroes(copyPlace{own, byteOffset(u, r.lba)}, int64(r.nblocks)<<u.blockShift, op.progress)
		if f != nil {
			f.answer(op.t)
			return
		}
	}
}

func (op *copyOp) progress(n int64) { op.record.moved.Add(uint64(n)) }

// writeToken writes the data of a token from byte off of it on. Where the data
// ends within a block the rest of the block is zeroed, and what does not exist at
// all is an underrun.
func (op *copyOp) writeToken(k *rodToken, ranges []blockRange, off int64) {
	u := op.t.unit
	dst, src := op.open(u, op.t.itl), op.open(k.unit, k.owner)
	bs := int64(u.BlockSize())
	var wanted int64
	for _, r := range ranges {
		to := copyPlace{dst, byteOffset(u, r.lba)}
		n := int64(r.nblocks) * bs
		wanted += n
		have := min(n, k.nbytes-off)
		for have > 0 {
			from, run := k.at(src, off)
			run = min(run, have)
			if f := op.move(to, from, run, k.sense, op.progress); f != nil {
				op.tokenFailed(f, src, dst)
				return
			}
			to, off, have, n = to.plus(run), off+run, have-run, n-run
		}
		if rest := n % bs; rest > 0 { // the data ended within a block
			if f := op.writePiece(to, make([]byte, rest)); f != nil {
				f.answer(op.t)
				return
			}
			op.progress(rest)
		}
	}
	if moved := op.record.moved.Load(); moved < uint64(wanted) {
		op.t.Fail(sense.DataUnderrun(moved >> u.blockShift))
	}
}

// at is where byte off of the token's data is, and how many bytes follow there.
func (k *rodToken) at(src *copyAccess, off int64) (copyPlace, int64) {
	for _, r := range k.ranges {
		n := int64(r.nblocks) << k.unit.blockShift
		if off < n {
			return copyPlace{src, byteOffset(k.unit, r.lba) + off}, n - off
		}
		off -= n
	}
	return copyPlace{src, 0}, 0
}

// tokenFailed ends WRITE USING TOKEN: its own unit's errors are its own, those of
// the unit that has the data are a third party's.
func (op *copyOp) tokenFailed(f *copyFault, src, dst *copyAccess) {
	if f.reason == nil && f.source && f.status != TaskAborted {
		op.t.Fail(*f.abort(src, dst, 0, false))
		return
	}
	f.answer(op.t)
}
