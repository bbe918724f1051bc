package iscsi_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/iscsi"
	"blockgate/scsi"
)

// read reads blocks and returns the data and the last PDU.
func (l *link) read(itt, sn, lba uint32, nblocks uint16) ([]byte, pdu) {
	l.rig.t.Helper()
	n := int(nblocks) * 512
	l.send(cmdPDU(itt, sn, 0, rw10(0x28, lba, nblocks), uint32(n), fR), nil)
	var got []byte
	for dataSN := uint32(0); ; dataSN++ {
		p := l.next()
		if p.Opcode() == iscsi.OpSCSIResp {
			return got, p
		}
		if p.Opcode() != iscsi.OpDataIn || p.ITT() != itt || p.DataSN() != dataSN || int(p.BufferOffset()) != len(got) {
			l.rig.t.Fatalf("not the Data-In expected: % x", p.BHS[:])
		}
		got = append(got, p.data...)
		if p.Flags()&iscsi.FlagStatus != 0 {
			return got, p
		}
	}
}

func (p pdu) wantStatus(t *testing.T, s scsi.Status) {
	t.Helper()
	if op := p.Opcode(); op != iscsi.OpSCSIResp && op != iscsi.OpDataIn || p.Status() != byte(s) {
		t.Fatalf("opcode %02x status %02x, want status %02x; sense % x", p.Opcode(), p.Status(), s, p.data)
	}
}

func (p pdu) wantReject(t *testing.T, reason iscsi.RejectReason) {
	t.Helper()
	if p.Opcode() != iscsi.OpReject || p.Response() != byte(reason) {
		t.Fatalf("%v %02x, want a Reject of reason %02x", p.Opcode(), p.Response(), byte(reason))
	}
}

func (p pdu) wantSense(t *testing.T, key, asc, ascq byte) {
	t.Helper()
	p.wantStatus(t, scsi.CheckCondition)
	if len(p.data) < 16 || p.data[2+2]&0xf != key || p.data[2+12] != asc || p.data[2+13] != ascq {
		t.Fatalf("sense % x, want %x/%02x/%02x", p.data, key, asc, ascq)
	}
}

func TestWriteInEveryWayOfBringingData(t *testing.T) {
	for _, tc := range []struct {
		name      string
		set       func(*iscsi.Params)
		immediate int // bytes
		unsol     []int
		nblocks   uint16
	}{
		{"immediate", nil, 4096, nil, 8},
		{"long immediate", nil, 64 << 10, nil, 128},
		{"unsolicited", nil, 0, []int{4096, 4096}, 16},
		{"immediate and unsolicited", nil, 512, []int{1024, 512}, 4},
		{"long unsolicited", nil, 0, []int{32 << 10, 32 << 10}, 128},
		{"solicited", func(p *iscsi.Params) { p.InitialR2T, p.ImmediateData = true, false }, 0, nil, 64},
		{"immediate, then solicited in several bursts", func(p *iscsi.Params) { p.MaxBurst, p.FirstBurst = 8192, 4096 }, 4096, nil, 128},
		{"all three", func(p *iscsi.Params) { p.MaxBurst, p.FirstBurst = 16384, 8192 }, 1024, []int{1024, 2048}, 100},
		{"digests", func(p *iscsi.Params) { p.HeaderDigest, p.DataDigest, p.FirstBurst = true, true, 40000 }, 20000, []int{2000}, 100},
		{"odd segments", func(p *iscsi.Params) { p.FirstBurst = 1000; p.DataDigest = true }, 333, []int{111}, 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, rigOptions{params: tc.set})
			l := r.conns[0]
			n := int(tc.nblocks) * 512
			want := pattern(n, 0x5a)
			flags := byte(fW)
			if tc.unsol != nil {
				flags = w
			}
			l.send(cmdPDU(7, 1, 0, rw10(0x2a, 16, tc.nblocks), uint32(n), flags), want[:tc.immediate])
			off := tc.immediate
			for i, k := range tc.unsol {
				l.send(dataOut(7, iscsi.ReservedTag, uint32(i), uint32(off), i == len(tc.unsol)-1), want[off:off+k])
				off += k
			}
			asked := off
			for off < n {
				p := l.next()
				if p.Opcode() != iscsi.OpR2T || p.ITT() != 7 || int(p.BufferOffset()) != asked {
					t.Fatalf("want an R2T for offset %d, got % x", asked, p.BHS[:])
				}
				asked += int(p.DesiredLen())
				half := int(p.DesiredLen()) / 2
				o := int(p.BufferOffset())
				l.send(dataOut(7, p.TTT(), 0, uint32(o), false), want[o:o+half])
				l.send(dataOut(7, p.TTT(), 1, uint32(o+half), true), want[o+half:asked])
				off = asked
			}
			l.next().wantStatus(t, scsi.Good)
			got, last := l.read(8, 2, 16, tc.nblocks)
			last.wantStatus(t, scsi.Good)
			if !bytes.Equal(got, want) {
				t.Fatal("read back differs")
			}
			if u := r.budget.Used(); u != 0 {
				t.Errorf("%d bytes of the memory budget are not given back", u)
			}
		})
	}
}

