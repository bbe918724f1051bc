package scsi

import (
	"fmt"
	"unsafe"

	"blockgate/internal/bufpool"
)

// Loans is a transport's side of loans (backing.Lender): it knows the tasks
// whose data-in it has not sent yet and that may lie in memory of a store.
//
// A task that is given one may end with t.Lent true. The transport then sends
// t.In without waiting for its peer, or calls t.Own before it waits, and in
// either case soon calls t.Own or t.Reset, which end the loan.
type Loans interface {
	// Settle ends every loan that the transport holds. The device server calls it
	// in Task.Run, on the caller's goroutine, before it runs anything there that
	// a loan could keep waiting. An error is the transport's own affair, which it
	// ends by.
	Settle() error
}

// Lent reports that t.In lies in the store's memory, on loan.
func (t *Task) Lent() bool { return t.loan.p != nil }

// Own ends the loan of t.In, if it is one: t.In becomes a copy. An error says that
// what was lent is not to be had any more; then t.In is zeroes, which must not be
// sent, and the store will not lend again. It names the unit.
func (t *Task) Own() error {
	if !t.Lent() {
		return nil
	}
	var err error
	if len(t.In) > 0 { // not dropped meanwhile
		b := bufpool.Get(len(t.In))
		err = t.CopyLent(b.B, t.In)
		t.inBuf, t.In = b, b.B
	}
	t.endLoan()
	return err
}

// CopyLent copies v, a part of t.In, which is on loan, to dst, which is as long.
// The error is Own's.
func (t *Task) CopyLent(dst, v []byte) error {
	l := &t.loan
	if l.mapped == nil {
		copy(dst, v)
		return nil
	}
	// Both addresses are looked at and not what is there.
	at := uintptr(unsafe.Pointer(unsafe.SliceData(v))) - uintptr(unsafe.Pointer(unsafe.SliceData(l.p)))
	if err := l.mapped.CopyMapped(dst, l.off+int64(at)); err != nil {
		clear(dst)
		t.unit.warn("what was lent cannot be read", "unit", t.unit.name(), "err", err)
		return fmt.Errorf("%s: what was lent cannot be read: %w", t.unit.name(), err)
	}
	return nil
}

// Distrust tells that a system call failed with EFAULT while it may have been at
// t.In, which is on loan: the store will not lend again.
func (t *Task) Distrust() {
	if l := &t.loan; l.mapped != nil {
		l.mapped.Distrust()
		t.unit.warn("what was lent was not to be had when it was sent", "unit", t.unit.name())
	}
}

func (t *Task) endLoan() {
	l := t.loan
	t.loan = loan{}
	switch {
	case l.p == nil:
	case l.mapped != nil:
		l.mapped.ReturnMapped(l.p, l.off)
	default:
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
	l := loan{off: off}
	if u.caps.lender != nil {
		l.lender, l.p = u.caps.lender, u.caps.lender.Lend(off, n)
	} else {
		l.mapped, l.p = u.caps.mapped, u.caps.mapped.LendMapped(off, n)
	}
	if l.p == nil {
		return false
	}
	t.In, t.InLen, t.loan = l.p, has, l
	return true
}

// lends runs the command if that gives a loan.
func (t *Task) lends() bool {
	if t.Loans == nil || t.row.Lend == nil {
		return false
	}
	c := &t.unit.caps
	return (c.lender != nil || c.mapped != nil && t.Mapped) && t.row.Lend(t)
}

// settle ends the loans of the transport, before something runs on its goroutine
// that might wait for them.
func (t *Task) settle() {
	if t.Loans != nil {
		_ = t.Loans.Settle()
	}
}
