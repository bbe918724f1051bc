package file

import (
	"context"
	"sync/atomic"

	"blockgate/backing"
)

// Bounds of a loan, in bytes. To copy less than minLoan is as cheap as to look
// for it; what is longer than maxLoan would lie in no window.
const (
	minLoan = 32 << 10
	maxLoan = 1 << 20
)

// takeAfter is how many bytes have to be read of a window's place in the file
// before it is mapped. Mapping and unmapping a window costs as much as copying
// 64 KiB, which random reads of a large file would not win back.
const takeAfter = 1 << 20

// lending is a store's part in the loans of its file's pages.
type lending struct {
	w     *Windows
	locks *loanLock
	// off: the kernel does not map the file, or would not send what was lent.
	off atomic.Bool
	// The file lies in memory and has no holes if full, which was holes when that
	// was found out, still is it. See holing.
	holes, full atomic.Int64
	// By window, those a table apart together: where it was last, from 1 on, and
	// the bytes that were read of it since without it.
	places [lendTable]struct {
		slot atomic.Int32
		read atomic.Int32
	}
}

const lendTable = 1024

// Lending is Open for stores that lend what they have in the page cache through
// the windows w (backing.MappedLender), where the system can.
func Lending(w *Windows) backing.Opener {
	return func(ctx context.Context, rest string, o backing.OpenOptions) (backing.Store, error) {
		store, err := Open(ctx, rest, o)
		if err != nil {
			return nil, err
		}
		if s := store.(*Store); s.direct == nil && mappable(s.h, s.geo, !o.ReadOnly) {
			s.lend(w)
		}
		return store, nil
	}
}

// lend makes a store that nobody uses yet lend.
func (s *Store) lend(w *Windows) {
	s.lending = &lending{w: w, locks: newLoanLock()}
	s.lending.full.Store(-1)
	s.locks = s.lending.locks
	s.gate.release = func() error {
		w.drop(s)
		return s.f.Close()
	}
}

// LendMapped implements backing.MappedLender for what the page cache has.
func (s *Store) LendMapped(off, n int64) []byte {
	l := s.lending
	if l == nil || n < minLoan || n > maxLoan || l.off.Load() || s.enter(off, n, false) != nil {
		return nil
	}
	if !l.locks.lend(off, n) {
		s.gate.leave()
		return nil
	}
	if i := s.window(off, n); i >= 0 {
		p := l.w.bytes(i, off%windowStride, n)
		if l.whole() || resident(p) {
			return p
		}
		l.w.done(p)
	}
	l.locks.unlend(off, n)
	s.gate.leave()
	return nil
}

// ReturnMapped implements backing.MappedLender.
func (s *Store) ReturnMapped(p []byte, off int64) {
	l := s.lending
	l.w.done(p)
	l.locks.unlend(off, int64(len(p)))
	s.gate.leave()
}

// window counts a loan of the window that has the range; negative: there is none.
func (s *Store) window(off, n int64) int {
	l, index := s.lending, off/windowStride
	place := &l.places[index%lendTable]
	if i := int(place.slot.Load()) - 1; i >= 0 && l.w.use(i, s, index) {
		return i
	}
	// Who comes from the window before reads on, and will want all of this one.
	next := off%windowStride < 2*n && l.shows(s, index-1)
	if read := place.read.Add(int32(n)); read < takeAfter && !next {
		return -1
	}
	place.read.Store(0)
	if holes := l.holes.Load(); s.geo.inMemory && !l.whole() && whole(s.h) {
		l.full.Store(holes)
	}
	i, err := l.w.take(s, index)
	if err != nil {
		l.off.Store(true)
	}
	if i < 0 {
		return -1
	}
	place.slot.Store(int32(i) + 1)
	if next && l.whole() {
		populate(l.w.bytes(i, 0, min(windowStride, s.Size()-index*windowStride)))
	}
	return i
}

// shows reports whether a window is mapped.
func (l *lending) shows(s *Store, index int64) bool {
	if index < 0 {
		return false
	}
	i := int(l.places[index%lendTable].slot.Load()) - 1
	if i < 0 || !l.w.use(i, s, index) {
		return false
	}
	l.w.done(l.w.bytes(i, 0, 1))
	return true
}

// whole reports that the file lies in memory and has no holes, so that all of it
// is there. It is wrong where somebody is making holes just now, and nothing is
// lent there.
func (l *lending) whole() bool { return l.full.Load() == l.holes.Load() }

// holing tells that holes are going to be made, and once more that they are.
func (l *lending) holing() {
	if l != nil {
		l.holes.Add(1)
	}
}

// CopyMapped implements backing.MappedLender by reading: nobody writes there
// while it is on loan.
func (s *Store) CopyMapped(dst []byte, off int64) error {
	err := s.read(dst, off)
	if err != nil {
		s.Distrust()
	}
	return err
}

// Distrust implements backing.MappedLender.
func (s *Store) Distrust() { s.lending.off.Store(true) }