func TestSeveralR2TsAreOutstandingAndMayBeAnsweredInAnyOrder(t *testing.T) {
	r := newRig(t, rigOptions{params: func(p *iscsi.Params) {
		p.MaxBurst, p.ImmediateData, p.InitialR2T, p.MaxOutstandingR2T = 4096, false, true, 3
	}})
	l := r.conns[0]
	want := pattern(5*4096, 1)
	l.send(cmdPDU(1, 1, 0, rw10(0x2a, 0, 40), 5*4096, fW), nil)
	a, b, c := l.next(), l.next(), l.next()
	l.nothing()
	for _, p := range []pdu{c, a, b} {
		o := p.BufferOffset()
		l.send(dataOut(1, p.TTT(), 0, o, true), want[o:o+4096])
	}
	for range 2 {
		p := l.next()
		o := p.BufferOffset()
		l.send(dataOut(1, p.TTT(), 0, o, true), want[o:o+4096])
	}
	l.next().wantStatus(t, scsi.Good)
	if got, _ := l.read(2, 2, 0, 40); !bytes.Equal(got, want) {
		t.Fatal("read back differs")
	}
}

func TestDataInIsCutToTheInitiatorsLimits(t *testing.T) {
	r := newRig(t, rigOptions{params: func(p *iscsi.Params) { p.MaxXmitDataSegment, p.MaxBurst = 3000, 8192 }})
	l := r.conns[0]
	l.send(cmdPDU(1, 1, 0, rw10(0x28, 0, 64), 32768, fR), nil)
	off := 0
	for {
		p := l.next()
		if len(p.data) > 3000 || int(p.BufferOffset()) != off {
			t.Fatalf("Data-In of %d bytes at %d, want at most 3000 at %d", len(p.data), p.BufferOffset(), off)
		}
		off += len(p.data)
		final := p.Flags()&iscsi.FlagFinal != 0
		if final != (off%8192 == 0) {
			t.Fatalf("F=%v at offset %d with bursts of 8192", final, off)
		}
		if p.Flags()&iscsi.FlagStatus != 0 {
			break
		}
	}
	if off != 32768 {
		t.Fatalf("%d bytes came", off)
	}
}

func TestBrokenDataOutEndsTheCommandAndKeepsTheSession(t *testing.T) {
	for _, tc := range []struct {
		name string
		send func(l *link)
		sns  []byte
	}{
		{"wrong DataSN", func(l *link) { l.send(dataOut(1, iscsi.ReservedTag, 5, 0, true), make([]byte, 1024)) }, []byte{0xb, 0x4b, 0}},
		{"wrong offset", func(l *link) { l.send(dataOut(1, iscsi.ReservedTag, 0, 512, true), make([]byte, 512)) }, []byte{0xb, 0x4b, 0}},
		{"beyond FirstBurstLength", func(l *link) { l.send(dataOut(1, iscsi.ReservedTag, 0, 0, true), make([]byte, 4096)) }, []byte{0xb, 0x4b, 0}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, rigOptions{params: func(p *iscsi.Params) { p.FirstBurst = 1024 }})
			l := r.conns[0]
			l.send(cmdPDU(1, 1, 0, rw10(0x2a, 0, 2), 1024, w), nil)
			tc.send(l)
			l.next().wantSense(t, tc.sns[0], tc.sns[1], tc.sns[2])
			_, last := l.read(2, 2, 0, 1)
			last.wantStatus(t, scsi.Good)
		})
	}
}

