package iscsi

import (
	"encoding/binary"

	"blockgate/internal/bufpool"
	"blockgate/scsi"
	"blockgate/scsi/sense"
)

// command is one SCSI command of a connection, from its PDU to the end of its
// response, or, when aborted, until the device server lets go of its buffers.
type command struct {
	task  scsi.Task
	conn  *TargetConn
	next  *command // free list
	itt   uint32
	lun   uint64
	edtl  uint32
	read  bool
	write bool
	// numbered: it holds a place in the command window.
	numbered  bool
	immediate bool
	sn        uint32 // CmdSN
	cdb       [16]byte
	extCDB    []byte

	buf     *bufpool.Buf // data-out
	held    int64        // bytes of the budget
	counted bool         // held is counted in shares of the budget
	want    int          // data-out bytes to collect before the task runs
	r2tSN   uint32
	r2ts    []r2t
	solicit int // offset from which on nothing has been asked for or sent unasked

	// Guarded by TargetConn.mu.
	phase    phase
	pins     int8 // readers of cmd that outlive mu
	unsol    bool // unsolicited data is still to come; no response before its end
	unsolSN  uint32
	unsolOff int
	received int
	full     bool // answered TASK SET FULL by us, whatever the task says
	later    bool // not covered by the function that aborts it: to be answered
	gone     bool // ended for the initiator, or about to: only its response is left
	queued   bool // its response waits to be sent
	lent     bool // its data-in was on loan; reader only

	// tx only.
	sent   int
	dataSN uint32
}

// r2t is an outstanding request for data (RFC 7143 §11.8).
type r2t struct {
	ttt      uint32
	off, len int
	got      int
	sn       uint32 // next DataSN
}

type phase uint8

const (
	unused    phase = iota
	admitting       // in the hands of scsiCommand: nobody else may end it
	gathering       // admitted; data-out is still to come
	running         // given to the device server, or refused by it
	finished        // TaskDone came
)

// get takes a command object from the connection's free list.
func (c *TargetConn) get() *command {
	c.mu.Lock()
	cmd := c.free
	if cmd != nil {
		c.free = cmd.next
		c.nfree--
	}
	c.mu.Unlock()
	if cmd == nil {
		cmd = &command{conn: c}
	}
	cmd.next = nil
	return cmd
}

// maxFree bounds the command objects a connection keeps for reuse.
const maxFree = 256

// recycle gives everything the command holds back. Only when finished, unpinned
// and not queued.
func (c *TargetConn) recycle(cmd *command) {
	cmd.clear()
	c.mu.Lock()
	c.keep(cmd)
	c.mu.Unlock()
}

// keep adds a cleared command to the free list. Caller holds mu.
func (c *TargetConn) keep(cmd *command) {
	if c.nfree < maxFree && !c.closed {
		cmd.next = c.free
		c.free = cmd
		c.nfree++
	}
}

// clear gives everything the command holds back.
func (cmd *command) clear() {
	c := cmd.conn
	if cmd.counted {
		c.sess.budget.Leave(cmd.share(), cmd.held)
		cmd.counted = false
	}
	cmd.task.Reset()
	c.sess.budget.Give(cmd.held)
	bufpool.Put(cmd.buf)
	cmd.buf, cmd.held, cmd.extCDB = nil, 0, nil
	cmd.want, cmd.solicit, cmd.r2tSN, cmd.r2ts = 0, 0, 0, cmd.r2ts[:0]
	cmd.phase, cmd.unsol, cmd.unsolSN, cmd.unsolOff, cmd.received = unused, false, 0, 0, 0
	cmd.full, cmd.later, cmd.gone, cmd.queued, cmd.lent, cmd.sent, cmd.dataSN = false, false, false, false, false, 0, 0
}

// free reports that nothing refers to cmd any more. Caller holds mu.
func (cmd *command) free() bool {
	return cmd.pins == 0 && cmd.phase == finished && cmd.gone && !cmd.queued
}

// unpin drops a hold on cmd taken under mu.
func (c *TargetConn) unpin(cmd *command) {
	c.mu.Lock()
	cmd.pins--
	free := cmd.free()
	c.mu.Unlock()
	if free {
		c.recycle(cmd)
	}
}

