package scsi

import "blockgate/internal/bufpool"

// Loans is a transport's side of loans (backing.Lender): it knows the tasks
// whose data-in it has not sent yet and that may lie in memory of a store.
//
// A task that is given one may end with t.Lent true. The transport then sends
// t.In without waiting for its peer, or calls t.Own before it waits, and in
// either case soon calls t.Own or t.Reset, which end the loan.
type Loans interface {
	// Settle ends every loan that the transport holds. The device server calls it
	// in Task.Run, on the caller's goroutine, before it runs anything there that
	// a loan could keep waiting.
	Settle()
}

// Lent reports that t.In lies in the store's memory, on loan.
func (t *Task) Lent() bool { return t.loan.lender != nil }

// Own ends the loan of t.In, if it is one: t.In becomes a copy.
func (t *Task) Own() {
	if t.loan.lender == nil {
		return
	}
	if len(t.In) > 0 { // not dropped meanwhile
		t.inBuf = bufpool.Get(len(t.In))
		copy(t.inBuf.B, t.In)
		t.In = t.inBuf.B
	}
	t.endLoan()
}

func (t *Task) endLoan() {
	if l := t.loan; l.lender != nil {
		t.loan = loan{}
		l.lender.Return(l.p, l.off)
	}
}

// lendRead is read for data that the store lends.
func lendRead(t *Task) bool {
	u := t.unit
	lba, nblocks := cdbBlocks(t.CDB)
	if checkTransfer(t, lba, nblocks) != nil {
		return false
	}
	off, has := byteOffset(u, lba), int64(nblocks)*int64(u.BlockSize())
	n := min(has, t.MaxIn)
	p := u.caps.lender.Lend(off, n)
	if p == nil {
		return false
	}
	t.In, t.InLen, t.loan = p, has, loan{u.caps.lender, p, off}
	return true
}

// lends runs the command if that gives a loan.
func (t *Task) lends() bool {
	return t.Loans != nil && t.row.Lend != nil && t.unit.caps.lender != nil && t.row.Lend(t)
}

// settle ends the loans of the transport, before something runs on its goroutine
// that might wait for them.
func (t *Task) settle() {
	if t.Loans != nil {
		t.Loans.Settle()
	}
}