func TestUnexpectedImmediateDataIsRefused(t *testing.T) {
	r := newRig(t, rigOptions{params: func(p *iscsi.Params) { p.ImmediateData = false }})
	l := r.conns[0]
	l.send(cmdPDU(1, 1, 0, rw10(0x2a, 0, 1), 512, fW), make([]byte, 512))
	l.next().wantSense(t, 0xb, 0x0c, 0x0c)
}

func TestDigestErrors(t *testing.T) {
	digests := func(p *iscsi.Params) { p.HeaderDigest, p.DataDigest = true, true }
	t.Run("header: the connection ends", func(t *testing.T) {
		l := newRig(t, rigOptions{params: digests}).conns[0]
		b := l.wire(cmdPDU(1, 1, 0, rw10(0x28, 0, 1), 512, fR), nil)
		b[20] ^= 1
		if err := l.feed(b); err == nil || !strings.Contains(err.Error(), "header digest") {
			t.Fatalf("err = %v", err)
		}
	})
	t.Run("immediate data: reject, the number is not used up", func(t *testing.T) {
		for _, n := range []int{512, 32 << 10} {
			l := newRig(t, rigOptions{params: digests}).conns[0]
			b := l.wire(cmdPDU(1, 1, 0, rw10(0x2a, 0, uint16(n/512)), uint32(n), fW), make([]byte, n))
			b[60] ^= 1
			if err := l.feed(b); err != nil {
				t.Fatal(err)
			}
			p := l.next()
			if p.Opcode() != iscsi.OpReject || p.Response() != byte(iscsi.RejectDataDigest) || len(p.data) != 48 {
				t.Fatalf("want a reject, got % x", p.BHS[:])
			}
			if p.ExpCmdSN() != 1 {
				t.Fatalf("ExpCmdSN=%d after a discarded command", p.ExpCmdSN())
			}
			_, last := l.read(2, 1, 0, 1)
			last.wantStatus(t, scsi.Good)
		}
	})
	t.Run("data-out: reject and CHECK CONDITION", func(t *testing.T) {
		l := newRig(t, rigOptions{params: digests}).conns[0]
		l.send(cmdPDU(1, 1, 0, rw10(0x2a, 0, 1), 512, w), nil)
		b := l.wire(dataOut(1, iscsi.ReservedTag, 0, 0, true), make([]byte, 512))
		b[100] ^= 1
		if err := l.feed(b); err != nil {
			t.Fatal(err)
		}
		if p := l.next(); p.Opcode() != iscsi.OpReject || p.Response() != byte(iscsi.RejectDataDigest) {
			t.Fatalf("want a reject, got % x", p.BHS[:])
		}
		l.next().wantSense(t, 0xb, 0x47, 0x05)
	})
}

