package initiator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"blockgate/iscsi"
	"blockgate/scsi"
)

// conn is one connection of a session in full feature phase. Fields are guarded
// by the session's mutex unless they say otherwise.
type conn struct {
	s      *Session
	cid    uint16 // also the index in the session's list
	addr   string
	nc     net.Conn
	in     *input       // the reader's alone
	h      iscsi.BHS    // the reader's alone
	params iscsi.Params // constant

	expStatSN uint32
	out       *batch // being filled
	sent      *batch // being written, by whoever set writing
	writing   bool   // a batch is being written
	handed    bool   // … by the writer
	inBatch   bool   // the reader handles PDUs and will flush when it has done
	quiet     *sync.Cond
	try       *tryWriter

	wake    chan struct{} // to the writer, capacity 1
	dead    chan struct{} // closed when the session fails
	written chan struct{} // closed when the writer has ended
}

func newConn(s *Session, cid uint16, r *Raw, addr string) *conn {
	c := &conn{
		s: s, cid: cid, addr: addr, nc: r.nc, in: r.in, params: r.Params, expStatSN: r.ExpStatSN,
		out: new(batch), sent: new(batch), try: newTryWriter(r.nc),
		wake: make(chan struct{}, 1), dead: make(chan struct{}), written: make(chan struct{}),
	}
	c.quiet = sync.NewCond(&s.mu)
	c.in.headerDigest, c.in.dataDigest = r.Params.HeaderDigest, r.Params.DataDigest
	c.in.maxData = r.Params.MaxRecvDataSegment
	c.in.waits, c.in.woke = c.waits, c.woke
	return c
}

// lost words the failure of a connection.
func lost(c *conn, what string, err error) error {
	if errors.Is(err, ErrProtocol) || errors.Is(err, ErrDigest) || errors.Is(err, ErrDropped) {
		return fmt.Errorf("connection %d to %s: %w", c.cid+1, c.addr, err)
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("connection %d to %s: %w: closed by the target", c.cid+1, c.addr, ErrConnectionLost)
	}
	return fmt.Errorf("connection %d to %s: %w: %s: %w", c.cid+1, c.addr, ErrConnectionLost, what, err)
}

// waits runs before the reader waits for input: what its batch queued leaves now.
func (c *conn) waits() {
	c.s.mu.Lock()
	c.inBatch = false
	idle := c.out.empty()
	c.s.mu.Unlock()
	if !idle {
		c.flush()
	}
}

func (c *conn) woke() {
	c.s.mu.Lock()
	c.inBatch = true
	c.s.mu.Unlock()
}

// read is the connection's reader. It ends with the connection, after every
// command of the connection is done.
func (c *conn) read() {
	s := c.s
	defer s.running.Done()
	var err error
	for err == nil {
		if _, err = c.in.next(&c.h); err == nil {
			err = c.handle(&c.h)
		}
	}
	c.in.drop()
	err = lost(c, "receive", err)
	if errors.Is(err, ErrConnectionLost) && c.cid != 0 && s.leaving() {
		// A target may close the other connections before its answer to the
		// logout has come by the leading one. Logout closes dead in any case.
		<-c.dead
	}
	s.fail(err)
	<-c.written
	s.mu.Lock()
	for c.writing && !c.handed {
		c.quiet.Wait()
	}
	done := join(c.sent.clear(), c.out.clear())
	done = join(done, s.takeLocked(c))
	s.mu.Unlock()
	completeAll(done)
}

// handle deals with one PDU from the target. An error ends the session.
func (c *conn) handle(h *iscsi.BHS) error {
	switch h.Opcode() {
	case iscsi.OpDataIn:
		return c.dataIn(h)
	case iscsi.OpSCSIResp:
		return c.response(h)
	case iscsi.OpR2T:
		return c.r2t(h)
	case iscsi.OpNopIn:
		return c.nopIn(h)
	case iscsi.OpTaskResp, iscsi.OpTextResp, iscsi.OpLogoutResp:
		return c.answer(h)
	case iscsi.OpAsync:
		return c.async(h)
	case iscsi.OpReject:
		return c.reject(h)
	}
	return protocolErrorf("unexpected opcode %02xh", uint8(h.Opcode()))
}

