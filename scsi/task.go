package scsi

import (
	"sync/atomic"

	"blockgate/backing"
	"blockgate/internal/bufpool"
	"blockgate/scsi/sense"
)

// Status is a SCSI status code (SAM-5 §5.3.1).
type Status uint8

// Status codes.
const (
	Good                Status = 0x00
	CheckCondition      Status = 0x02
	ConditionMet        Status = 0x04
	Busy                Status = 0x08
	ReservationConflict Status = 0x18
	TaskSetFull         Status = 0x28
	ACAActive           Status = 0x30
	TaskAborted         Status = 0x40
)

// Attr is a task attribute (SAM-5 §8.6).
type Attr uint8

// Task attributes, with the values of the iSCSI ATTR field (RFC 7143 §11.3.1).
const (
	Untagged    Attr = 0
	Simple      Attr = 1
	Ordered     Attr = 2
	HeadOfQueue Attr = 3
	ACA         Attr = 4
)

// Transport is what a fabric gives with each task. TaskDone is called exactly
// once for every task given to Nexus.Admit, from any goroutine, possibly before
// Admit or Run returns. It must not block. From then on the device server no
// longer touches the task or its buffers.
//
// When t.Aborted reports true no response may be sent; the transport only frees
// what it holds.
type Transport interface{ TaskDone(t *Task) }

// Answerer is a Transport that can answer a task while the store still has its
// buffers. Answer sends status st with the sense data s, which is valid only
// during the call, and takes the task as over for the initiator: its tag and its
// place in the command window are free again. TaskDone follows when the store has
// let go of the buffers, with Aborted; no task gets two answers.
//
// Answer is called at most once, after Run and before TaskDone, from any
// goroutine, with nothing locked. It must not block. Of the task only what the
// transport has set itself may be looked at, and OutLen.
type Answerer interface {
	Transport
	Answer(t *Task, st Status, s []byte)
}

// Task is one command on its way through the device server. The transport owns
// the object; it may be used again after TaskDone and Reset.
//
// Life: the transport fills the first group of fields and calls Nexus.Admit, in
// the order in which the initiator numbered its commands. Admit finds the
// logical unit and the command's row in the table, checks what can be checked
// before data arrives, and sets OutLen. If it returns true the transport brings
// min(OutLen, MaxOut) bytes of data-out into Out and calls Run, once; if it
// returns false the task is done (TaskDone has been called or will be).
type Task struct {
	// Set by the transport before Admit.
	Nexus     *Nexus
	LUN       uint64 // the eight bytes of the LUN field, big endian (SAM-5 §4.7)
	Tag       uint64 // unique among the nexus's tasks
	Attr      Attr
	CDB       []byte // whole CDB; must stay unchanged until TaskDone
	MaxIn     int64  // data-in bytes the initiator has room for
	MaxOut    int64  // data-out bytes the initiator will send
	Transport Transport
	// Loans, if not nil, lets Run leave data-in in the memory of the store. Run
	// must then be called on the goroutine that the Loans belong to.
	Loans Loans
	// Mapped says that it may be memory that only system calls may touch
	// (backing.MappedLender). The transport then looks at In by CopyLent alone.
	Mapped bool
	// Batch, if not nil, is where Run leaves what the store is to begin. Run must
	// then be called on the goroutine that the Batch belongs to.
	Batch *Batch

	// Out holds the data-out bytes at Run; its length may be less than OutLen
	// when the initiator announced less. Owned by the transport, read-only for
	// the device server, untouched by it after TaskDone.
	Out []byte

	// Set by Admit.
	OutLen int64 // data-out bytes the CDB asks for

	// Valid at TaskDone.
	Status Status
	Sense  []byte // encoded sense data, empty unless Status is CheckCondition
	In     []byte // data-in, at most MaxIn bytes; belongs to the task until Reset
	InLen  int64  // data-in bytes the command had to give, before the cut to MaxIn
	// BidiErr and friends do not exist: bidirectional commands are refused.

	row      *Command
	unit     *Unit
	itl      *itl
	inBuf    *bufpool.Buf
	loan     loan
	io       taskIO
	senseBuf [sense.MaxLen]byte
	state    atomic.Uint32 // taskState, see taskset.go
	set      setEntry      // the task set's bookkeeping, see taskset.go
}

// loan is what t.In is on loan from, if p is not nil.
type loan struct {
	lender backing.Lender       // or:
	mapped backing.MappedLender // p must not be touched
	p      []byte               // what it gave; t.In may have been dropped since
	off    int64
}

// Unit is the logical unit the task was addressed to, nil if there is none.
func (t *Task) Unit() *Unit { return t.unit }

// AllocIn gives the handler a data-in buffer for a command that has n bytes to
// give: min(n, MaxIn) bytes long, content unspecified, already set as t.In, and
// sets t.InLen to n.
func (t *Task) AllocIn(n int64) []byte {
	t.InLen = n
	if n > t.MaxIn {
		n = t.MaxIn
	}
	bufpool.Put(t.inBuf)
	t.inBuf, t.In = nil, nil
	if n > 0 {
		t.inBuf = bufpool.Get(int(n))
		t.In = t.inBuf.B
	}
	return t.In
}

// Respond sets data-in from p, cut to the CDB's allocation length alloc and to
// what the initiator has room for (SPC-4 §4.2.5.6). p is copied.
func (t *Task) Respond(p []byte, alloc int64) {
	n := min(int64(len(p)), alloc)
	copy(t.AllocIn(n), p)
}

// Reset gives the data-in buffer back and makes the task ready for another
// command. Only after TaskDone.
func (t *Task) Reset() {
	bufpool.Put(t.inBuf)
	t.endLoan()
	t.Nexus, t.Transport, t.Loans, t.Batch, t.CDB, t.Out, t.Sense, t.In, t.inBuf = nil, nil, nil, nil, nil, nil, nil, nil, nil
	t.LUN, t.Tag, t.Attr, t.MaxIn, t.MaxOut, t.OutLen, t.InLen = 0, 0, 0, 0, 0, 0, 0
	t.Mapped, t.Status = false, Good
	t.row, t.unit, t.itl = nil, nil, nil
	t.state.Store(phaseNone)
	t.set.seq, t.set.waiters = 0, nil
	t.set.over, t.set.gaveUp = false, false
	t.set.ctx.reset()
}