func TestCommandWindow(t *testing.T) {
	r := newRig(t, rigOptions{queue: 4})
	l := r.conns[0]
	tur := make([]byte, 6)
	l.send(cmdPDU(1, 99, 0, tur, 0, 0x80), nil) // beyond MaxCmdSN
	l.send(cmdPDU(2, 0, 0, tur, 0, 0x80), nil)  // below ExpCmdSN
	l.nothing()
	l.send(cmdPDU(3, 1, 0, tur, 0, 0x80), nil)
	p := l.next()
	p.wantStatus(t, scsi.Good)
	if p.ExpCmdSN() != 2 || p.MaxCmdSN() != 5 {
		t.Fatalf("ExpCmdSN=%d MaxCmdSN=%d, want 2 and 5", p.ExpCmdSN(), p.MaxCmdSN())
	}
	// Writes that wait for data close the window one by one.
	for i := range uint32(4) {
		l.send(cmdPDU(10+i, 2+i, 0, rw10(0x2a, 0, 1), 512, w), nil)
	}
	l.send(cmdPDU(20, 6, 0, tur, 0, 0x80), nil) // the fifth: outside
	l.nothing()
	var nop iscsi.BHS
	nop.SetOpcode(iscsi.OpNopOut, true)
	nop.SetFlags(iscsi.FlagFinal)
	nop.SetITT(50)
	nop.SetTTT(iscsi.ReservedTag)
	nop.SetCmdSN(6)
	l.send(nop, []byte("ping"))
	p = l.next()
	if p.Opcode() != iscsi.OpNopIn || string(p.data) != "ping" || p.ExpCmdSN() != 6 || p.MaxCmdSN() != 5 {
		t.Fatalf("NOP-In %q with ExpCmdSN=%d MaxCmdSN=%d, want a closed window (6, 5)", p.data, p.ExpCmdSN(), p.MaxCmdSN())
	}
	l.send(dataOut(10, iscsi.ReservedTag, 0, 0, true), make([]byte, 512))
	if p = l.next(); p.MaxCmdSN() != 6 {
		t.Fatalf("MaxCmdSN=%d after one answer, want 6", p.MaxCmdSN())
	}
}

func TestSerialArithmeticOfCmdSN(t *testing.T) {
	r := newRig(t, rigOptions{})
	l := r.conns[0]
	_ = r
	if !iscsi.SNLess(0xffffffff, 0) || iscsi.SNLess(0, 0xffffffff) || iscsi.SNLess(5, 5) {
		t.Fatal("numbers do not wrap")
	}
	l.nothing()
}

func TestCommandsOfTwoConnectionsKeepTheirOrder(t *testing.T) {
	r := newRig(t, rigOptions{conns: 2})
	a, b := r.conns[0], r.conns[1]
	data := pattern(512, 9)
	// The read has number 2 and comes first, on the other connection.
	b.send(cmdPDU(2, 2, 0, rw10(0x28, 3, 1), 512, fR), nil)
	b.nothing()
	a.send(cmdPDU(1, 1, 0, rw10(0x2a, 3, 1), 512, fW), data)
	a.next().wantStatus(t, scsi.Good)
	p := b.next()
	if p.Opcode() != iscsi.OpDataIn || !bytes.Equal(p.data, data) {
		t.Fatalf("the read on the second connection gave % x", p.BHS[:])
	}
}

func TestLostConnectionTakesItsHeldCommandsAlong(t *testing.T) {
	r := newRig(t, rigOptions{conns: 2})
	a, b := r.conns[0], r.conns[1]
	b.send(cmdPDU(2, 2, 0, rw10(0x2a, 3, 1), 512, fW), pattern(512, 1))
	b.send(cmdPDU(3, 3, 0, rw10(0x2a, 3, 1), 512, w), nil)
	b.close()
	a.send(cmdPDU(1, 1, 0, make([]byte, 6), 0, 0x80), nil)
	a.next().wantStatus(t, scsi.Good)
	if r.sess.Ended() {
		t.Fatal("the session ended with a connection left")
	}
	a.close()
	if !r.sess.Ended() {
		t.Fatal("the session outlives its last connection")
	}
	if u := r.budget.Used(); u != 0 {
		t.Errorf("%d bytes of the budget are not given back", u)
	}
}

func TestRejects(t *testing.T) {
	for _, tc := range []struct {
		name   string
		make   func() iscsi.BHS
		reason iscsi.RejectReason
	}{
		{"unknown opcode", func() (h iscsi.BHS) { h.SetOpcode(0x1c, true); return }, iscsi.RejectNotSupported},
		{"SNACK", func() (h iscsi.BHS) { h.SetOpcode(iscsi.OpSNACK, false); return }, iscsi.RejectSNACK},
		{"text with F and C", func() (h iscsi.BHS) {
			h.SetOpcode(iscsi.OpTextReq, true)
			h.SetFlags(0xc0)
			h.SetTTT(iscsi.ReservedTag)
			return
		}, iscsi.RejectProtocolError},
		{"text of another exchange", func() (h iscsi.BHS) {
			h.SetOpcode(iscsi.OpTextReq, true)
			h.SetFlags(0x80)
			h.SetTTT(77)
			return
		}, iscsi.RejectInvalidPDUField},
		{"task tag in use", func() iscsi.BHS { return cmdPDU(1, 2, 0, rw10(0x28, 0, 1), 512, fR) }, iscsi.RejectTaskInProgress},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newRig(t, rigOptions{}).conns[0]
			l.send(cmdPDU(1, 1, 0, rw10(0x2a, 0, 1), 512, w), nil)
			h := tc.make()
			l.send(h, nil)
			p := l.next()
			h.SetDataLen(0)
			if p.Opcode() != iscsi.OpReject || p.Response() != byte(tc.reason) || !bytes.Equal(p.data, h[:]) {
				t.Fatalf("got % x", p.BHS[:])
			}
		})
	}
}

