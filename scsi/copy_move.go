package scsi

import (
	"errors"

	"blockgate/backing"
	"blockgate/internal/bufpool"
	"blockgate/scsi/sense"
)

// copyRangeBytes is how much the store copies by itself in one piece, and with it
// the blocks that are held at a time.
const copyRangeBytes = 16 << 20

// copyPlace is where on a unit bytes are.
type copyPlace struct {
	at  *copyAccess
	off int64
}

// blocks gives the blocks that n bytes from p touch, and whether the last or the
// first of them is touched in part only.
func (p copyPlace) blocks(n int64) (lba, nblocks uint64, whole bool) {
	bs := int64(p.at.unit.BlockSize())
	first, end := p.off/bs, (p.off+n+bs-1)/bs
	return uint64(first), uint64(end - first), p.off%bs == 0 && n%bs == 0
}

func (p copyPlace) plus(n int64) copyPlace { p.off += n; return p }

// move copies n bytes. Pieces are copied in ascending order unless that would
// overwrite what is still to be read. After each piece valid, if not nil, says
// whether what was read may be used. progress is told what has been written from
// the beginning on without a gap.
func (op *copyOp) move(dst, src copyPlace, n int64, valid func() *sense.Sense, progress func(n int64)) *copyFault {
	same := dst.at.unit == src.at.unit
	overlap := same && dst.off < src.off+n && src.off < dst.off+n
	_, _, wholeDst := dst.blocks(n)
	_, _, wholeSrc := src.blocks(n)
	canCopy := dst.at.unit.caps.copierFrom != nil
	if same {
		canCopy = dst.at.unit.caps.copyRanger != nil && !overlap
	}
	if canCopy && wholeDst && wholeSrc {
		rest, f := op.moveInside(dst, src, n, valid, progress)
		if f != nil || rest == 0 {
			return f
		}
		dst, src, n = dst.plus(n-rest), src.plus(n-rest), rest
	}
	if n == 0 {
		return nil
	}
	buf := bufpool.Get(int(min(n, pieceBytes)))
	defer bufpool.Put(buf)
	backwards := overlap && dst.off > src.off
	for done := int64(0); done < n; {
		// Pieces end at multiples of pieceBytes in the destination, so that no
		// block is cut but the first and the last.
		at, k := done, min(n-done, pieceBytes-(dst.off+done)%pieceBytes)
		if backwards {
			end := dst.off + n - done
			k = min(n-done, (end-1)%pieceBytes+1)
			at = n - done - k
		}
		if f := op.movePiece(dst.plus(at), src.plus(at), buf.B[:k], valid); f != nil {
			return f
		}
		done += k
		if !backwards {
			progress(k)
		}
	}
	if backwards {
		progress(n)
	}
	return nil
}

// moveInside lets the store copy by itself, inside itself or from the other
// unit's. rest is what it has left undone because it turned out not to be able to.
func (op *copyOp) moveInside(dst, src copyPlace, n int64, valid func() *sense.Sense, progress func(n int64)) (rest int64, f *copyFault) {
	for n > 0 {
		k := min(n, copyRangeBytes)
		err, f := op.copyInside(dst, src, k)
		if f == nil && err == nil && valid != nil {
			if s := valid(); s != nil {
				f = &copyFault{source: true, reason: s}
			}
		}
		switch {
		case f != nil:
			return n, f
		case err != nil:
			return n, nil
		}
		progress(k)
		dst, src, n = dst.plus(k), src.plus(k), n-k
	}
	return 0, nil
}

// copyInside copies one piece by the store, with the blocks of both ends held.
// err says that it has to be done by reading and writing. Between two stores that
// goes for any failure, since reading and writing then tell whose fault it is.
func (op *copyOp) copyInside(dst, src copyPlace, n int64) (err error, f *copyFault) {
	lba, nblocks, _ := src.blocks(n)
	from := op.hold(src.at, holdRead, lba, nblocks)
	if !from.ok() {
		return nil, from.release()
	}
	lba, nblocks, _ = dst.blocks(n)
	to := op.hold(dst.at, holdWrite, lba, nblocks)
	if to.ok() {
		if u := to.unit; u == from.unit {
			err = u.caps.copyRanger.CopyRange(to.Context(), dst.off, src.off, n)
		} else if u.caps.copierFrom.CopyFrom(to.Context(), from.Store(), dst.off, src.off, n, u.thin()) != nil {
			err = backing.ErrNotSupported
		}
		if !errors.Is(err, backing.ErrNotSupported) {
			if storeOK(&to.Task, err, AccessWrite, dst.off) && cacheOff(&to.Task) {
				flushOut(&to.Task)
			}
			err = nil
		}
	}
	f = to.release()
	if g := from.release(); f == nil {
		f = g
	}
	return err, f
}

// movePiece reads and writes as many bytes as buf has. The source is let go
// before the destination is held: each is a command of its own.
func (op *copyOp) movePiece(dst, src copyPlace, buf []byte, valid func() *sense.Sense) *copyFault {
	lba, nblocks, _ := src.blocks(int64(len(buf)))
	from := op.hold(src.at, holdRead, lba, nblocks)
	if from.ok() && storeOK(&from.Task, from.Store().ReadAt(from.Context(), buf, src.off), AccessRead, src.off) {
		from.In = buf // counted as read
	}
	if f := from.release(); f != nil {
		return f
	}
	if valid != nil {
		if s := valid(); s != nil {
			return &copyFault{source: true, reason: s}
		}
	}
	return op.writePiece(dst, buf)
}

// writePiece writes buf. Zeroes become unallocated where the unit says that it
// provisions thinly, so that a copy of a sparse disk is sparse.
func (op *copyOp) writePiece(dst copyPlace, buf []byte) *copyFault {
	lba, nblocks, whole := dst.blocks(int64(len(buf)))
	row := holdWrite
	if !whole {
		row = holdMerge
	}
	to := op.hold(dst.at, row, lba, nblocks)
	if to.ok() {
		if whole && to.unit.thin() && isZero(buf) {
			if discard(&to.Task, dst.off, int64(len(buf))) && cacheOff(&to.Task) {
				flushOut(&to.Task)
			}
		} else {
			writeOut(&to.Task, buf, dst.off, cacheOff(&to.Task))
		}
		to.Out = buf // counted as written
	}
	return to.release()
}

// zeroes makes n bytes zero, without a payload where the store can.
func (op *copyOp) zeroes(dst copyPlace, n int64, progress func(n int64)) *copyFault {
	for n > 0 {
		k := min(n, copyRangeBytes)
		lba, nblocks, _ := dst.blocks(k)
		to := op.hold(dst.at, holdWrite, lba, nblocks)
		if to.ok() && zero(&to.Task, dst.off, k, to.unit.thin()) && cacheOff(&to.Task) {
			flushOut(&to.Task)
		}
		if f := to.release(); f != nil {
			return f
		}
		progress(k)
		dst, n = dst.plus(k), n-k
	}
	return nil
}
