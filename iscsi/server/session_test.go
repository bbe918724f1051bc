package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/layer/fault"
	"blockgate/iscsi"
	"blockgate/iscsi/initiator"
	"blockgate/scsi"
	"blockgate/scsi/sense"
)

// stuck is a store whose writes hang, whatever their context says, until the test
// ends.
func stuck(t testing.TB) *fault.Store {
	s := fault.New(memory(t, 16<<20), 1)
	s.Add(fault.Rule{Op: 2, Action: fault.Stick})
	return s
}

// reserve does RESERVE(6) or RELEASE(6).
func reserve(t *testing.T, s *initiator.Session, op byte) scsi.Status {
	t.Helper()
	for range 2 {
		c := &initiator.Command{LUN: initiator.LUN(0), CDB: []byte{op, 0, 0, 0, 0, 0}}
		if err := s.Execute(limited(t), c); err != nil {
			t.Fatal(err)
		}
		if c.Status != scsi.CheckCondition {
			return c.Status
		}
	}
	t.Fatal("a unit attention that does not go away")
	return 0
}

func TestSessionReinstatement(t *testing.T) {
	r := serve(t, options{})
	isid := [6]byte{0x80, 1, 2, 3, 4, 5}
	mine := func(c *initiator.Config) { c.ISID = isid }
	old, other := r.dial("a", mine), r.dial("b", nil)
	elsewhere := r.dial("a", func(c *initiator.Config) { c.ISID, c.TargetName = isid, otherName })
	if st := reserve(t, old, 0x16); st != scsi.Good {
		t.Fatalf("RESERVE: %02x", st)
	}
	if st := reserve(t, other, 0x16); st != scsi.ReservationConflict {
		t.Fatalf("RESERVE of the other: %02x", st)
	}
	// A command of the old session waits for its data; the data never comes.
	raw := r.raw()
	cfg := r.config("c")
	cfg.ISID = isid
	if err := raw.Login(cfg); err != nil {
		t.Fatal(err)
	}

	again := r.dial("a", mine)
	if st := reserve(t, other, 0x16); st != scsi.Good {
		t.Errorf("the old session's reservation outlives it: %02x", st)
	}
	if st := reserve(t, other, 0x17); st != scsi.Good {
		t.Errorf("RELEASE: %02x", st)
	}
	r.logs.wait(t, 1, "connection closed", "session reinstatement")
	if err := old.Unit(0).TestUnitReady(limited(t)); err == nil {
		t.Error("the old session still works")
	}
	checkIO(t, again, 0, 0)
	checkIO(t, other, 0, 8)
	checkIO(t, elsewhere, 0, 0)
	ping(t, raw)
	if n := len(r.srv.Sessions()); n != 4 {
		t.Errorf("%d sessions, want 4", n)
	}
}

// TestReinstatementWithAHungStore: the tasks of the old session are inside a
// store that does not return; the new one can work on other blocks at once.
func TestReinstatementWithAHungStore(t *testing.T) {
	st := stuck(t)
	r := serve(t, options{stores: []backing.Store{st, memory(t, 1<<20)}})
	defer st.Release()
	mine := func(c *initiator.Config) { c.ISID = [6]byte{0x80, 9} }
	old := r.dial("a", mine)
	hang(t, old, st)
	again := r.dial("a", mine)
	checkIO(t, again, 1, 0)
	if info := r.srv.Sessions(); len(info) != 1 {
		t.Errorf("%d sessions", len(info))
	}
}

// hang sends a write into a stuck store and returns when it is there.
func hang(t testing.TB, s *initiator.Session, st *fault.Store) {
	t.Helper()
	if err := s.Unit(0).TestUnitReady(limited(t)); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	c := &initiator.Command{LUN: initiator.LUN(0), CDB: rw10(0x2a, 100, 8), Out: make([]byte, 4096), Done: func(*initiator.Command) { close(done) }}
	if err := s.Submit(c); err != nil {
		t.Fatal(err)
	}
	if err := st.WaitHeld(limited(t), 1); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(); <-done })
}

