package initiator

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	"blockgate/iscsi"
	"blockgate/scsi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen at once.
const patience = 10 * time.Second

// peer is a scripted target at the other end of one connection.
type peer struct {
	*Raw
	t      testing.TB
	statSN uint32
	expCmd uint32
	maxCmd uint32
}

// testParams are small, so that short data needs every kind of PDU.
func testParams() iscsi.Params {
	p := DefaultParams()
	p.MaxRecvDataSegment, p.MaxXmitDataSegment = 4096, 4096
	return p
}

// open starts a session of n connections over pipes, as it is after a login
// that agreed on p, with a window of window commands.
func open(t *testing.T, p iscsi.Params, n int, window uint32, cfg Config) (*Session, []*peer) {
	t.Helper()
	cfg.TargetName = "iqn.2025-01.test:t"
	s := &Session{cfg: cfg.filled()}
	s.log = s.cfg.Logger
	var peers []*peer
	for i := range n {
		near, far := net.Pipe()
		r := NewRaw(near)
		r.Params, r.TSIH, r.CmdSN, r.ExpCmdSN, r.MaxCmdSN, r.ExpStatSN = p, 1, 10, 10, 9+window, 100
		pr := &peer{Raw: NewRaw(far), t: t, statSN: 100, expCmd: 10, maxCmd: 9 + window}
		pr.SetDeadline(time.Now().Add(patience))
		pr.ExpectDigests(p.HeaderDigest, p.DataDigest)
		pr.HeaderDigest, pr.DataDigest = p.HeaderDigest, p.DataDigest
		pr.MaxRecv(1 << 24)
		peers = append(peers, pr)
		if i == 0 {
			s.start(r, "pipe")
		} else if err := s.add(r, "pipe"); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		s.Close()
		for _, p := range peers {
			p.Close()
		}
	})
	return s, peers
}

// expect receives a PDU, which must be of this kind.
func (p *peer) expect(op iscsi.Opcode) *PDU {
	p.t.Helper()
	d, err := p.Recv()
	if err != nil {
		p.t.Fatalf("waiting for opcode %02x: %v", uint8(op), err)
	}
	if d.Opcode() != op {
		p.t.Fatalf("opcode %02x came, not %02x", uint8(d.Opcode()), uint8(op))
	}
	return d
}

// answer makes a header with the peer's sequence numbers; status PDUs take a StatSN.
func (p *peer) answer(op iscsi.Opcode, itt uint32, status bool) *iscsi.BHS {
	h := new(iscsi.BHS)
	h.SetOpcode(op, false)
	h.SetFlags(iscsi.FlagFinal)
	h.SetITT(itt)
	h.SetTTT(iscsi.ReservedTag)
	h.SetStatSN(p.statSN)
	if status {
		p.statSN++
	}
	h.SetExpCmdSN(p.expCmd)
	h.SetMaxCmdSN(p.maxCmd)
	return h
}

func (p *peer) send(h *iscsi.BHS, data []byte) {
	p.t.Helper()
	if err := p.Send(h, nil, data); err != nil {
		p.t.Fatalf("send opcode %02x: %v", uint8(h.Opcode()), err)
	}
}

// dataIn sends part of a read; the last part carries GOOD.
func (p *peer) dataIn(itt, sn uint32, off int, data []byte, last bool) {
	p.t.Helper()
	h := p.answer(iscsi.OpDataIn, itt, last)
	if last {
		h.SetFlags(iscsi.FlagFinal | iscsi.FlagStatus)
	} else {
		h.SetFlags(0)
		h.SetStatSN(0)
	}
	h.SetDataSN(sn)
	h.SetBufferOffset(uint32(off))
	p.send(h, data)
}

// status sends a SCSI Response.
func (p *peer) status(itt uint32, st scsi.Status, sense []byte) {
	p.t.Helper()
	h := p.answer(iscsi.OpSCSIResp, itt, true)
	h.SetStatus(byte(st))
	var data []byte
	if len(sense) > 0 {
		data = append(binary.BigEndian.AppendUint16(nil, uint16(len(sense))), sense...)
	}
	p.send(h, data)
}

func (p *peer) r2t(itt, ttt, sn uint32, off, n int) {
	p.t.Helper()
	h := p.answer(iscsi.OpR2T, itt, false)
	h.SetTTT(ttt)
	h.SetDataSN(sn)
	h.SetBufferOffset(uint32(off))
	h.SetDesiredLen(uint32(n))
	p.send(h, nil)
}

// submitted is a command whose completion a test can wait for.
type submitted struct {
	Command
	done chan struct{}
}

func submit(t *testing.T, s *Session, c Command) *submitted {
	t.Helper()
	x := &submitted{Command: c, done: make(chan struct{})}
	x.Done = func(*Command) { close(x.done) }
	if err := s.Submit(&x.Command); err != nil {
		t.Fatal(err)
	}
	return x
}

func (x *submitted) wait(t *testing.T) {
	t.Helper()
	select {
	case <-x.done:
	case <-time.After(patience):
		t.Fatal("the command is not done")
	}
}

func read(n int) Command {
	return Command{CDB: PutCDB16(make([]byte, 16), opRead16, 0, uint32(n)), In: make([]byte, n)}
}

func write(p []byte) Command {
	return Command{CDB: PutCDB16(make([]byte, 16), opWrite16, 0, uint32(len(p))), Out: p}
}

// sequence gives n bytes that differ from place to place.
func sequence(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i ^ i>>8*7)
	}
	return p
}

func background(t *testing.T) context.Context {
	ctx, stop := context.WithTimeout(t.Context(), patience)
	t.Cleanup(stop)
	return ctx
}

// quick serves READ(16) and WRITE(16) of any LBA as fast as it can, until the
// connection ends: in batches, without keeping what is written. It stands in for
// a target where only the initiator is of interest.
func quick(nc net.Conn, p iscsi.Params) {
	in := newInput(nc)
	in.headerDigest, in.dataDigest = p.HeaderDigest, p.DataDigest
	in.maxData = 1 << 24
	statSN, maxCmd := uint32(100), uint32(1000)
	var out batch
	in.waits = func() {
		if len(out.arena) > 0 {
			nc.Write(out.arena)
			out.arena = out.arena[:0]
		}
	}
	data := make([]byte, 1<<20)
	var h iscsi.BHS
	for {
		if _, err := in.next(&h); err != nil {
			if !errors.Is(err, io.EOF) {
				nc.Close()
			}
			return
		}
		if in.skip(h.DataLen()) != nil {
			return
		}
		if h.Opcode() != iscsi.OpSCSICmd {
			continue
		}
		maxCmd++
		o := out.header()
		o.SetITT(h.ITT())
		o.SetStatSN(statSN)
		o.SetExpCmdSN(h.CmdSN() + 1)
		o.SetMaxCmdSN(h.CmdSN() + 512)
		statSN++
		if h.CDB()[0] == opRead16 {
			o.SetOpcode(iscsi.OpDataIn, false)
			o.SetFlags(iscsi.FlagFinal | iscsi.FlagStatus)
			out.seal(data[:h.EDTL()], nil, p.HeaderDigest, p.DataDigest)
			continue
		}
		o.SetOpcode(iscsi.OpSCSIResp, false)
		o.SetFlags(iscsi.FlagFinal)
		out.seal(nil, nil, p.HeaderDigest, p.DataDigest)
	}
}