// scsiCommand starts a SCSI Command PDU (RFC 7143 §11.3) whose turn it is. data
// is its immediate data; stage, if not nil, is the budgeted buffer that data
// lies at the front of, and belongs to scsiCommand from here on. The session's
// order is locked; it is unlocked when the command has been admitted. own says that
// this is the connection's own reader, and lend that the command may end with a loan.
func (c *TargetConn) scsiCommand(h *BHS, ahs, data []byte, stage *bufpool.Buf, own, lend bool) {
	c.Commands.Add(1)
	flags := h.Flags()
	cmd := c.get()
	cmd.itt, cmd.lun, cmd.edtl = h.ITT(), h.LUN(), h.EDTL()
	cmd.read, cmd.write = flags&FlagRead != 0, flags&FlagWrite != 0
	cmd.immediate, cmd.sn = h.Immediate(), h.CmdSN()
	cmd.numbered = !cmd.immediate
	copy(cmd.cdb[:], h.CDB())
	t := &cmd.task
	t.Nexus, t.LUN, t.Tag, t.Attr, t.Transport = c.sess.nexus, cmd.lun, c.tag(cmd.itt), scsi.Attr(flags&7), cmd
	t.CDB = cmd.cdb[:cdbLen(cmd.cdb[0])]
	var bidiIn uint32
	if len(ahs) > 0 {
		a, err := ParseCommandAHS(ahs)
		if err != nil {
			c.sess.order.Unlock()
			c.putStage(stage)
			c.recycle(cmd)
			c.rejectCommand(h, RejectInvalidPDUField)
			return
		}
		bidiIn = a.BidiReadLen
		if len(a.ExtendedCDB) > 0 {
			cmd.extCDB = append(append(make([]byte, 0, MaxCDBLen), cmd.cdb[:]...), a.ExtendedCDB...)
			t.CDB = cmd.extCDB
		}
	}
	switch {
	case cmd.read && cmd.write:
		t.MaxIn, t.MaxOut = int64(bidiIn), int64(cmd.edtl)
	case cmd.read:
		t.MaxIn = int64(cmd.edtl)
	case cmd.write:
		t.MaxOut = int64(cmd.edtl)
	}
	unexpected := len(data) > 0 && (!cmd.write || !c.sess.params.ImmediateData ||
		len(data) > c.sess.params.FirstBurst || uint32(len(data)) > cmd.edtl)

	c.mu.Lock()
	var refusal RejectReason
	switch _, dup := c.tasks[cmd.itt]; {
	case dup:
		refusal = RejectTaskInProgress
	case cmd.itt == ReservedTag:
		refusal = RejectInvalidPDUField
	case h.Immediate() && len(c.tasks) >= c.sess.window+maxImmediate:
		refusal = RejectTooManyImmediate
	}
	if refusal != 0 {
		c.mu.Unlock()
		c.sess.order.Unlock()
		c.putStage(stage)
		c.recycle(cmd)
		c.rejectCommand(h, refusal)
		return
	}
	cmd.unsol = cmd.write && flags&FlagFinal == 0 && !c.sess.params.InitialR2T
	cmd.unsolOff = len(data)
	cmd.pins = 1
	cmd.phase = admitting
	c.tasks[cmd.itt] = cmd
	c.mu.Unlock()

	short := false // of memory for its data-in
	if n := min(t.MaxIn, maxStage); c.sess.budget.Take(n) {
		cmd.held = n
	} else {
		short = true
	}
	admitted := t.Nexus.Admit(t)
	c.sess.order.Unlock()
	if !admitted {
		c.unpin(cmd)
		c.putStage(stage)
		return
	}
	cmd.want = int(min(t.OutLen, t.MaxOut))
	switch {
	case unexpected || short:
		c.putStage(stage)
	default:
		short = !c.takeBuffer(cmd, data, stage) || !cmd.admits()
	}
	if lend {
		t.Loans, t.Mapped = c, !c.params.DataDigest
	}
	c.mu.Lock()
	cmd.received = len(data)
	cmd.solicit = len(data)
	if cmd.unsol {
		cmd.solicit = min(int(cmd.edtl), c.sess.params.FirstBurst)
	}
	cmd.phase = gathering
	cmd.full = short && !unexpected
	if !unexpected && !short {
		c.pumpLocked(cmd, own)
		if lend {
			c.unpinLent(cmd)
		} else {
			c.unpin(cmd)
		}
		return
	}
	c.mu.Unlock()
	s := sense.UnexpectedUnsolicitedData()
	if short && !unexpected {
		// Answered TASK SET FULL, not with this, unless it is aborted meanwhile.
		s = sense.CommandAborted()
	}
	c.fail(cmd, &s)
	c.unpin(cmd)
}

