package file

import (
	"context"
	"math/bits"
	"sync/atomic"

	"blockgate/backing"
)

// Bounds of a loan, in bytes. What is shorter than minLoan does not pay the look at
// its pages: to copy it is as cheap. Where all pages are known to be there, loans
// of minShort and more pay if the window is shown already, but do not pay for
// showing it in place of another: see short. What is longer than maxLoan would lie
// in no window.
const (
	minShort = 4 << 10
	minLoan  = 32 << 10
	maxLoan  = 1 << 20
)

// takeAfter is how many bytes have to be read of a window's place in the file
// before it is mapped, and takePays how many must then be lent of it before it has
// to go if that is to be worth it: mapping and unmapping a page costs nearly as much
// as copying it. If it was not, the store is asked for twice as much the next
// time, up to takeAfter << maxPatience. So random reads of a large file, of which
// no part stays mapped for long enough, are copied.
//
// takeFree is how many bytes have to be read for a window that shows nothing yet.
const (
	takeAfter   = 1 << 20
	takeFree    = 256 << 10
	takePays    = windowStride / 4 * 3
	maxPatience = 8
)

// lending is a store's part in the loans of its file's pages.
type lending struct {
	w     *Windows
	locks *loanLock
	// off: the kernel does not map the file, or would not send what was lent.
	off atomic.Bool
	// The file lies in memory and has no holes if full, which was holes when that
	// was found out, still is it. See holing.
	holes, full atomic.Int64
	patience    atomic.Int32
	places      []place // by window, those a table apart together
}

// place is what is known of a part of the file that a window can show.
type place struct {
	slot atomic.Int32 // the window that shows it, from 1 on; or that did
	read atomic.Int64 // bytes that were asked for since, without a window
	end  atomic.Int64 // of the last loan of minLoan or more that was asked for
}

// placesOf is how long a table of places is for so many windows: long enough for
// parts of the file that are shown at the same time to meet seldom, where it is much
// larger.
func placesOf(windows int) int { return 1 << bits.Len(uint(min(max(4*windows, 256), 1<<16)-1)) }

func (l *lending) place(index int64) *place { return &l.places[index&int64(len(l.places)-1)] }

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
	s.lending = &lending{w: w, locks: newLoanLock(), places: make([]place, placesOf(len(w.slots)))}
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
	if l == nil || n > maxLoan || l.off.Load() || n < minLoan && !s.short(off, n) || s.enter(off, n, false) != nil {
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
	place := l.place(index)
	short := n < minLoan
	if !short {
		place.end.Store(off + n)
	}
	if i := int(place.slot.Load()) - 1; i >= 0 && l.w.use(i, s, index, n) {
		return i
	}
	onward := false
	if short {
		// What is shown must have shown something else, or been let go.
		if place.read.Load() < takeFree || l.w.free.Load() <= 0 {
			return -1
		}
	} else if onward = l.onward(off, n); place.read.Add(n) < takeAfter<<l.patience.Load() && !onward {
		return -1
	}
	place.read.Store(0)
	s.seekHoles()
	i, err := l.w.take(s, index)
	if err != nil {
		l.off.Store(true)
	}
	if i < 0 {
		return -1
	}
	place.slot.Store(int32(i) + 1)
	if onward && l.whole() {
		// A Refresh may have found the file shorter meanwhile.
		if n := min(windowStride, s.Size()-index*windowStride); n > 0 {
			populate(l.w.bytes(i, 0, n))
		}
	}
	return i
}

// short reports whether a loan of less than minLoan is worth a try: all pages are
// there, and a window shows them, or some window shows nothing yet. It is quick,
// since every short read asks it.
func (s *Store) short(off, n int64) bool {
	if n < minShort || off < 0 || !s.geo.inMemory {
		return false
	}
	l := s.lending
	place := l.place(off / windowStride)
	if !l.whole() {
		if place.read.Add(n) >= takeAfter {
			place.read.Store(0)
			s.seekHoles() // it may have been written all over meanwhile
		}
		return false
	}
	return place.slot.Load() != 0 || l.w.free.Load() > 0 && place.read.Add(n) >= takeFree
}

// seekHoles finds out whether whole is true now.
func (s *Store) seekHoles() {
	l := s.lending
	if holes := l.holes.Load(); s.geo.inMemory && !l.whole() && whole(s.h) {
		l.full.Store(holes)
	}
}

// onward reports that the range is where somebody goes on who has read the window
// before to its end, or nearly, since the requests of a stream may overtake each
// other: all of the new one will be wanted.
func (l *lending) onward(off, n int64) bool {
	at := off % windowStride
	if at >= 2*n || off < windowStride {
		return false
	}
	end := l.place(off/windowStride - 1).end.Load()
	return end <= off+n && end > off-at-2*n
}

// paid tells how much was lent of a window that goes.
func (l *lending) paid(n int64) {
	switch p := l.patience.Load(); {
	case n < takePays && p < maxPatience:
		l.patience.CompareAndSwap(p, p+1)
	case n >= 2*takePays && p > 0:
		l.patience.CompareAndSwap(p, p-1)
	}
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
