package iscsi_test

import (
	"testing"

	"blockgate/iscsi"
	"blockgate/scsi"
)

// twoLinks is a session with two connections whose writes wait for an R2T, and
// are at CmdSN 1.
func twoLinks(t *testing.T) (a, b *link) {
	r := newRig(t, rigOptions{conns: 2, params: func(p *iscsi.Params) {
		p.InitialR2T, p.ImmediateData, p.MaxConnections = true, false, 2
	}})
	return r.conns[0], r.conns[1]
}

func (p pdu) want(t *testing.T, op iscsi.Opcode, itt uint32) {
	t.Helper()
	if p.Opcode() != op || p.ITT() != itt {
		t.Fatalf("opcode %02x for task %x, want %02x for %x", byte(p.Opcode()), p.ITT(), byte(op), itt)
	}
}

const lunReset = byte(scsi.LUNReset)

// TestFunctionWaitsForTheCommandsItCovers: an immediate function overtakes a
// command on another connection. Its answer must mean that the command is over,
// too, so that a write cannot run behind it.
func TestFunctionWaitsForTheCommandsItCovers(t *testing.T) {
	a, b := twoLinks(t)
	b.send(tmf(9, 2, lunReset, 0, iscsi.ReservedTag, 0), nil)
	b.nothing()
	a.send(cmdPDU(1, 1, 0, rw10(0x2a, 0, 8), 4096, fW), nil)
	a.next().want(t, iscsi.OpR2T, 1)
	p := b.next()
	p.want(t, iscsi.OpTaskResp, 9)
	if p.Response() != 0 {
		t.Fatalf("response %d", p.Response())
	}
	// The write is gone: nothing comes for it but what comes for a new task.
	a.send(cmdPDU(1, 2, 0, make([]byte, 6), 0, 0x80), nil)
	a.next().wantSense(t, 6, 0x29, 0x03) // BUS DEVICE RESET FUNCTION OCCURRED
}

// TestFunctionDoesNotCoverLaterCommands: a command behind the function that comes
// first is aborted by the reset all the same, and answered, since the initiator
// waits for it.
func TestFunctionDoesNotCoverLaterCommands(t *testing.T) {
	a, b := twoLinks(t)
	b.send(cmdPDU(1, 1, 0, rw10(0x2a, 0, 8), 4096, fW), nil)
	b.next().want(t, iscsi.OpR2T, 1)
	a.send(tmf(9, 1, lunReset, 0, iscsi.ReservedTag, 0), nil)
	a.next().want(t, iscsi.OpTaskResp, 9)
	<-b.wake
	b.flush()
	p := b.next()
	p.want(t, iscsi.OpSCSIResp, 1)
	p.wantStatus(t, scsi.TaskAborted)
	if p.MaxCmdSN() != p.ExpCmdSN()+127 {
		t.Errorf("ExpCmdSN %d, MaxCmdSN %d: the place in the window is not free", p.ExpCmdSN(), p.MaxCmdSN())
	}
}

// TestFunctionDoesNotWaitForEver: a command that never comes must not take the
// means of recovery away.
func TestFunctionDoesNotWaitForEver(t *testing.T) {
	t.Run("time", func(t *testing.T) {
		_, b := twoLinks(t)
		b.send(tmf(9, 2, lunReset, 0, iscsi.ReservedTag, 0), nil)
		b.nothing()
		b.c.Tick()
		b.c.Tick()
		<-b.wake
		b.flush()
		b.next().want(t, iscsi.OpTaskResp, 9)
	})
	t.Run("the connection goes", func(t *testing.T) {
		a, b := twoLinks(t)
		b.send(tmf(9, 2, lunReset, 0, iscsi.ReservedTag, 0), nil)
		b.nothing()
		a.close()
		<-b.wake
		b.flush()
		b.next().want(t, iscsi.OpTaskResp, 9)
	})
	t.Run("its own connection goes", func(t *testing.T) {
		a, b := twoLinks(t)
		b.send(tmf(9, 2, lunReset, 0, iscsi.ReservedTag, 0), nil)
		b.close()
		a.send(cmdPDU(1, 1, 0, rw10(0x28, 0, 1), 512, fR), nil)
		a.next().want(t, iscsi.OpDataIn, 1)
	})
}

// TestFunctionOfASingleConnectionNeverWaits, whatever its CmdSN says.
func TestFunctionOfASingleConnectionNeverWaits(t *testing.T) {
	l := newRig(t, rigOptions{}).conns[0]
	l.send(tmf(9, 7, lunReset, 0, iscsi.ReservedTag, 0), nil)
	l.next().want(t, iscsi.OpTaskResp, 9)
}
