package initiator

import (
	"fmt"

	"blockgate/iscsi"
	"blockgate/scsi"
)

// Command is one SCSI command. The caller fills the first group of fields, hands
// it to [Session.Execute] or [Session.Submit], and may touch neither it nor its
// buffers until the command is done. Then the object can be used again; reuse
// keeps it free of allocations.
type Command struct {
	LUN uint64 // the eight bytes of the LUN field, big endian; see LUN
	// CDB is 1 to 260 bytes; shorter than 16 it is padded with zeroes.
	CDB []byte
	// In takes data-in, Out is data-out. Their lengths are the expected data
	// transfer lengths, whatever the CDB asks for. Both make the command
	// bidirectional.
	In, Out []byte
	Attr    scsi.Attr // Untagged if zero
	// Immediate sends the command for immediate delivery: it takes no CmdSN and
	// is not held back by the command window (RFC 7143 §4.2.2.1).
	Immediate bool
	// Connection, if not 0, names the connection to use, from 1.
	Connection int
	// Done is called once when a submitted command is done, from any goroutine.
	// It must not block; it may call Submit, also with the same command.
	Done func(*Command)

	// Err is why there is no answer, nil if there is one. The fields below are
	// valid only then.
	Err      error
	Response byte // iSCSI response code, 0: completed at the target (RFC 7143 §11.4.3)
	Status   scsi.Status
	Sense    []byte // sense data as sent, empty if none; ParseSense decodes it
	Received int    // bytes of data-in that came
	// Residual is the count of bytes not transferred, with Underflow, or that
	// did not fit, with Overflow. BidiResidual is that of a bidirectional
	// command's read part.
	Residual, BidiResidual      uint32
	Underflow, Overflow         bool
	BidiUnderflow, BidiOverflow bool

	// Guarded by the session's mutex while the command is with it.
	conn      *conn
	next      *Command // in the queue of those that wait for the window
	itt       uint32
	cmdSN     uint32
	seq       uint64 // order of sending, for task management
	dataSN    uint32 // expected DataSN or R2TSN
	solicited int    // bytes of Out asked for or sent unasked
	refs      int    // times Out stands in a batch that is not written yet
	receiving bool   // the reader fills In without the mutex
	queued    bool   // waits for the window
	finished  bool   // answered; done when refs and receiving allow
	cause     error  // why it is being aborted

	sync bool          // Execute waits
	wait chan struct{} // capacity 1
}

// Good reports whether the command was answered with GOOD or CONDITION MET.
func (c *Command) Good() bool {
	return c.Err == nil && c.Response == 0 && (c.Status == scsi.Good || c.Status == scsi.ConditionMet)
}

// Failure is nil if the command was answered with GOOD or CONDITION MET, Err if
// it was not answered, and a *StatusError otherwise.
func (c *Command) Failure() error {
	if c.Err != nil {
		return c.Err
	}
	if c.Good() {
		return nil
	}
	e := &StatusError{Response: c.Response, Status: c.Status}
	if len(c.CDB) > 0 {
		e.Op = c.CDB[0]
	}
	e.Sense, e.HasSense = ParseSense(c.Sense)
	return e
}

func (c *Command) check(s *Session) error {
	switch {
	case len(c.CDB) == 0 || len(c.CDB) > iscsi.MaxCDBLen:
		return fmt.Errorf("%w: a CDB has 1 to %d bytes, not %d", ErrCommand, iscsi.MaxCDBLen, len(c.CDB))
	case len(c.In) > 1<<32-1 || len(c.Out) > 1<<32-1:
		return fmt.Errorf("%w: more than 4 GiB - 1 of data", ErrCommand)
	case c.Connection < 0 || c.Connection > len(s.conns):
		return fmt.Errorf("%w: connection %d of %d", ErrCommand, c.Connection, len(s.conns))
	case c.Attr > 7:
		return fmt.Errorf("%w: task attribute %d", ErrCommand, c.Attr)
	}
	return nil
}

func (c *Command) reset() {
	c.Err, c.Response, c.Status, c.Sense = nil, 0, 0, c.Sense[:0]
	c.Received, c.Residual, c.BidiResidual = 0, 0, 0
	c.Underflow, c.Overflow, c.BidiUnderflow, c.BidiOverflow = false, false, false, false
	c.conn, c.next, c.dataSN, c.solicited, c.refs = nil, nil, 0, 0, 0
	c.receiving, c.queued, c.finished, c.cause = false, false, false, nil
}

// setResidual takes the residual of a response or of a Data-In with status.
func (c *Command) setResidual(flags byte, n uint32) {
	c.Overflow, c.Underflow = flags&iscsi.FlagOverflow != 0, flags&iscsi.FlagUnder != 0
	if c.Overflow || c.Underflow {
		c.Residual = n
	}
}

// complete tells whoever waits. Not under the session's mutex.
func (c *Command) complete() {
	if c.sync {
		c.wait <- struct{}{}
		return
	}
	if c.Done != nil {
		c.Done(c)
	}
}

// completeAll completes a list linked by next.
func completeAll(c *Command) {
	for c != nil {
		next := c.next
		c.next = nil
		c.complete()
		c = next
	}
}

// LUN gives the LUN field of a logical unit number: peripheral device addressing
// below 256, flat space addressing below 16384 (SAM-5 §4.7.7), and the value as
// it is from there on.
func LUN(n uint64) uint64 {
	switch {
	case n < 256:
		return n << 48
	case n < 16384:
		return (0x4000 | n) << 48
	}
	return n
}

// LUNNumber is the reverse of LUN.
func LUNNumber(field uint64) uint64 {
	if field&(1<<48-1) == 0 {
		switch field >> 62 {
		case 0:
			return field >> 48
		case 1:
			return field >> 48 & 0x3fff
		}
	}
	return field
}
