package iscsi

import (
	"fmt"
	"time"

	"blockgate/internal/bufpool"
)

// RejectReason is the reason of a Reject PDU (RFC 7143 §11.17.1).
type RejectReason byte

// Reject reasons.
const (
	RejectDataDigest       RejectReason = 0x02
	RejectSNACK            RejectReason = 0x03
	RejectProtocolError    RejectReason = 0x04
	RejectNotSupported     RejectReason = 0x05
	RejectTooManyImmediate RejectReason = 0x06
	RejectTaskInProgress   RejectReason = 0x07
	RejectInvalidDataACK   RejectReason = 0x08
	RejectInvalidPDUField  RejectReason = 0x09
	RejectOutOfResources   RejectReason = 0x0a
	RejectNegotiationReset RejectReason = 0x0b
)

// pdu acts on a complete PDU from the initiator. data is its data segment;
// stage, if not nil, is the budgeted buffer that data lies in and is consumed.
func (c *TargetConn) pdu(h *BHS, ahs, data []byte, stage *bufpool.Buf, badDigest bool) error {
	op := h.Opcode()
	lend := c.loans.mine && op == OpSCSICmd && h.Flags()&(FlagRead|FlagWrite) == FlagRead
	if !lend {
		_ = c.Settle()
	}
	if op == OpDataOut {
		return c.dataOut(h, data, stage, badDigest)
	}
	if badDigest {
		// The PDU is discarded; its number stays unused, so that a session at
		// recovery level 0 ends by the initiator's hand (RFC 7143 §7.8).
		c.putStage(stage)
		c.reject(h, RejectDataDigest)
		return nil
	}
	switch op {
	case OpSCSICmd, OpTaskReq, OpTextReq, OpLogoutReq, OpNopOut:
	case OpSNACK:
		c.putStage(stage)
		c.reject(h, RejectSNACK)
		return nil
	case OpLoginReq:
		c.putStage(stage)
		return protocolErrorf("login request in full feature phase")
	default:
		c.putStage(stage)
		c.reject(h, RejectNotSupported)
		return nil
	}
	if op == OpNopOut && h.ITT() == ReservedTag && !h.Immediate() {
		c.putStage(stage)
		c.reject(h, RejectProtocolError)
		return nil
	}
	c.sess.order.Lock()
	switch c.sess.sequence(h) {
	case drop:
		c.sess.order.Unlock()
		c.putStage(stage)
		return nil
	case hold:
		c.hold(h, ahs, data, stage, false)
		c.sess.order.Unlock()
		return nil
	}
	err := c.ordered(h, ahs, data, stage, true, lend)
	if !h.Immediate() && c.sess.nheld.Load() > 0 {
		_ = c.Settle()
		c.sess.release()
	}
	return err
}

// dataOut takes a Data-Out PDU that is complete. stage, if not nil, is the
// budgeted buffer that data lies in and is consumed.
func (c *TargetConn) dataOut(h *BHS, data []byte, stage *bufpool.Buf, badDigest bool) error {
	c.DataOutPDUs.Add(1)
	if c.nearly.Load() > 0 {
		if kept, err := c.keepLate(h, data, stage, badDigest); kept {
			return nil
		} else if err != nil {
			c.putStage(stage)
			return err
		}
	}
	if cmd, dst := c.dataOutTarget(h); cmd != nil {
		copy(dst, data)
		c.dataOutDone(cmd, h, badDigest, true)
	}
	c.putStage(stage)
	return nil
}

// ordered acts on a PDU whose turn it is. The session's order is locked and is
// let go of as soon as the device server knows the command. own says that this is
// the connection's own reader, and lend that the command may end with a loan.
func (c *TargetConn) ordered(h *BHS, ahs, data []byte, stage *bufpool.Buf, own, lend bool) error {
	if h.Opcode() == OpSCSICmd && c.sess.nexus != nil {
		c.scsiCommand(h, ahs, data, stage, own, lend)
		return nil
	}
	if h.Opcode() == OpTaskReq {
		c.putStage(stage)
		c.taskManagement(h)
		return nil
	}
	c.sess.order.Unlock()
	defer c.putStage(stage)
	switch h.Opcode() {
	case OpSCSICmd: // in a discovery session
		c.rejectCommand(h, RejectProtocolError)
	case OpTextReq:
		return c.textRequest(h, data)
	case OpLogoutReq:
		c.logout(h)
	case OpNopOut:
		c.nopOut(h, data)
	}
	return nil
}

// pduWithoutMemory takes a PDU whose data was thrown away since the server's
// memory budget is used up.
func (c *TargetConn) pduWithoutMemory(h *BHS) error {
	switch h.Opcode() {
	case OpSCSICmd, OpTaskReq, OpTextReq, OpLogoutReq, OpNopOut:
	default:
		return c.pdu(h, nil, nil, nil, false) // refused without a look at its data
	}
	c.sess.order.Lock()
	switch c.sess.sequence(h) {
	case drop:
		c.sess.order.Unlock()
	case hold:
		c.hold(h, nil, nil, nil, true)
		c.sess.order.Unlock()
	default:
		c.sess.order.Unlock()
		c.noMemory(h)
		if !h.Immediate() {
			c.sess.release()
		}
	}
	return nil
}