func TestLogout(t *testing.T) {
	logout := func(reason byte, cid uint16) (h iscsi.BHS) {
		h.SetOpcode(iscsi.OpLogoutReq, true)
		h.SetFlags(0x80 | reason)
		h.SetITT(3)
		h.SetCID(cid)
		return
	}
	t.Run("session", func(t *testing.T) {
		r := newRig(t, rigOptions{conns: 2})
		r.conns[0].send(logout(0, 0), nil)
		if p := r.conns[0].next(); p.Opcode() != iscsi.OpLogoutResp || p.Response() != 0 {
			t.Fatalf("% x", p.BHS[:])
		}
		for _, l := range r.conns {
			<-l.aborted
		}
	})
	t.Run("another connection", func(t *testing.T) {
		r := newRig(t, rigOptions{conns: 2})
		r.conns[0].send(logout(1, 1), nil)
		if p := r.conns[0].next(); p.Response() != 0 {
			t.Fatalf("% x", p.BHS[:])
		}
		<-r.conns[1].aborted
		select {
		case why := <-r.conns[0].aborted:
			t.Fatalf("the wrong connection was closed: %s", why)
		default:
		}
	})
	t.Run("unknown connection, recovery", func(t *testing.T) {
		l := newRig(t, rigOptions{}).conns[0]
		l.send(logout(1, 9), nil)
		if p := l.next(); p.Response() != 1 {
			t.Fatalf("response %d for an unknown CID", p.Response())
		}
		l.send(logout(2, 0), nil)
		if p := l.next(); p.Response() != 2 {
			t.Fatalf("response %d for recovery", p.Response())
		}
	})
}

func TestAbortInEveryPhase(t *testing.T) {
	t.Run("collecting data", func(t *testing.T) {
		r := newRig(t, rigOptions{})
		l := r.conns[0]
		l.send(cmdPDU(1, 1, 0, rw10(0x2a, 0, 1), 512, w), nil)
		l.send(tmf(2, 2, 1, 0, 1, 1), nil)
		if p := l.next(); p.Opcode() != iscsi.OpTaskResp || p.Response() != 0 {
			t.Fatalf("% x", p.BHS[:])
		}
		l.send(dataOut(1, iscsi.ReservedTag, 0, 0, true), make([]byte, 512)) // late: ignored
		l.nothing()
		if u := r.budget.Used(); u != 0 {
			t.Errorf("%d bytes of the budget are not given back", u)
		}
	})
	t.Run("unknown", func(t *testing.T) {
		l := newRig(t, rigOptions{}).conns[0]
		l.send(tmf(2, 5, 1, 0, 77, 0), nil)
		if p := l.next(); p.Response() != 1 {
			t.Fatalf("response %d", p.Response())
		}
	})
	t.Run("overtaken", func(t *testing.T) {
		l := newRig(t, rigOptions{}).conns[0]
		l.send(tmf(2, 2, 1, 0, 77, 1), nil)
		if p := l.next(); p.Response() != 0 || p.ExpCmdSN() != 2 {
			t.Fatalf("response %d ExpCmdSN %d", p.Response(), p.ExpCmdSN())
		}
		l.send(cmdPDU(77, 1, 0, rw10(0x2a, 0, 1), 512, fW), make([]byte, 512))
		l.nothing()
	})
	t.Run("absent LUN and functions", func(t *testing.T) {
		l := newRig(t, rigOptions{}).conns[0]
		l.send(tmf(2, 1, 5, 9<<48, 0, 0), nil)
		if p := l.next(); p.Response() != 2 {
			t.Fatalf("response %d for a LUN that is not there", p.Response())
		}
		l.send(tmf(3, 1, 8, 0, 0, 0), nil)
		if p := l.next(); p.Response() != 4 {
			t.Fatalf("response %d to TASK REASSIGN", p.Response())
		}
	})
	t.Run("cold reset ends the sessions", func(t *testing.T) {
		r := newRig(t, rigOptions{})
		l := r.conns[0]
		l.send(tmf(2, 1, 7, 0, 0, 0), nil)
		if p := l.next(); p.Response() != 0 {
			t.Fatalf("response %d", p.Response())
		}
		l.flush()
		if len(r.resets) != 1 || r.resets[0] != rigTarget {
			t.Fatalf("resets: %q", r.resets)
		}
	})
}

