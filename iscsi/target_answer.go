package iscsi

import "blockgate/scsi"

var _ scsi.Answerer = (*command)(nil)

// Answer implements scsi.Answerer: it sends a SCSI Response for a task that the
// store still has. The command's tag and its place in the command window are free
// again; the command itself stays, with its buffers and their share of the
// budget, until TaskDone, which finds it gone.
func (cmd *command) Answer(t *scsi.Task, st scsi.Status, sense []byte) {
	c := cmd.conn
	p := &reply{}
	p.bhs.SetOpcode(OpSCSIResp, false)
	p.bhs.SetFlags(FlagFinal)
	p.bhs.SetITT(cmd.itt)
	p.bhs.SetStatus(byte(st))
	cmd.residualOf(&p.bhs, 0)
	if len(sense) > 0 {
		p.data = senseSegment(nil, sense)
	}
	c.mu.Lock()
	if !c.forget(cmd) {
		// Task management or the end of the connection was first.
		c.mu.Unlock()
		return
	}
	p.numbered, cmd.numbered = cmd.numbered, false
	c.mu.Unlock()
	c.Responses.Add(1)
	c.queue(outItem{kind: outPDU, pdu: p})
}
