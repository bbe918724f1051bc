package initiator

import (
	"bytes"
	"errors"
	"testing"
	"testing/synctest"

	"blockgate/iscsi"
)

func TestPing(t *testing.T) {
	s, ps := open(t, testParams(), 2, 8, Config{})
	result := make(chan error, 1)
	data := sequence(777)
	go func() { result <- s.Ping(background(t), data) }()
	for _, p := range ps {
		d := p.expect(iscsi.OpNopOut)
		if !d.Immediate() || d.CmdSN() != 10 || d.TTT() != iscsi.ReservedTag || !bytes.Equal(d.Data, data) {
			t.Errorf("NOP-Out %x", d.BHS[:])
		}
		p.send(p.answer(iscsi.OpNopIn, d.ITT(), true), d.Data)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
	go func() { result <- s.Ping(background(t), data) }()
	d := ps[0].expect(iscsi.OpNopOut)
	ps[0].send(ps[0].answer(iscsi.OpNopIn, d.ITT(), true), d.Data[:700])
	if err := <-result; !errors.Is(err, ErrProtocol) {
		t.Errorf("data cut short: %v", err)
	}
}

func TestAnswersPing(t *testing.T) {
	_, ps := open(t, testParams(), 1, 8, Config{})
	p := ps[0]
	h := p.answer(iscsi.OpNopIn, iscsi.ReservedTag, false)
	h.SetTTT(0x1234)
	h.SetLUN(LUN(3))
	p.send(h, nil)
	d := p.expect(iscsi.OpNopOut)
	if d.TTT() != 0x1234 || d.ITT() != iscsi.ReservedTag || d.LUN() != LUN(3) || !d.Immediate() || d.ExpStatSN() != 100 {
		t.Errorf("NOP-Out %x", d.BHS[:])
	}
}

func TestLogout(t *testing.T) {
	s, ps := open(t, testParams(), 1, 8, Config{})
	p := ps[0]
	x := submit(t, s, read(8))
	p.expect(iscsi.OpSCSICmd)
	result := make(chan error, 1)
	go func() { result <- s.Logout(background(t)) }()
	d := p.expect(iscsi.OpLogoutReq)
	if d.Flags() != iscsi.FlagFinal || !d.Immediate() || d.CID() != 0 {
		t.Errorf("Logout %x", d.BHS[:])
	}
	p.send(p.answer(iscsi.OpLogoutResp, d.ITT(), true), nil)
	if err := <-result; err != nil {
		t.Error(err)
	}
	x.wait(t)
	if !errors.Is(x.Err, ErrClosed) || !errors.Is(s.Err(), ErrClosed) {
		t.Errorf("command: %v, session: %v", x.Err, s.Err())
	}
}

func TestText(t *testing.T) {
	s, ps := open(t, testParams(), 1, 8, Config{})
	p := ps[0]
	type result struct {
		text []byte
		err  error
	}
	got := make(chan result, 1)
	go func() {
		text, err := s.Text(background(t), []byte("SendTargets=All\x00"))
		got <- result{text, err}
	}()
	d := p.expect(iscsi.OpTextReq)
	if string(d.Data) != "SendTargets=All\x00" || d.Flags() != iscsi.FlagFinal || d.TTT() != iscsi.ReservedTag {
		t.Errorf("Text request %x %q", d.BHS[:], d.Data)
	}
	h := p.answer(iscsi.OpTextResp, d.ITT(), true)
	h.SetFlags(iscsi.FlagContinue)
	h.SetTTT(5)
	p.send(h, []byte("TargetName=iqn."))
	d = p.expect(iscsi.OpTextReq)
	if len(d.Data) != 0 || d.TTT() != 5 {
		t.Errorf("the second request %x %q", d.BHS[:], d.Data)
	}
	p.send(p.answer(iscsi.OpTextResp, d.ITT(), true), []byte("x\x00"))
	if r := <-got; r.err != nil || string(r.text) != "TargetName=iqn.x\x00" {
		t.Errorf("%q, %v", r.text, r.err)
	}
}

func TestAsyncMessages(t *testing.T) {
	heard := make(chan Async, 8)
	cfg := Config{OnAsync: func(a Async) { heard <- a }}

	s, ps := open(t, testParams(), 1, 8, cfg)
	asyncMessage(ps[0], AsyncSCSI)
	if a := <-heard; a.Event != AsyncSCSI || a.Parameters[1] != 7 {
		t.Errorf("%+v", a)
	}
	asyncMessage(ps[0], AsyncNegotiate)
	d := ps[0].expect(iscsi.OpTextReq)
	ps[0].send(ps[0].answer(iscsi.OpTextResp, d.ITT(), true), nil)
	asyncMessage(ps[0], AsyncDropSession)
	x := &submitted{done: make(chan struct{})}
	x.CDB, x.Done = []byte{0}, func(*Command) { close(x.done) }
	if err := s.Submit(&x.Command); err == nil {
		x.wait(t)
		err = x.Err
		if !errors.Is(err, ErrDropped) {
			t.Errorf("a command then: %v", err)
		}
	}
	if !errors.Is(s.Err(), ErrDropped) {
		t.Errorf("session: %v", s.Err())
	}
}

// TestAsyncLogoutRequest: a target that asks for a logout gets one.
func TestAsyncLogoutRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ps := open(t, testParams(), 1, 8, Config{})
		p := ps[0]
		asyncMessage(p, AsyncLogoutRequest)
		d := p.expect(iscsi.OpLogoutReq)
		p.send(p.answer(iscsi.OpLogoutResp, d.ITT(), true), nil)
		synctest.Wait()
		if !errors.Is(s.Err(), ErrClosed) {
			t.Errorf("session: %v", s.Err())
		}
	})
}
