package initiator

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"blockgate/iscsi"
	"blockgate/scsi"
	"blockgate/scsi/sense"
)

func TestReadInPieces(t *testing.T) {
	for _, digests := range []bool{false, true} {
		t.Run(fmt.Sprint("digests=", digests), func(t *testing.T) {
			pa := testParams()
			pa.HeaderDigest, pa.DataDigest = digests, digests
			s, ps := open(t, pa, 1, 8, Config{})
			p, want := ps[0], sequence(10001)
			x := submit(t, s, read(len(want)))
			d := p.expect(iscsi.OpSCSICmd)
			if d.Flags() != iscsi.FlagFinal|iscsi.FlagRead || d.EDTL() != uint32(len(want)) || !bytes.Equal(d.CDB(), x.CDB) ||
				d.CmdSN() != 10 || d.ExpStatSN() != 100 {
				t.Errorf("command PDU %x", d.BHS[:])
			}
			p.dataIn(d.ITT(), 0, 0, want[:4096], false)
			p.dataIn(d.ITT(), 1, 4096, want[4096:8192], false)
			p.dataIn(d.ITT(), 2, 8192, want[8192:], true)
			x.wait(t)
			if err := x.Failure(); err != nil {
				t.Fatal(err)
			}
			if x.Received != len(want) || !bytes.Equal(x.In, want) {
				t.Error("the data is not what was sent")
			}
		})
	}
}

// TestWrites checks for every combination of what governs write data that each
// byte arrives once, in PDUs within the limits, and nothing unasked that was not
// allowed. The target asks for the rest from the end to the front.
func TestWrites(t *testing.T) {
	for _, initialR2T := range []bool{true, false} {
		for _, immediate := range []bool{true, false} {
			for _, digests := range []bool{true, false} {
				for _, size := range []int{1, 4096, 5000, 40000, 100001} {
					name := fmt.Sprintf("InitialR2T=%t,ImmediateData=%t,digests=%t,%d", initialR2T, immediate, digests, size)
					t.Run(name, func(t *testing.T) {
						p := testParams()
						p.InitialR2T, p.ImmediateData, p.HeaderDigest, p.DataDigest = initialR2T, immediate, digests, digests
						p.FirstBurst, p.MaxBurst = 20000, 30000
						p.MaxXmitDataSegment = 18000 // above and below what is copied
						checkWrite(t, p, size)
					})
				}
			}
		}
	}
}

func checkWrite(t *testing.T, pa iscsi.Params, size int) {
	s, ps := open(t, pa, 1, 8, Config{})
	p, want := ps[0], sequence(size)
	x := submit(t, s, write(want))
	d := p.expect(iscsi.OpSCSICmd)
	got, itt := bytes.Clone(d.Data), d.ITT()
	if n := len(got); n > pa.MaxXmitDataSegment || n > pa.FirstBurst || n > 0 && !pa.ImmediateData {
		t.Fatalf("%d bytes of immediate data", n)
	}
	if pa.ImmediateData && len(got) == 0 {
		t.Error("no immediate data though it was agreed")
	}
	// take receives one sequence of Data-Out and adds it to what is there.
	take := func(dst []byte, ttt uint32, off int, fin bool) []byte {
		for sn := uint32(0); !fin; sn++ {
			o := p.expect(iscsi.OpDataOut)
			if o.ITT() != itt || o.TTT() != ttt || o.DataSN() != sn || int(o.BufferOffset()) != off+len(dst) {
				t.Fatalf("Data-Out %x, offset %d due", o.BHS[:], off+len(dst))
			}
			if len(o.Data) > pa.MaxXmitDataSegment {
				t.Fatalf("Data-Out of %d bytes", len(o.Data))
			}
			dst = append(dst, o.Data...)
			fin = o.Flags()&iscsi.FlagFinal != 0
		}
		return dst
	}
	got = append(got, take(nil, iscsi.ReservedTag, len(got), d.Flags()&iscsi.FlagFinal != 0)...)
	if len(got) > pa.FirstBurst {
		t.Fatalf("%d bytes unasked with FirstBurstLength %d", len(got), pa.FirstBurst)
	}
	if !pa.InitialR2T && len(got) != min(size, pa.FirstBurst) {
		t.Errorf("%d bytes unasked, %d were allowed", len(got), min(size, pa.FirstBurst))
	}
	have := len(got)
	got = append(got, make([]byte, size-have)...)
	for sn, end := uint32(0), size; end > have; sn++ {
		n := min(end-have, pa.MaxBurst)
		p.r2t(itt, 70+sn, sn, end-n, n)
		copy(got[end-n:], take(nil, 70+sn, end-n, false))
		end -= n
	}
	p.status(itt, scsi.Good, nil)
	x.wait(t)
	if err := x.Failure(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the target has not what was written")
	}
}

