package iscsi

import "blockgate/internal/bufpool"

// A store in memory lends what is read (backing.Lender), and the transport sends
// it from there. A loan keeps writers waiting, so it lasts no longer than from
// the command to the end of a send that does not wait for the peer, and only the
// reader takes loans: it holds the right to send from the beginning of Feed on,
// executes reads, sends without waiting, and what the socket does not take at
// once is copied (Settle).
//
// Two things follow. Nothing else that may wait runs on the reader's goroutine
// while it has loans: the device server settles before every other command of
// the fast path, and pdu before everything else. And the data is the data of the
// moment when the command was executed, as if it had been copied then: digests,
// ORDERED tasks, COMPARE AND WRITE and atomic writes need no special care.
//
// What a mapped file lends (backing.MappedLender) is not touched here: it goes
// into the socket as it is, or is copied by the store. With data digests, which
// are made of the bytes, no such loans are taken.

// maxLent bounds what is on loan when the next command is looked at, in bytes:
// beyond it the reader sends first.
const maxLent = 512 << 10

// loans is what a connection has on loan. It belongs to the reader, and is
// touched only while the reader has the right to send.
type loans struct {
	mine  bool       // the reader holds the right to send since Feed began
	cmds  []*command // in the order in which their responses are queued
	first int        // cmds before it are sent
	bytes int
}

// Settle ends all loans by copying what has not been sent: of the batch that is
// with the transport what its vectors still hold, and what is queued behind it.
// The transport calls it, on its goroutine, before it waits for the peer. It
// must have cut the vectors that Gather gave to what is unsent, in place. It
// also is scsi.Loans's. After an error nothing more is sent.
func (c *TargetConn) Settle() error {
	if len(c.loans.cmds) == 0 {
		return nil
	}
	err := c.tx.ownVectors()
	for _, cmd := range c.loans.cmds[c.loans.first:] {
		cmd.lent = false
		if cmd.sent == len(cmd.task.In) {
			cmd.task.In = nil // all of it is in the batch
		}
		if e := cmd.task.Own(); e != nil {
			err = e
		}
	}
	c.noLoans()
	if err != nil {
		// The response says that the data is there, and may be half sent. The
		// initiator comes again, and is told then.
		c.Drop(err.Error())
	}
	return err
}

// ownVectors copies what is lent and still in the batch.
func (x *tx) ownVectors() (err error) {
	if x.batch == nil {
		return nil
	}
	n := 0
	for i, v := range x.iov {
		if x.batch.lent[i] != nil {
			n += len(v)
		}
	}
	if n == 0 {
		return nil
	}
	x.stage = bufpool.Get(n)
	p := x.stage.B
	for i, v := range x.iov {
		if t := x.batch.lent[i]; t != nil {
			m := len(v)
			if e := t.CopyLent(p[:m], v); e != nil {
				err = e
			}
			x.iov[i], p = p[:m:m], p[m:]
			x.batch.lent[i] = nil
		}
	}
	return err
}

// distrust tells the stores of what is on loan that the system did not take it.
func (c *TargetConn) distrust() {
	for _, cmd := range c.loans.cmds[c.loans.first:] {
		cmd.task.Distrust()
	}
}

// dropLoans ends all loans; what they are of is not sent.
func (c *TargetConn) dropLoans() {
	if len(c.loans.cmds) == 0 {
		return // and if it is not the reader who sends, they are not to be touched
	}
	for _, cmd := range c.loans.cmds[c.loans.first:] {
		cmd.lent = false
		cmd.task.In = nil
		_ = cmd.task.Own() // there is nothing to copy
	}
	c.noLoans()
}

func (c *TargetConn) noLoans() {
	clear(c.loans.cmds)
	c.loans.cmds, c.loans.first, c.loans.bytes = c.loans.cmds[:0], 0, 0
}

// unpinLent is unpin for a command that may have ended with a loan, of which it
// takes note. The reader has the right to send: what is queued stays so.
func (c *TargetConn) unpinLent(cmd *command) {
	c.mu.Lock()
	cmd.pins--
	free, queued := cmd.free(), cmd.queued
	c.mu.Unlock()
	switch {
	case free:
		c.recycle(cmd) // and the loan goes with it
	case queued && cmd.task.Lent():
		cmd.lent = true
		c.loans.cmds = append(c.loans.cmds, cmd)
		c.loans.bytes += len(cmd.task.In)
	}
}