// reject sends a Reject with the offending header (RFC 7143 §11.17). The PDU's
// number, if it has one, is not consumed.
func (c *TargetConn) reject(h *BHS, r RejectReason) { c.sendReject(h, r, false) }

// rejectCommand rejects a PDU whose number has been consumed.
func (c *TargetConn) rejectCommand(h *BHS, r RejectReason) { c.sendReject(h, r, !h.Immediate()) }

func (c *TargetConn) sendReject(h *BHS, r RejectReason, numbered bool) {
	// One line a second tells as much as all of them.
	if now, last := time.Now().Unix(), c.rejected.Load(); now != last && c.rejected.CompareAndSwap(last, now) {
		c.log.Warn("iscsi: PDU rejected", "initiator", c.peer.Name, "opcode", fmt.Sprintf("0x%02x", byte(h.Opcode())),
			"reason", fmt.Sprintf("0x%02x", byte(r)))
	}
	p := &reply{data: append([]byte(nil), h[:]...), numbered: numbered}
	p.bhs.SetOpcode(OpReject, false)
	p.bhs.SetFlags(FlagFinal)
	p.bhs.SetResponse(byte(r))
	p.bhs.SetITT(ReservedTag)
	c.queue(outItem{kind: outPDU, pdu: p})
}

// nopOut answers a ping (RFC 7143 §11.18), or takes note of the answer to ours.
func (c *TargetConn) nopOut(h *BHS, data []byte) {
	c.mu.Lock()
	c.pings.unanswered = 0
	c.mu.Unlock()
	if h.ITT() == ReservedTag {
		return
	}
	n := min(len(data), int(c.maxXmit.Load()))
	p := &reply{data: append([]byte(nil), data[:n]...), numbered: !h.Immediate()}
	p.bhs.SetOpcode(OpNopIn, false)
	p.bhs.SetFlags(FlagFinal)
	p.bhs.SetLUN(h.LUN())
	p.bhs.SetITT(h.ITT())
	p.bhs.SetTTT(ReservedTag)
	c.queue(outItem{kind: outPDU, pdu: p})
}

// Logout reasons and responses (RFC 7143 §11.14.1, §11.15.1).
const (
	logoutSession    = 0
	logoutConnection = 1
	logoutRecovery   = 2

	logoutOK          = 0
	logoutCIDNotFound = 1
	logoutNoRecovery  = 2
)

// logout ends the session or one connection when its response is on the way.
func (c *TargetConn) logout(h *BHS) {
	p := &reply{numbered: !h.Immediate()}
	p.bhs.SetOpcode(OpLogoutResp, false)
	p.bhs.SetFlags(FlagFinal)
	p.bhs.SetITT(h.ITT())
	d := c.sess.params
	p.bhs[40], p.bhs[41] = byte(d.DefaultTime2Wait>>8), byte(d.DefaultTime2Wait)
	p.bhs[42], p.bhs[43] = byte(d.DefaultTime2Retain>>8), byte(d.DefaultTime2Retain)
	switch reason := h.Flags() & 0x7f; {
	case reason == logoutSession:
		p.last = true
		p.after = func() { c.sess.End("logout") }
	case reason == logoutConnection && h.CID() == c.cid:
		p.last = true
		p.after = func() { c.Drop("logout") }
	case reason == logoutConnection:
		other := c.sess.connection(h.CID())
		if other == nil {
			p.bhs.SetResponse(logoutCIDNotFound)
			break
		}
		other.Drop("logout by another connection")
	default:
		p.bhs.SetResponse(logoutNoRecovery) // error recovery level 0
	}
	c.queue(outItem{kind: outPDU, pdu: p})
}

// Async event codes (RFC 7143 §11.9.1).
const (
	AsyncSCSI             = 0
	AsyncLogoutRequest    = 1
	AsyncConnectionDrops  = 2
	AsyncSessionDrops     = 3
	AsyncNegotiateRequest = 4
)

// RequestLogout asks the initiator to log out within seconds.
func (c *TargetConn) RequestLogout(seconds uint16) {
	p := &reply{}
	p.bhs.SetOpcode(OpAsync, false)
	p.bhs.SetFlags(FlagFinal)
	p.bhs.SetITT(ReservedTag)
	p.bhs[36] = AsyncLogoutRequest
	p.bhs[42], p.bhs[43] = byte(seconds>>8), byte(seconds) // Parameter3: Time2Wait
	c.queue(outItem{kind: outPDU, pdu: p})
}

// AsyncSense sends a SCSI asynchronous event with sense data for a LUN.
func (c *TargetConn) AsyncSense(lun uint64, senseData []byte) {
	p := &reply{data: senseSegment(nil, senseData)}
	p.bhs.SetOpcode(OpAsync, false)
	p.bhs.SetFlags(FlagFinal)
	p.bhs.SetLUN(lun)
	p.bhs.SetITT(ReservedTag)
	p.bhs[36] = AsyncSCSI
	c.queue(outItem{kind: outPDU, pdu: p})
}