func TestStatusSenseAndResidual(t *testing.T) {
	s, ps := open(t, testParams(), 1, 8, Config{})
	p := ps[0]
	x := submit(t, s, read(512))
	itt := p.expect(iscsi.OpSCSICmd).ITT()
	var buf [sense.MaxLen]byte
	p.status(itt, scsi.CheckCondition, sense.LBAOutOfRange(77).Encode(buf[:], true))
	x.wait(t)
	var e *StatusError
	if !errors.As(x.Failure(), &e) || e.Sense.Key != sense.IllegalRequest || e.Sense.ASC != 0x21 || e.Sense.Info != 77 {
		t.Errorf("failure %v", x.Failure())
	}

	x = submit(t, s, read(512))
	h := p.answer(iscsi.OpSCSIResp, p.expect(iscsi.OpSCSICmd).ITT(), true)
	h.SetFlags(iscsi.FlagFinal | iscsi.FlagUnder)
	h.SetResidual(500)
	p.send(h, nil)
	x.wait(t)
	if !x.Good() || !x.Underflow || x.Overflow || x.Residual != 500 || len(x.Sense) != 0 {
		t.Errorf("underflow %t overflow %t residual %d sense %x", x.Underflow, x.Overflow, x.Residual, x.Sense)
	}
}

// TestLongCDB: 32 bytes travel in an extended CDB segment.
func TestLongCDB(t *testing.T) {
	s, ps := open(t, testParams(), 1, 8, Config{})
	cdb := sequence(33)
	submit(t, s, Command{CDB: cdb, In: make([]byte, 8), Out: make([]byte, 4)})
	d := ps[0].expect(iscsi.OpSCSICmd)
	a, err := iscsi.ParseCommandAHS(d.AHS)
	if err != nil {
		t.Fatal(err)
	}
	if got := append(bytes.Clone(d.CDB()), a.ExtendedCDB...); !bytes.Equal(got, cdb) || !a.Bidi || a.BidiReadLen != 8 || d.EDTL() != 4 {
		t.Errorf("CDB %x, read length %d, EDTL %d", got, a.BidiReadLen, d.EDTL())
	}
}

// TestWindow: no more commands are out than the target has room for; those that
// wait leave in order when it opens the window, immediate ones at once.
func TestWindow(t *testing.T) {
	s, ps := open(t, testParams(), 1, 2, Config{})
	p := ps[0]
	for i := range 5 {
		submit(t, s, Command{CDB: []byte{byte(i)}})
	}
	submit(t, s, Command{CDB: []byte{9}, Immediate: true})
	for i, want := range []byte{0, 1, 9} {
		d := p.expect(iscsi.OpSCSICmd)
		if d.CDB()[0] != want || d.CmdSN() != uint32(10+i) || d.Immediate() != (want == 9) {
			t.Fatalf("command %d with CmdSN %d, immediate %t", d.CDB()[0], d.CmdSN(), d.Immediate())
		}
	}
	if s.Window() != 0 {
		t.Errorf("window of %d", s.Window())
	}
	p.expCmd, p.maxCmd = 12, 13
	p.send(p.answer(iscsi.OpNopIn, iscsi.ReservedTag, false), nil)
	for i := range 2 {
		if d := p.expect(iscsi.OpSCSICmd); d.CDB()[0] != byte(2+i) || d.CmdSN() != uint32(12+i) {
			t.Fatalf("command %d with CmdSN %d", d.CDB()[0], d.CmdSN())
		}
	}
	// A window from the past is no window (RFC 7143 §4.2.2.1).
	p.maxCmd = 5
	p.send(p.answer(iscsi.OpNopIn, iscsi.ReservedTag, false), nil)
	// So is one that ends before it begins, also if it is news.
	p.expCmd, p.maxCmd = 30, 20
	h := p.answer(iscsi.OpNopIn, iscsi.ReservedTag, false)
	h.SetTTT(1)
	p.send(h, nil)
	p.expect(iscsi.OpNopOut)
	p.expCmd, p.maxCmd = 14, 14
	p.send(p.answer(iscsi.OpNopIn, iscsi.ReservedTag, false), nil)
	if d := p.expect(iscsi.OpSCSICmd); d.CDB()[0] != 4 {
		t.Errorf("command %d", d.CDB()[0])
	}
}