// login sends the one login request of an initiator that negotiates nothing.
func login(t *testing.T, c *initiator.Raw, name string, isid [6]byte, tsih, cid uint16, cmdSN uint32) *initiator.PDU {
	t.Helper()
	h := new(iscsi.BHS)
	h.SetOpcode(iscsi.OpLoginReq, true)
	h.SetFlags(iscsi.FlagTransit | iscsi.StageOperational<<2 | iscsi.StageFullFeature)
	h.SetISID(isid)
	h.SetTSIH(tsih)
	h.SetCID(cid)
	h.SetCmdSN(cmdSN)
	text := iscsi.AppendText(nil, "InitiatorName", "iqn.test:"+name)
	text = iscsi.AppendText(text, "TargetName", targetName)
	if tsih == 0 {
		text = iscsi.AppendText(text, "MaxConnections", "4")
		text = iscsi.AppendText(text, "InitialR2T", "No")
		text = iscsi.AppendText(text, "ImmediateData", "Yes")
	}
	if err := c.Send(h, nil, text); err != nil {
		t.Fatal(err)
	}
	p, err := c.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConnectionReinstatement(t *testing.T) {
	r := serve(t, options{})
	isid := [6]byte{0x80, 7}
	a, b := r.raw(), r.raw()
	p := login(t, a, "mc", isid, 0, 1, 10)
	tsih := p.TSIH()
	if p.StatusClass() != 0 || tsih == 0 {
		t.Fatalf("% x", p.BHS[:])
	}
	// Four commands that wait for their data fill the window by four.
	for i := range uint32(4) {
		a.Send(command(i, 10+i, 0, []byte{0}, 0, final), nil, nil)
		if p, err := a.Recv(); err != nil || p.Opcode() != iscsi.OpSCSIResp {
			t.Fatal(p, err)
		}
	}
	w := command(5, 14, 0, rw10(0x2a, 0, 1), 512, iscsi.FlagWrite)
	a.Send(w, nil, nil)
	a.Send(nop(6, 15), nil, nil)
	if p, err := a.Recv(); err != nil || p.ExpCmdSN() != 15 || p.MaxCmdSN() != 15+127-1 {
		t.Fatalf("%v, %v", p, err)
	}
	// A second connection is told the window that there really is.
	if p := login(t, b, "mc", isid, tsih, 2, 15); p.StatusClass() != 0 || p.TSIH() != tsih || p.ExpCmdSN() != 15 || p.MaxCmdSN() != 15+127-1 {
		t.Fatalf("class %d ExpCmdSN %d MaxCmdSN %d", p.StatusClass(), p.ExpCmdSN(), p.MaxCmdSN())
	}
	// The first comes again: its write ends, and its tag is free.
	c := r.raw()
	if p := login(t, c, "mc", isid, tsih, 1, 15); p.StatusClass() != 0 {
		t.Fatalf("class %d", p.StatusClass())
	}
	wantClosed(t, a.Conn())
	r.logs.wait(t, 1, "connection closed", "again on this connection id")
	c.Send(command(5, 15, 0, rw10(0x2a, 0, 1), 512, write), nil, pattern(512, 1))
	if p, err := c.Recv(); err != nil || p.Opcode() != iscsi.OpSCSIResp || p.Status() != 0 || p.MaxCmdSN() != 15+128 {
		t.Fatalf("MaxCmdSN %d: the place of the lost write is not free: %v", p.MaxCmdSN(), err)
	}
	b.Send(command(9, 16, 0, []byte{0}, 0, final), nil, nil)
	if p, err := b.Recv(); err != nil || p.Opcode() != iscsi.OpSCSIResp || p.Status() != 0 {
		t.Fatal(p, err)
	}
	if info := r.srv.Sessions(); len(info) != 1 || len(info[0].Conns) != 2 {
		t.Errorf("%+v", info)
	}
	// Foreign or dead handles join nothing.
	for name, d := range map[string]*initiator.PDU{
		"another initiator": login(t, r.raw(), "x", isid, tsih, 3, 17),
		"another ISID":      login(t, r.raw(), "mc", [6]byte{0x80, 8}, tsih, 3, 17),
		"no such session":   login(t, r.raw(), "mc", isid, tsih+1, 3, 17),
	} {
		if d.StatusClass() != 2 || d.StatusDetail() != 0x0a {
			t.Errorf("%s: status %02x%02x", name, d.StatusClass(), d.StatusDetail())
		}
	}
	for cid := uint16(3); cid <= 5; cid++ {
		want := byte(0)
		if cid == 5 {
			want = 2 // the fifth of four
		}
		if p := login(t, r.raw(), "mc", isid, tsih, cid, 17); p.StatusClass() != want {
			t.Errorf("connection %d: status %02x%02x", cid, p.StatusClass(), p.StatusDetail())
		}
	}
}

// TestConnectionReinstatementWithAHungStore: the places in the command window
// come back, although the store still has the write.
func TestConnectionReinstatementWithAHungStore(t *testing.T) {
	st := stuck(t)
	r := serve(t, options{stores: []backing.Store{st}})
	defer st.Clear()
	isid := [6]byte{0x80, 7}
	a := r.raw()
	tsih := login(t, a, "mc", isid, 0, 1, 10).TSIH()
	a.Send(command(1, 10, 0, []byte{0}, 0, final), nil, nil) // takes the unit attention
	if _, err := a.Recv(); err != nil {
		t.Fatal(err)
	}
	const n = 20
	for i := range uint32(n) {
		a.Send(command(i, 11+i, 0, rw10(0x2a, i, 1), 512, write), nil, pattern(512, 1))
	}
	if err := st.WaitHeld(limited(t), n); err != nil {
		t.Fatal(err)
	}
	b := r.raw()
	if p := login(t, b, "mc", isid, tsih, 1, 11+n); p.StatusClass() != 0 {
		t.Fatalf("class %d", p.StatusClass())
	}
	wantClosed(t, a.Conn())
	b.Send(command(0, 11+n, 0, rw10(0x28, 1000, 1), 512, read), nil, nil) // the same tag
	if p, err := b.Recv(); err != nil || p.Opcode() != iscsi.OpDataIn || p.Status() != 0 || p.MaxCmdSN() != 11+n+128 {
		t.Fatalf("MaxCmdSN %d, want %d: %v", p.MaxCmdSN(), 11+n+128, err)
	}
	if held := st.Held(); held != n {
		t.Errorf("the store holds %d writes", held)
	}
}

// TestUnsolicitedDataBehindAHeldCommand: with several connections a write may
// come before the command before it, with its data at its heels.
func TestUnsolicitedDataBehindAHeldCommand(t *testing.T) {
	r := serve(t, options{})
	isid := [6]byte{0x80, 7}
	a, b := r.raw(), r.raw()
	tsih := login(t, a, "mc", isid, 0, 1, 10).TSIH()
	login(t, b, "mc", isid, tsih, 2, 10)
	a.Send(command(1, 10, 0, []byte{0}, 0, final), nil, nil) // takes the unit attention
	if _, err := a.Recv(); err != nil {
		t.Fatal(err)
	}
	for i, pieces := range [][]int{{512, 512, 512}, {20480, 512}, {8192, 20480, 4096}} {
		n, sn := 0, uint32(11+3*i)
		for _, k := range pieces {
			n += k
		}
		n -= n % 512
		want := pattern(n, uint64(i))
		b.Send(command(2, sn+1, 0, rw10(0x2a, 0, uint16(n/512)), n, iscsi.FlagWrite), nil, want[:pieces[0]])
		off := pieces[0]
		for j, k := range pieces[1:] {
			d := new(iscsi.BHS)
			d.SetOpcode(iscsi.OpDataOut, false)
			if j == len(pieces)-2 {
				d.SetFlags(final)
			}
			d.SetITT(2)
			d.SetTTT(iscsi.ReservedTag)
			d.SetDataSN(uint32(j))
			d.SetBufferOffset(uint32(off))
			b.Send(d, nil, want[off:off+k])
			off += k
		}
		if i != 2 { // otherwise the data may still come when the command starts
			ping(t, b)
		}
		a.Send(command(1, sn, 0, []byte{0}, 0, final), nil, nil)
		if p, err := a.Recv(); err != nil || p.Opcode() != iscsi.OpSCSIResp {
			t.Fatal(p, err)
		}
		if p, err := b.Recv(); err != nil || p.Opcode() != iscsi.OpSCSIResp || p.Status() != 0 {
			t.Fatalf("%v, %v", p, err)
		}
		a.MaxRecv(1 << 20)
		a.Send(command(3, sn+2, 0, rw10(0x28, 0, uint16(n/512)), n, read), nil, nil)
		var got []byte
		for len(got) < n {
			p, err := a.Recv()
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, p.Data...)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%v: not read back as written", pieces)
		}
	}
}

