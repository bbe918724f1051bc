package file

import (
	"sync"
	"sync/atomic"
)

// loanLock keeps loans and writes apart: a range is on loan, to any number of
// readers, or being changed, by any number of writers, which the kernel
// serializes. A loan is refused where somebody writes; a writer waits for the
// loans that are out, and meanwhile there are no new ones.
//
// The range is divided into stripes; those a table apart share a lock. Writers
// announce themselves everywhere before they wait anywhere, and a loan waits for
// nothing, so that nobody waits in a circle.
type loanLock struct {
	stripes [loanStripes]loanStripe
	mu      sync.Mutex // for those who wait
	gone    sync.Cond  // a stripe has lost its last loan
}

const (
	loanStripes = 256
	stripeShift = 16 // 64 KiB
)

// loanStripe counts loans, and writers from bit 32 on. Each has a cache line.
type loanStripe struct {
	n atomic.Int64
	_ [56]byte
}

const (
	oneLoan    = 1
	oneWriter  = 1 << 32
	countLoans = oneWriter - 1
)

func newLoanLock() *loanLock {
	l := new(loanLock)
	l.gone.L = &l.mu
	return l
}

// span is the stripes of a range: count of them from first on, around the table.
func span(off, n int64) (first, count int64) {
	if n <= 0 {
		return 0, 0
	}
	first = off >> stripeShift
	return first, min((off+n-1)>>stripeShift-first+1, loanStripes)
}

func (l *loanLock) at(i int64) *atomic.Int64 { return &l.stripes[i%loanStripes].n }

// lend locks a range for a loan, if nobody writes there.
func (l *loanLock) lend(off, n int64) bool {
	first, count := span(off, n)
	for i := first; i < first+count; i++ {
		if l.at(i).Add(oneLoan) >= oneWriter {
			l.back(first, i+1-first)
			return false
		}
	}
	return true
}

// unlend ends a loan.
func (l *loanLock) unlend(off, n int64) { l.back(span(off, n)) }

func (l *loanLock) back(first, count int64) {
	awaited := false
	for i := first; i < first+count; i++ {
		if v := l.at(i).Add(-oneLoan); v >= oneWriter && v&countLoans == 0 {
			awaited = true
		}
	}
	if awaited {
		l.mu.Lock()
		l.gone.Broadcast()
		l.mu.Unlock()
	}
}

// tryWrite locks a range for a writer, if nothing of it is on loan.
func (l *loanLock) tryWrite(off, n int64) bool {
	if l == nil {
		return true
	}
	first, count := span(off, n)
	for i := first; i < first+count; i++ {
		if l.at(i).Add(oneWriter)&countLoans != 0 {
			l.unwrite(first<<stripeShift, (i+1-first)<<stripeShift)
			return false
		}
	}
	return true
}

// write locks a range for a writer, and waits for loans to be returned.
func (l *loanLock) write(off, n int64) {
	if l == nil {
		return
	}
	first, count := span(off, n)
	lent := false
	for i := first; i < first+count; i++ {
		lent = l.at(i).Add(oneWriter)&countLoans != 0 || lent
	}
	if !lent {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := first; i < first+count; i++ {
		for l.at(i).Load()&countLoans != 0 {
			l.gone.Wait()
		}
	}
}

// unwrite ends tryWrite or write.
func (l *loanLock) unwrite(off, n int64) {
	if l == nil {
		return
	}
	first, count := span(off, n)
	for i := first; i < first+count; i++ {
		l.at(i).Add(-oneWriter)
	}
}