// TestBrokenTargets: what a target must not do ends the session with a reason,
// and the command with the same.
func TestBrokenTargets(t *testing.T) {
	type step func(p *peer, itt uint32)
	tests := []struct {
		name string
		cmd  Command
		do   step
	}{
		{"StatSN", read(8), func(p *peer, itt uint32) { p.statSN++; p.status(itt, scsi.Good, nil) }},
		{"DataSN", read(8), func(p *peer, itt uint32) { p.dataIn(itt, 1, 0, make([]byte, 8), true) }},
		{"offset order", read(8), func(p *peer, itt uint32) { p.dataIn(itt, 0, 4, make([]byte, 4), false) }},
		{"data beyond end", read(8), func(p *peer, itt uint32) { p.dataIn(itt, 0, 0, make([]byte, 9), true) }},
		{"offset beyond end", read(8), func(p *peer, itt uint32) { p.dataIn(itt, 0, 1<<31, make([]byte, 1), true) }},
		{"data in for a write", write(make([]byte, 9)), func(p *peer, itt uint32) { p.dataIn(itt, 0, 0, make([]byte, 1), false) }},
		{"unknown tag", read(8), func(p *peer, itt uint32) { p.status(itt+1, scsi.Good, nil) }},
		{"tag of the past", read(8), func(p *peer, itt uint32) { p.status(itt^0x10000, scsi.Good, nil) }},
		{"long segment", read(8192), func(p *peer, itt uint32) { p.dataIn(itt, 0, 0, make([]byte, 4097), true) }},
		{"R2T beyond end", write(make([]byte, 9000)), func(p *peer, itt uint32) { p.r2t(itt, 1, 0, 8999, 2) }},
		{"R2T for nothing", write(make([]byte, 9000)), func(p *peer, itt uint32) { p.r2t(itt, 1, 0, 8000, 0) }},
		{"R2T above MaxBurst", write(make([]byte, 3<<20)), func(p *peer, itt uint32) { p.r2t(itt, 1, 0, 1<<20, 1<<20+1) }},
		{"R2TSN", write(make([]byte, 9000)), func(p *peer, itt uint32) { p.r2t(itt, 1, 1, 8000, 8) }},
		{"R2T with data", write(make([]byte, 9000)), func(p *peer, itt uint32) {
			h := p.answer(iscsi.OpR2T, itt, false)
			h.SetTTT(1)
			h.SetBufferOffset(8000)
			h.SetDesiredLen(8)
			p.send(h, make([]byte, 4))
		}},
		{"R2T without tag", write(make([]byte, 9000)), func(p *peer, itt uint32) { p.r2t(itt, iscsi.ReservedTag, 0, 8000, 8) }},
		{"R2T for what was sent", write(make([]byte, 4096)), func(p *peer, itt uint32) { p.r2t(itt, 1, 0, 0, 8) }},
		{"R2T for a read", read(8), func(p *peer, itt uint32) { p.r2t(itt, 1, 0, 0, 8) }},
		{"sense length", read(8), func(p *peer, itt uint32) {
			p.send(p.answer(iscsi.OpSCSIResp, itt, true), []byte{0, 9, 1, 2})
		}},
		{"initiator's opcode", read(8), func(p *peer, itt uint32) { p.send(p.answer(iscsi.OpSCSICmd, itt, false), nil) }},
		{"login response", read(8), func(p *peer, itt uint32) { p.send(p.answer(iscsi.OpLoginResp, itt, true), nil) }},
		{"NOP-In for a command", read(8), func(p *peer, itt uint32) { p.send(p.answer(iscsi.OpNopIn, itt, true), nil) }},
		{"wrong answer", read(8), func(p *peer, itt uint32) { p.send(p.answer(iscsi.OpTextResp, itt, true), nil) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pa := testParams()
			pa.InitialR2T = true
			s, ps := open(t, pa, 1, 8, Config{})
			x := submit(t, s, tt.cmd)
			tt.do(ps[0], ps[0].expect(iscsi.OpSCSICmd).ITT())
			x.wait(t)
			if !errors.Is(x.Err, ErrProtocol) || !errors.Is(s.Err(), ErrProtocol) {
				t.Errorf("command: %v, session: %v", x.Err, s.Err())
			}
			if err := s.Submit(&Command{CDB: []byte{0}}); !errors.Is(err, ErrProtocol) {
				t.Errorf("a command after that: %v", err)
			}
		})
	}
}