// takeBuffer gives cmd room for the data-out it wants and for all that may come
// unasked, with data already in place. It reports false when memory is short.
func (c *TargetConn) takeBuffer(cmd *command, data []byte, stage *bufpool.Buf) bool {
	room := cmd.want
	if cmd.unsol {
		room = max(room, min(int(cmd.edtl), c.sess.params.FirstBurst))
	}
	if stage != nil && len(stage.B) >= room && cmd.want > 0 {
		cmd.buf = stage
		cmd.held += int64(len(stage.B))
		return true
	}
	ok := c.sess.budget.Take(int64(room))
	if ok && room > 0 {
		cmd.buf = bufpool.Get(room)
		cmd.held += int64(room)
		copy(cmd.buf.B, data)
	}
	c.putStage(stage)
	return ok
}

// fail ends a command whose data-out went wrong. Data still on its way is
// ignored.
func (c *TargetConn) fail(cmd *command, s *sense.Sense) {
	c.mu.Lock()
	ok := cmd.phase == gathering
	if ok {
		cmd.phase = running
	}
	c.mu.Unlock()
	if ok {
		cmd.task.Abandon(s)
	}
}

// pumpLocked runs the task when its data is complete, or asks for more of it. The
// caller holds mu, which is unlocked, and a pin. own says that it is the connection's
// own reader: only what that runs may go into the connection's batch.
func (c *TargetConn) pumpLocked(cmd *command, own bool) {
	if cmd.phase == gathering && (c.closed || c.dropped.Load() || cmd.task.Aborted()) {
		// Whoever closed or aborted it came while it was being admitted. After
		// Drop nothing may start: another connection may have taken this one's
		// place, and what it writes must not be overwritten.
		cmd.phase = running
		c.mu.Unlock()
		cmd.task.Abandon(nil)
		return
	}
	if cmd.phase != gathering || cmd.unsol {
		c.mu.Unlock()
		return
	}
	if cmd.received >= cmd.want {
		cmd.phase = running
		c.mu.Unlock()
		if cmd.want > 0 {
			cmd.task.Out = cmd.buf.B[:cmd.want]
		}
		if own {
			cmd.task.Batch = &c.batch
		}
		cmd.task.Run()
		return
	}
	var asks [maxR2Ts]outItem
	n := 0
	limit := min(c.sess.params.MaxOutstandingR2T, maxR2Ts)
	for len(cmd.r2ts) < limit && cmd.solicit < cmd.want {
		l := min(c.sess.params.MaxBurst, cmd.want-cmd.solicit)
		ttt := c.newTTT()
		cmd.r2ts = append(cmd.r2ts, r2t{ttt: ttt, off: cmd.solicit, len: l})
		asks[n] = outItem{kind: outR2T, lun: cmd.lun, itt: cmd.itt, ttt: ttt,
			sn: cmd.r2tSN, off: uint32(cmd.solicit), len: uint32(l)}
		n++
		cmd.r2tSN++
		cmd.solicit += l
	}
	c.mu.Unlock()
	for _, a := range asks[:n] {
		c.queue(a)
	}
}

// newTTT gives a target transfer tag. Caller holds mu.
func (c *TargetConn) newTTT() uint32 {
	c.nextTTT++
	if c.nextTTT == ReservedTag {
		c.nextTTT = 0
	}
	return c.nextTTT
}

// maxR2Ts bounds the requests outstanding for one command, whatever was
// negotiated.
const maxR2Ts = 8

// dataOutTarget finds where a Data-Out PDU's data belongs (RFC 7143 §11.7). A
// nil command or destination means that the data is thrown away: the task is
// gone, or failed. The command comes pinned.
func (c *TargetConn) dataOutTarget(h *BHS) (*command, []byte) {
	c.mu.Lock()
	cmd := c.tasks[h.ITT()]
	if cmd == nil {
		c.mu.Unlock()
		return nil, nil
	}
	cmd.pins++
	if cmd.phase != gathering {
		c.mu.Unlock()
		return cmd, nil
	}
	off, n := int(h.BufferOffset()), h.DataLen()
	ok := false
	if h.TTT() == ReservedTag {
		ok = cmd.unsol && off == cmd.unsolOff && h.DataSN() == cmd.unsolSN &&
			off+n <= min(int(cmd.edtl), c.sess.params.FirstBurst)
		cmd.unsolOff += n
		cmd.unsolSN++
	} else if r := cmd.findR2T(h.TTT()); r != nil {
		ok = off == r.off+r.got && h.DataSN() == r.sn && r.got+n <= r.len
		r.got += n
		r.sn++
	}
	if !ok || cmd.buf == nil {
		c.mu.Unlock()
		if !ok {
			s := sense.DataPhaseError()
			c.fail(cmd, &s)
		}
		return cmd, nil
	}
	dst := cmd.buf.B[off : off+n]
	c.mu.Unlock()
	return cmd, dst
}