func TestHungStoreDoesNotHoldUpItsNeighbour(t *testing.T) {
	h := newHung(t)
	r := newRig(t, rigOptions{stores: map[uint64]backing.Store{0: h, 1: openStore(t, "ram:4M")}})
	l := r.conns[0]
	l.send(cmdPDU(1, 1, 0, rw10(0x2a, 0, 1), 512, fW), pattern(512, 1))
	<-h.in
	l.send(cmdPDU(2, 2, 1<<48, rw10(0x2a, 0, 1), 512, fW), pattern(512, 2))
	p := l.next()
	p.wantStatus(t, scsi.Good)
	if p.ITT() != 2 {
		t.Fatalf("answer for task %d", p.ITT())
	}
	// The connection goes away while the store has the buffer: it must not be
	// used again before the store returns.
	l.close()
	if u := r.budget.Used(); u == 0 {
		t.Error("the buffer inside the store was given back")
	}
	close(h.release)
	deadline := time.After(10 * time.Second)
	for r.budget.Used() != 0 {
		select {
		case <-deadline:
			t.Fatalf("%d bytes are never given back", r.budget.Used())
		default:
		}
	}
}

func TestResiduals(t *testing.T) {
	for _, tc := range []struct {
		name  string
		cdb   []byte
		edtl  uint32
		flags byte
		data  int
		over  bool
		under bool
		count uint32
		bad   bool // CHECK CONDITION
	}{
		{name: "write that ends inside a block", cdb: rw10(0x2a, 0, 1), edtl: 200, flags: fW, data: 200, over: true, count: 312},
		{name: "WRITE AND VERIFY that ends inside a block", cdb: rw10(0x2e, 0, 1), edtl: 200, flags: fW, data: 200, over: true, count: 312, bad: true},
		{"read less than expected", rw10(0x28, 0, 1), 2048, fR, 0, false, true, 1536, false},
		{"read more than expected", rw10(0x28, 0, 4), 512, fR, 0, true, false, 1536, false},
		{"write less than expected", rw10(0x2a, 0, 1), 2048, fW, 2048, false, true, 1536, false},
		{"write more than expected", rw10(0x2a, 0, 4), 512, fW, 512, true, false, 1536, false},
		{"no data where some was expected", make([]byte, 6), 100, fR, 0, false, true, 100, false},
		{"data where none was expected", rw10(0x28, 0, 1), 0, 0x80, 0, true, false, 512, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newRig(t, rigOptions{}).conns[0]
			l.send(cmdPDU(1, 1, 0, tc.cdb, tc.edtl, tc.flags), make([]byte, tc.data))
			p := l.next()
			want := scsi.Good
			if tc.bad {
				want = scsi.CheckCondition
			}
			p.wantStatus(t, want)
			over, under := p.Flags()&iscsi.FlagOverflow != 0, p.Flags()&iscsi.FlagUnder != 0
			if over != tc.over || under != tc.under || p.Residual() != tc.count {
				t.Fatalf("O=%v U=%v residual %d, want %v %v %d", over, under, p.Residual(), tc.over, tc.under, tc.count)
			}
		})
	}
}