func TestWrongDigests(t *testing.T) {
	pa := testParams()
	pa.HeaderDigest, pa.DataDigest = true, true
	for _, header := range []bool{true, false} {
		s, ps := open(t, pa, 1, 8, Config{})
		p := ps[0]
		x := submit(t, s, read(8))
		h := p.answer(iscsi.OpDataIn, p.expect(iscsi.OpSCSICmd).ITT(), true)
		h.SetFlags(iscsi.FlagFinal | iscsi.FlagStatus)
		b := p.Encode(nil, h, nil, make([]byte, 8))
		if header {
			b[20] ^= 1
		} else {
			b[len(b)-6] ^= 1
		}
		if err := p.SendBytes(b); err != nil && !header {
			t.Fatal(err)
		}
		x.wait(t)
		if !errors.Is(x.Err, ErrDigest) {
			t.Errorf("header %t: %v", header, x.Err)
		}
	}
}

func TestConnectionLossEndsEverything(t *testing.T) {
	s, ps := open(t, testParams(), 1, 2, Config{})
	var all []*submitted
	for range 4 { // two out, two waiting
		all = append(all, submit(t, s, read(8)))
	}
	ping := make(chan error, 1)
	go func() { ping <- s.Ping(background(t), nil) }()
	for range 2 {
		ps[0].expect(iscsi.OpSCSICmd)
	}
	ps[0].expect(iscsi.OpNopOut)
	ps[0].Close()
	for _, x := range all {
		x.wait(t)
		if !errors.Is(x.Err, ErrConnectionLost) {
			t.Errorf("command: %v", x.Err)
		}
	}
	if err := <-ping; !errors.Is(err, ErrConnectionLost) {
		t.Errorf("ping: %v", err)
	}
}

// TestConnections: commands are spread, numbered in one row, and their answers
// must come where they went.
func TestConnections(t *testing.T) {
	s, ps := open(t, testParams(), 3, 100, Config{})
	var all []*submitted
	for range 6 {
		all = append(all, submit(t, s, read(1)))
	}
	for i := range uint32(6) {
		p := ps[i%3]
		d := p.expect(iscsi.OpSCSICmd)
		if d.CmdSN() != 10+i {
			t.Errorf("connection %d: CmdSN %d, %d due", i%3, d.CmdSN(), 10+i)
		}
		p.dataIn(d.ITT(), 0, 0, []byte{byte(i)}, true)
	}
	for i, x := range all {
		x.wait(t)
		if !x.Good() || x.In[0] != byte(i) {
			t.Errorf("command %d: %v, %v", i, x.Failure(), x.In)
		}
	}
	x := submit(t, s, read(1))
	ps[1].status(ps[0].expect(iscsi.OpSCSICmd).ITT(), scsi.Good, nil)
	x.wait(t)
	if !errors.Is(x.Err, ErrProtocol) {
		t.Errorf("an answer on another connection: %v", x.Err)
	}
}

// TestWindowOfConnections: a window that one connection opens lets the commands
// of the others go, too.
func TestWindowOfConnections(t *testing.T) {
	s, ps := open(t, testParams(), 3, 0, Config{})
	for range 3 {
		submit(t, s, read(1))
	}
	ps[1].maxCmd = 20
	ps[1].send(ps[1].answer(iscsi.OpNopIn, iscsi.ReservedTag, false), nil)
	for i, p := range ps {
		if d := p.expect(iscsi.OpSCSICmd); d.CmdSN() != uint32(10+i) {
			t.Errorf("connection %d: CmdSN %d", i, d.CmdSN())
		}
	}
}

// TestSecondAnswer: an answer to a task that was answered before is not taken for
// the answer to the task that has its place now.
func TestSecondAnswer(t *testing.T) {
	s, ps := open(t, testParams(), 1, 8, Config{})
	p := ps[0]
	x := submit(t, s, read(1))
	itt := p.expect(iscsi.OpSCSICmd).ITT()
	p.dataIn(itt, 0, 0, []byte{1}, true)
	x.wait(t)
	y := submit(t, s, read(1))
	p.expect(iscsi.OpSCSICmd)
	p.status(itt, scsi.Good, nil)
	y.wait(t)
	if !errors.Is(y.Err, ErrProtocol) {
		t.Errorf("%v", y.Err)
	}
}