func (cmd *command) findR2T(ttt uint32) *r2t {
	for i := range cmd.r2ts {
		if cmd.r2ts[i].ttt == ttt {
			return &cmd.r2ts[i]
		}
	}
	return nil
}

// dataOutDone accounts for a Data-Out PDU whose data is in place, and unpins the
// command. own is as for pumpLocked.
func (c *TargetConn) dataOutDone(cmd *command, h *BHS, badDigest, own bool) {
	defer c.unpin(cmd)
	if badDigest {
		c.reject(h, RejectDataDigest)
		s := sense.ProtocolServiceCRC()
		c.fail(cmd, &s)
	}
	final := h.Flags()&FlagFinal != 0
	short := false
	c.mu.Lock()
	if h.TTT() == ReservedTag {
		if final && cmd.unsol {
			cmd.unsol = false
			cmd.solicit = cmd.unsolOff
		}
	} else if r := cmd.findR2T(h.TTT()); r != nil && (final || r.got >= r.len) {
		short = r.got < r.len
		*r = cmd.r2ts[len(cmd.r2ts)-1]
		cmd.r2ts = cmd.r2ts[:len(cmd.r2ts)-1]
	}
	cmd.received += h.DataLen()
	answer := cmd.phase == finished && !cmd.unsol && !cmd.gone && !cmd.silent()
	if answer {
		// The task ended while unsolicited data was still to come; its response
		// was held back until now, as the tag could not be used again before.
		cmd.gone, cmd.queued = true, true
	}
	c.mu.Unlock()
	switch {
	case answer:
		c.queue(outItem{kind: outStatus, cmd: cmd})
	case short:
		s := sense.DataPhaseError()
		c.fail(cmd, &s)
	default:
		c.mu.Lock()
		c.pumpLocked(cmd, own)
	}
}

// TaskDone implements scsi.Transport.
func (cmd *command) TaskDone(t *scsi.Task) {
	c := cmd.conn
	c.mu.Lock()
	cmd.phase = finished
	if t.Aborted() && cmd.later {
		t.Status = scsi.TaskAborted
	}
	if cmd.silent() || c.closed {
		first := c.forget(cmd)
		free := cmd.free()
		c.mu.Unlock()
		if first && cmd.numbered {
			c.sess.answered()
		}
		if free {
			c.recycle(cmd)
		}
		return
	}
	if cmd.unsol {
		c.mu.Unlock()
		return
	}
	cmd.gone, cmd.queued = true, true
	c.queueLocked(outItem{kind: outStatus, cmd: cmd})
}

// cdbLen is the length of a CDB by its operation code's group (SPC-4 §4.3.2).
// Variable-length CDBs (7Fh) carry their length; what does not fit the PDU comes
// in an AHS.
func cdbLen(op byte) int {
	switch op >> 5 {
	case 0:
		return 6
	case 1, 2:
		return 10
	case 5:
		return 12
	}
	return 16
}

// residual fills the residual count and flags of a response (RFC 7143 §11.4.5).
func (cmd *command) residual(h *BHS) {
	t := &cmd.task
	var in int64
	if t.Status == scsi.Good || t.Status == scsi.ConditionMet {
		in = t.InLen
	}
	cmd.residualOf(h, in)
}

// residualOf is residual for a command that had in bytes of data-in to give.
func (cmd *command) residualOf(h *BHS, in int64) {
	// A command whose direction is not the one the initiator prepared for moves
	// nothing; what it would have moved is the overflow.
	expected, actual := int64(0), max(in, cmd.task.OutLen)
	if cmd.read || cmd.write {
		expected = int64(cmd.edtl)
	}
	switch {
	case actual > expected:
		h.SetFlags(h.Flags() | FlagOverflow)
		h.SetResidual(uint32(min(actual-expected, 0xffffffff)))
	case actual < expected:
		h.SetFlags(h.Flags() | FlagUnder)
		h.SetResidual(uint32(expected - actual))
	}
}

// senseSegment is the data segment of a response with sense data (RFC 7143
// §11.4.7): a two-byte length and the data.
func senseSegment(dst, sense []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(sense)))
	return append(dst, sense...)
}