// noteLocked takes over the window and, when the PDU carries a status, its StatSN.
func (c *conn) noteLocked(h *iscsi.BHS, status bool) error {
	s := c.s
	exp, maxSN := h.ExpCmdSN(), h.MaxCmdSN()
	if !iscsi.SNLess(maxSN, exp-1) {
		if iscsi.SNLess(s.expCmdSN, exp) {
			s.expCmdSN = exp
		}
		if iscsi.SNLess(s.maxCmdSN, maxSN) {
			s.maxCmdSN = maxSN
			if s.waiting != nil {
				s.drainLocked()
			}
		}
	}
	if status {
		if h.StatSN() != c.expStatSN {
			return protocolErrorf("StatSN %d where %d was due (opcode %02xh)", h.StatSN(), c.expStatSN, uint8(h.Opcode()))
		}
		c.expStatSN++
	}
	return nil
}

func (c *conn) dataIn(h *iscsi.BHS) error {
	s, n := c.s, h.DataLen()
	last := h.Flags()&iscsi.FlagStatus != 0
	s.mu.Lock()
	err := c.noteLocked(h, last)
	var cmd *Command
	if err == nil {
		cmd, err = s.commandLocked(c, h.ITT())
	}
	if err != nil || cmd == nil {
		s.mu.Unlock()
		if err == nil {
			err = c.in.skip(n)
		}
		return err
	}
	off := int64(h.BufferOffset())
	switch {
	case off+int64(n) > int64(len(cmd.In)):
		err = protocolErrorf("Data-In of %d bytes at offset %d for a command that expects %d", n, off, len(cmd.In))
	case h.DataSN() != cmd.dataSN:
		err = protocolErrorf("DataSN %d where %d was due", h.DataSN(), cmd.dataSN)
	case c.params.DataPDUInOrder && c.params.DataSequenceInOrder && off != int64(cmd.Received):
		err = protocolErrorf("Data-In at offset %d where %d was due", off, cmd.Received)
	case cmd.Received+n > len(cmd.In):
		err = protocolErrorf("more than %d bytes of Data-In", len(cmd.In))
	}
	if err != nil {
		s.mu.Unlock()
		return err
	}
	cmd.dataSN++
	cmd.receiving = true
	s.mu.Unlock()

	err = c.in.dataInto(cmd.In[off : off+int64(n)])

	s.mu.Lock()
	cmd.receiving = false
	if err != nil {
		// The command ends with the session, or now if it was aborted meanwhile.
		settled := cmd.settle()
		s.mu.Unlock()
		if settled {
			cmd.complete()
		}
		return err
	}
	cmd.Received += n
	if last && !cmd.finished {
		cmd.Status = scsi.Status(h.Status())
		cmd.setResidual(h.Flags(), h.Residual())
		s.finishLocked(cmd)
	}
	settled := cmd.settle()
	s.mu.Unlock()
	if settled {
		cmd.complete()
	}
	return nil
}

func (c *conn) response(h *iscsi.BHS) error {
	data, err := c.in.data(h.DataLen())
	if err != nil {
		return err
	}
	var sense []byte
	if len(data) >= 2 {
		n := int(binary.BigEndian.Uint16(data))
		if n > len(data)-2 {
			return protocolErrorf("SenseLength %d in a data segment of %d bytes", n, len(data))
		}
		sense = data[2 : 2+n]
	}
	s := c.s
	s.mu.Lock()
	err = c.noteLocked(h, true)
	var cmd *Command
	if err == nil {
		cmd, err = s.commandLocked(c, h.ITT())
	}
	if err != nil || cmd == nil {
		s.mu.Unlock()
		return err
	}
	cmd.Response = h.Response()
	cmd.Status = scsi.Status(h.Status())
	cmd.Sense = append(cmd.Sense[:0], sense...)
	f := h.Flags()
	cmd.setResidual(f, h.Residual())
	cmd.BidiOverflow, cmd.BidiUnderflow = f&iscsi.FlagBidiOver != 0, f&iscsi.FlagBidiUnd != 0
	if cmd.BidiOverflow || cmd.BidiUnderflow {
		cmd.BidiResidual = binary.BigEndian.Uint32(h[40:])
	}
	s.finishLocked(cmd)
	settled := cmd.settle()
	s.mu.Unlock()
	if settled {
		cmd.complete()
	}
	return nil
}