// TestFlood: a target that asks and asks and takes no answer does not fill our
// memory.
func TestFlood(t *testing.T) {
	ask := map[string]func(p *peer, itt, n uint32) *iscsi.BHS{
		"NOP-In": func(p *peer, _, n uint32) *iscsi.BHS {
			h := p.answer(iscsi.OpNopIn, iscsi.ReservedTag, false)
			h.SetTTT(n)
			return h
		},
		"R2T": func(p *peer, itt, n uint32) *iscsi.BHS {
			h := p.answer(iscsi.OpR2T, itt, false)
			h.SetTTT(n)
			h.SetDataSN(n)
			h.SetBufferOffset(n)
			h.SetDesiredLen(1)
			return h
		},
	}
	for name, next := range ask {
		t.Run(name, func(t *testing.T) {
			pa := testParams()
			pa.InitialR2T, pa.ImmediateData = true, false
			s, ps := open(t, pa, 1, 8, Config{})
			p := ps[0]
			x := submit(t, s, write(make([]byte, 500_000)))
			itt := p.expect(iscsi.OpSCSICmd).ITT()
			var err error
			for n := uint32(0); n < 500_000 && err == nil; {
				var b []byte
				for range 1000 {
					b = p.Encode(b, next(p, itt, n), nil, nil)
					n++
				}
				err = p.SendBytes(b)
			}
			x.wait(t)
			if !errors.Is(x.Err, ErrProtocol) {
				t.Errorf("%v", x.Err)
			}
		})
	}
}

// TestTargetThatWritesFirst: a target may not read until it has written. The
// pipe has no buffer at all, so anything that waits for a write deadlocks.
func TestTargetThatWritesFirst(t *testing.T) {
	s, ps := open(t, testParams(), 1, 100, Config{})
	p := ps[0]
	x := submit(t, s, read(64*4096))
	itt := p.expect(iscsi.OpSCSICmd).ITT()
	var all []*submitted
	for range 50 {
		all = append(all, submit(t, s, write(sequence(20000))))
	}
	for i := range 64 {
		p.dataIn(itt, uint32(i), i*4096, sequence(4096), i == 63)
	}
	x.wait(t)
	seen := 0
	for seen < len(all) {
		d, err := p.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if d.Flags()&iscsi.FlagFinal != 0 { // of the command or its unsolicited data
			p.status(d.ITT(), scsi.Good, nil)
			seen++
		}
	}
	for _, x := range all {
		x.wait(t)
		if err := x.Failure(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEarlyAnswer: a write that is answered before its data was taken is done
// only when the data is out of the caller's buffer.
func TestEarlyAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pa := testParams()
		pa.MaxXmitDataSegment = 64 << 10
		s, ps := open(t, pa, 1, 8, Config{})
		p := ps[0]
		x := submit(t, s, write(sequence(256<<10)))
		h := p.expect(iscsi.OpSCSICmd) // the pipe now holds up the rest
		p.status(h.ITT(), scsi.Busy, nil)
		synctest.Wait()
		select {
		case <-x.done:
			t.Fatal("done while its data is still being sent")
		default:
		}
		for p.expect(iscsi.OpDataOut).Flags()&iscsi.FlagFinal == 0 {
		}
		<-x.done
		if x.Err != nil || x.Status != scsi.Busy {
			t.Errorf("status %x, %v", x.Status, x.Err)
		}
		s.Close()
	})
}

func TestReject(t *testing.T) {
	s, ps := open(t, testParams(), 1, 8, Config{})
	p := ps[0]
	x := submit(t, s, read(8))
	d := p.expect(iscsi.OpSCSICmd)
	h := p.answer(iscsi.OpReject, iscsi.ReservedTag, true)
	h.SetResponse(9)
	p.send(h, d.BHS[:])
	x.wait(t)
	var r *RejectError
	if !errors.As(x.Err, &r) || r.Reason != 9 || r.Header.ITT() != d.ITT() {
		t.Errorf("%v", x.Err)
	}
	if s.Err() != nil {
		t.Errorf("session: %v", s.Err())
	}
}

func TestSubmitChecks(t *testing.T) {
	s, _ := open(t, testParams(), 1, 8, Config{})
	for _, c := range []Command{{}, {CDB: make([]byte, 261)}, {CDB: []byte{0}, Connection: 2}, {CDB: []byte{0}, Attr: 8}} {
		if err := s.Submit(&c); !errors.Is(err, ErrCommand) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func asyncMessage(p *peer, event byte) {
	h := p.answer(iscsi.OpAsync, iscsi.ReservedTag, true)
	h[36] = event
	binary.BigEndian.PutUint16(h[40:], 7)
	p.send(h, nil)
}