// TestFourConnections: several initiators, each with four connections and
// digests or not, write and verify at once.
func TestFourConnections(t *testing.T) {
	r := serve(t, options{})
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	var wg sync.WaitGroup
	for n := range 2 {
		p := initiator.DefaultParams()
		p.MaxConnections = 4
		if n == 1 {
			// Unsolicited data and R2Ts in small pieces.
			p.ImmediateData, p.FirstBurst, p.MaxBurst, p.MaxRecvDataSegment = false, 2048, 4096, 1024
		}
		s := r.dial(fmt.Sprint("i", n), func(c *initiator.Config) {
			c.Connections, c.Params = 4, &p
			c.HeaderDigests, c.DataDigests = []string{"None"}, []string{"None"}
			if n == 1 {
				c.HeaderDigests, c.DataDigests = []string{"CRC32C"}, []string{"CRC32C"}
			}
		})
		if s.Connections() != 4 || s.Params().DataDigest != (n == 1) {
			t.Fatalf("%d connections, %+v", s.Connections(), s.Params())
		}
		for worker := range 8 {
			wg.Go(func() {
				ctx, u := limited(t), s.Unit(0)
				base := uint64(n*8+worker) * 1024
				for i := range rounds {
					blocks := uint32(1 + (i*7+worker)%40)
					w, q := pattern(int(blocks)*512, uint64(i)), make([]byte, int(blocks)*512)
					err := u.WriteBlocks(ctx, w, base+uint64(i), blocks)
					if initiator.IsUnitAttention(err) {
						err = u.WriteBlocks(ctx, w, base+uint64(i), blocks)
					}
					if err == nil {
						err = u.ReadBlocks(ctx, q, base+uint64(i), blocks)
					}
					if err != nil || !bytes.Equal(w, q) {
						t.Errorf("initiator %d, worker %d, round %d: %v, equal: %t", n, worker, i, err, bytes.Equal(w, q))
						return
					}
				}
			})
		}
	}
	wg.Wait()
	for _, i := range r.srv.Sessions() {
		for _, c := range i.Conns {
			if c.Commands == 0 || c.RxPDUs == 0 || c.TxBytes == 0 {
				t.Errorf("connection %d did nothing: %+v", c.CID, c)
			}
		}
	}
}