func (c *conn) r2t(h *iscsi.BHS) error {
	if h.DataLen() != 0 {
		return protocolErrorf("R2T with a data segment")
	}
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := c.noteLocked(h, false); err != nil {
		return err
	}
	cmd, err := s.commandLocked(c, h.ITT())
	if err != nil || cmd == nil {
		return err
	}
	off, n := int64(h.BufferOffset()), int64(h.DesiredLen())
	switch {
	case n == 0 || n > int64(c.params.MaxBurst):
		return protocolErrorf("R2T for %d bytes with MaxBurstLength %d", n, c.params.MaxBurst)
	case off+n > int64(len(cmd.Out)):
		return protocolErrorf("R2T for %d bytes at offset %d of a command with %d", n, off, len(cmd.Out))
	case h.DataSN() != cmd.dataSN:
		return protocolErrorf("R2TSN %d where %d was due", h.DataSN(), cmd.dataSN)
	case h.TTT() == iscsi.ReservedTag:
		return protocolErrorf("R2T with the reserved target transfer tag")
	case cmd.solicited+int(n) > len(cmd.Out):
		// Nothing is sent twice at error recovery level 0.
		return protocolErrorf("R2Ts ask for more than the %d bytes of the command", len(cmd.Out))
	}
	cmd.dataSN++
	cmd.solicited += int(n)
	c.dataOutLocked(cmd, h.LUN(), h.TTT(), int(off), int(n))
	return c.boundLocked()
}

// boundLocked fails when a target piles up work for us without reading what it
// asked for.
func (c *conn) boundLocked() error {
	if len(c.out.arena) > maxUnread {
		return protocolErrorf("more than %d bytes wait while the target does not read", maxUnread)
	}
	return nil
}

// dataOutLocked queues one sequence of Data-Out PDUs.
func (c *conn) dataOutLocked(cmd *Command, lun uint64, ttt uint32, off, n int) {
	for sn := uint32(0); n > 0; sn++ {
		m := min(n, c.params.MaxXmitDataSegment)
		h := c.out.header()
		h.SetOpcode(iscsi.OpDataOut, false)
		if m == n {
			h.SetFlags(iscsi.FlagFinal)
		}
		if ttt != iscsi.ReservedTag {
			h.SetLUN(lun)
		}
		h.SetITT(cmd.itt)
		h.SetTTT(ttt)
		h.SetExpStatSN(c.expStatSN)
		h.SetDataSN(sn)
		h.SetBufferOffset(uint32(off))
		c.out.seal(cmd.Out[off:off+m], cmd, c.params.HeaderDigest, c.params.DataDigest)
		off += m
		n -= m
	}
}

// commandLocked queues the command itself, with immediate and unsolicited data
// as far as the session allows both (RFC 7143 §4.2.5.2).
func (c *conn) commandLocked(cmd *Command) {
	imm, unasked := 0, 0
	if n := len(cmd.Out); n > 0 {
		first := min(n, c.params.FirstBurst)
		if c.params.ImmediateData {
			imm = min(first, c.params.MaxXmitDataSegment)
		}
		if !c.params.InitialR2T {
			unasked = first - imm
		}
	}
	h := c.out.header()
	h.SetOpcode(iscsi.OpSCSICmd, cmd.Immediate)
	flags := byte(cmd.Attr)
	if unasked == 0 {
		flags |= iscsi.FlagFinal
	}
	edtl := len(cmd.In)
	if len(cmd.In) > 0 {
		flags |= iscsi.FlagRead
	}
	if len(cmd.Out) > 0 {
		flags |= iscsi.FlagWrite
		edtl = len(cmd.Out)
	}
	h.SetFlags(flags)
	h.SetLUN(cmd.LUN)
	h.SetITT(cmd.itt)
	h.SetEDTL(uint32(edtl))
	h.SetCmdSN(cmd.cmdSN)
	h.SetExpStatSN(c.expStatSN)
	copy(h.CDB(), cmd.CDB)
	if rest := len(cmd.CDB) - len(h.CDB()); rest > 0 {
		c.out.arena = iscsi.AppendExtendedCDB(c.out.arena, cmd.CDB[len(h.CDB()):])
	}
	if len(cmd.In) > 0 && len(cmd.Out) > 0 {
		c.out.arena = iscsi.AppendBidiRead(c.out.arena, uint32(len(cmd.In)))
	}
	c.out.seal(cmd.Out[:imm], cmd, c.params.HeaderDigest, c.params.DataDigest)
	cmd.solicited = imm + unasked
	if unasked > 0 {
		c.dataOutLocked(cmd, 0, iscsi.ReservedTag, imm, unasked)
	}
}
