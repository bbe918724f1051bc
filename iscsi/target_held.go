package iscsi

import (
	"blockgate/internal/bufpool"
	"blockgate/scsi"
	"blockgate/scsi/sense"
)

// heldPDU is a PDU that came before others of lower CmdSN, which come on other
// connections (RFC 7143 §4.2.2.1). It runs when those are there.
type heldPDU struct {
	conn  *TargetConn
	bhs   BHS
	ahs   []byte
	data  []byte       // at the front of stage
	stage *bufpool.Buf // budgeted
	// noMemory: the budget had no room for its data, which is gone.
	noMemory bool

	// late is the unsolicited data that came behind a held write command, in
	// order; guarded by TargetConn.mu. While the connection's table of held
	// commands has this one, such data is added here, also when the command is
	// just starting.
	late []lateData
}

// lateData is a Data-Out PDU for a held command.
type lateData struct {
	bhs   BHS
	stage *bufpool.Buf // its data; nil with a length: lost for want of memory
	bad   bool         // its data digest was wrong
}

// maxLate bounds the Data-Out PDUs kept for one held command. With segments of
// 512 bytes, the least there are, it is more than the default FirstBurstLength.
const maxLate = 1024

// maxLateConn bounds them for all held commands of a connection: no budget counts
// those without data.
const maxLateConn = 16 << 10

// hold keeps a PDU until its turn. data is copied unless it lies in stage, which
// hold takes over. The session's order is locked.
func (c *TargetConn) hold(h *BHS, ahs, data []byte, stage *bufpool.Buf, noMemory bool) {
	p := &heldPDU{conn: c, bhs: *h, ahs: append([]byte(nil), ahs...), noMemory: noMemory, stage: stage}
	if stage == nil && len(data) > 0 {
		if p.stage = c.takeStage(len(data)); p.stage != nil {
			copy(p.stage.B, data)
		} else {
			p.noMemory = true
		}
	}
	if p.stage != nil {
		p.data = p.stage.B[:len(data)]
	}
	if h.Opcode() == OpSCSICmd && h.Flags()&FlagWrite != 0 && h.Flags()&FlagFinal == 0 {
		c.mu.Lock()
		if c.early == nil {
			c.early = make(map[uint32]*heldPDU)
		}
		if c.early[h.ITT()] == nil {
			c.early[h.ITT()] = p
			c.nearly.Add(1)
		}
		c.mu.Unlock()
	}
	c.sess.hold(p)
}

// isEarly reports that the Data-Out PDU belongs to a held command.
func (c *TargetConn) isEarly(h *BHS) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.early[h.ITT()] != nil
}

// keepLate stores a Data-Out PDU for a held command; it reports false when there
// is no such command. stage, if not nil, holds the data and is taken over.
func (c *TargetConn) keepLate(h *BHS, data []byte, stage *bufpool.Buf, bad bool) (kept bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.early[h.ITT()]
	if p == nil {
		return false, nil
	}
	if len(p.late) >= maxLate || c.nlate >= maxLateConn {
		return false, protocolErrorf("%d Data-Out PDUs for a command that is out of order", len(p.late))
	}
	c.nlate++
	if stage == nil && len(data) > 0 {
		if stage = c.takeStage(len(data)); stage != nil {
			copy(stage.B, data)
		}
	}
	p.late = append(p.late, lateData{*h, stage, bad})
	return true, nil
}

// runHeld acts on a PDU whose turn has come, on the goroutine of the connection
// that brought the one before it. The session's order is locked.
func (c *TargetConn) runHeld(p *heldPDU) {
	var err error
	if p.noMemory {
		c.sess.order.Unlock()
		c.putStage(p.stage)
		c.noMemory(&p.bhs)
	} else {
		err = c.ordered(&p.bhs, p.ahs, p.data, p.stage, false, false)
	}
	if err != nil {
		c.Drop(err.Error())
	}
	for {
		c.mu.Lock()
		if len(p.late) == 0 {
			c.forgetEarly(p)
			c.mu.Unlock()
			return
		}
		d := p.late[0]
		p.late = p.late[1:]
		c.nlate--
		c.mu.Unlock()
		cmd, dst := c.dataOutTarget(&d.bhs)
		if cmd != nil {
			switch {
			case d.stage != nil:
				copy(dst, d.stage.B)
			case d.bhs.DataLen() > 0:
				s := sense.CommandAborted()
				c.fail(cmd, &s)
			}
			c.dataOutDone(cmd, &d.bhs, d.bad, false)
		}
		c.putStage(d.stage)
	}
}

// dropHeld gives back what a held PDU that will not run holds.
func (c *TargetConn) dropHeld(p *heldPDU) {
	c.mu.Lock()
	c.forgetEarly(p)
	late := p.late
	p.late = nil
	c.nlate -= len(late)
	c.mu.Unlock()
	c.putStage(p.stage)
	for i := range late {
		c.putStage(late[i].stage)
	}
}

// forgetEarly takes a command out of the table of held ones. Caller holds mu.
func (c *TargetConn) forgetEarly(p *heldPDU) {
	if c.early[p.bhs.ITT()] == p {
		delete(c.early, p.bhs.ITT())
		c.nearly.Add(-1)
	}
}

// noMemory answers a PDU whose data was thrown away since the server's memory
// budget is used up, and whose turn it is.
func (c *TargetConn) noMemory(h *BHS) {
	if h.Opcode() != OpSCSICmd {
		c.rejectCommand(h, RejectOutOfResources)
		return
	}
	p := &reply{numbered: !h.Immediate()}
	p.bhs.SetOpcode(OpSCSIResp, false)
	p.bhs.SetFlags(FlagFinal)
	p.bhs.SetITT(h.ITT())
	p.bhs.SetStatus(byte(scsi.TaskSetFull))
	c.queue(outItem{kind: outPDU, pdu: p})
}