func TestAdministratorCloses(t *testing.T) {
	r := serve(t, options{})
	s := r.dial("a", func(c *initiator.Config) { c.Connections = 2 })
	other := r.dial("b", func(c *initiator.Config) { c.TargetName = otherName })
	id := r.srv.Sessions()[0].ID
	for _, err := range []error{r.srv.CloseConnection(id, 99), r.srv.CloseConnection(id+100, 0)} {
		if err == nil {
			t.Error("closed what is not there")
		}
	}
	if err := r.srv.CloseConnection(id, r.srv.Sessions()[0].Conns[0].CID); err != nil {
		t.Error(err)
	}
	r.logs.wait(t, 1, "connection closed", "administrator")
	s.Close()
	second := r.dial("c", nil)
	if n := r.srv.CloseSessions(targetName); n < 1 {
		t.Errorf("%d sessions closed", n)
	}
	r.logs.wait(t, 1, "connection closed", "target was closed")
	if err := second.Unit(0).TestUnitReady(limited(t)); err == nil {
		t.Error("a closed session works")
	}
	checkIO(t, other, 0, 0)
}

func TestAnnounce(t *testing.T) {
	got := make(chan initiator.Async, 10)
	r := serve(t, options{})
	r.dial("a", func(c *initiator.Config) { c.OnAsync = func(a initiator.Async) { got <- a } })
	other := r.dial("b", func(c *initiator.Config) {
		c.TargetName = otherName
		c.OnAsync = func(initiator.Async) { t.Error("the announcement of another target") }
	})
	r.srv.Announce(targetName, 5<<48, sense.ReportedLUNsChanged())
	select {
	case a := <-got:
		if a.Event != initiator.AsyncSCSI || a.LUN != 5<<48 || len(a.Data) < 16 || a.Data[2+12] != 0x3f || a.Data[2+13] != 0x0e {
			t.Errorf("%+v", a)
		}
	case <-time.After(patience):
		t.Fatal("no announcement")
	}
	checkIO(t, other, 0, 0)
}

func TestShutdownAsksForLogout(t *testing.T) {
	asked := make(chan struct{}, 10)
	r := serve(t, options{})
	for _, name := range []string{"a", "b"} {
		checkIO(t, r.dial(name, func(c *initiator.Config) {
			c.OnAsync = func(a initiator.Async) {
				if a.Event == initiator.AsyncLogoutRequest {
					asked <- struct{}{}
				}
			}
		}), 0, 0)
	}
	half := r.raw() // a login that is not finished must not hold it up
	half.SendBytes([]byte{0x43})
	if err := r.srv.Shutdown(limited(t)); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if len(asked) != 2 {
		t.Errorf("%d of 2 initiators were asked to log out", len(asked))
	}
	if r.logs.count("connection closed", "logout") != 2 {
		t.Error("not two logouts")
	}
}

func TestShutdownEndsWithItsContext(t *testing.T) {
	r := serve(t, options{})
	c := r.rawLogin("deaf") // does not care about logout requests
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer stop()
	if err := r.srv.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	wantClosed(t, c.Conn())
	// And once more, when there is nothing left to do.
	if err := r.srv.Shutdown(limited(t)); err != nil {
		t.Error(err)
	}
}

func TestCloseIsPromptWithAHungStore(t *testing.T) {
	st := stuck(t)
	r := serve(t, options{stores: []backing.Store{st}})
	defer st.Release()
	s := r.dial("a", nil)
	hang(t, s, st)
	done := make(chan struct{})
	go func() { r.srv.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("Close waits for the store")
	}
	if r.srv.MemoryUsed() == 0 {
		t.Error("the buffer that the store holds was given back")
	}
	st.Release()
}
