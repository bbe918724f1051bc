package initiator

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"blockgate/iscsi"
	"blockgate/scsi"
)

// tape is a connection whose peer says what is on the tape and then hangs up. It
// starts to play when it was written to, so that commands are out by then.
type tape struct {
	r       *bytes.Reader
	play    chan struct{}
	started sync.Once
	written int
}

func (c *tape) Read(p []byte) (int, error) {
	<-c.play
	return c.r.Read(p)
}

func (c *tape) Write(p []byte) (int, error) {
	c.written += len(p) // by the connection's one writer
	return len(p), nil
}

func (c *tape) Close() error                     { c.started.Do(func() { close(c.play) }); return nil }
func (*tape) LocalAddr() net.Addr                { return nil }
func (*tape) RemoteAddr() net.Addr               { return nil }
func (*tape) SetDeadline(time.Time) error        { return nil }
func (*tape) SetReadDeadline(t time.Time) error  { return nil }
func (*tape) SetWriteDeadline(t time.Time) error { return nil }

// FuzzInitiatorInput: whatever a target says, the session ends with the
// connection, every command is done once, and nothing panics.
func FuzzInitiatorInput(f *testing.F) {
	seed := func(flags byte, pdus ...func(p *peer)) {
		var buf bytes.Buffer
		pr := &peer{t: f, Raw: NewRaw(&recorder{&buf}), statSN: 100, expCmd: 10, maxCmd: 20}
		for _, pdu := range pdus {
			pdu(pr)
		}
		f.Add(flags, buf.Bytes())
	}
	seed(0, func(p *peer) { p.dataIn(0, 0, 0, make([]byte, 4096), false) },
		func(p *peer) { p.dataIn(0, 1, 4096, make([]byte, 4096), true) },
		func(p *peer) { p.r2t(1, 5, 0, 4096, 4096) },
		func(p *peer) { p.status(1, scsi.CheckCondition, make([]byte, 18)) })
	seed(0, func(p *peer) { asyncMessage(p, AsyncLogoutRequest) },
		func(p *peer) { asyncMessage(p, AsyncNegotiate) })
	seed(0, func(p *peer) {
		h := p.answer(iscsi.OpNopIn, iscsi.ReservedTag, false)
		h.SetTTT(3)
		p.send(h, nil)
	}, func(p *peer) {
		var bad iscsi.BHS
		bad.SetITT(1)
		p.send(p.answer(iscsi.OpReject, iscsi.ReservedTag, true), bad[:])
	}, func(p *peer) { p.send(p.answer(iscsi.OpTaskResp, 2, true), nil) })
	f.Add(byte(1), make([]byte, 60))
	f.Add(byte(2), []byte{0x25, 0x81, 0, 0, 255, 255, 255, 255})

	f.Fuzz(func(t *testing.T, flags byte, data []byte) {
		pa := testParams()
		pa.HeaderDigest, pa.DataDigest = flags&1 != 0, flags&2 != 0
		pa.InitialR2T = flags&4 != 0
		if flags&8 != 0 {
			pa.DataPDUInOrder = false
		}
		nc := &tape{r: bytes.NewReader(data), play: make(chan struct{})}
		r := NewRaw(nc)
		r.Params, r.CmdSN, r.ExpCmdSN, r.MaxCmdSN, r.ExpStatSN = pa, 10, 10, 12, 100
		s := &Session{cfg: Config{TargetName: "t", AbortTimeout: time.Second}.filled()}
		s.log = s.cfg.Logger
		s.start(r, "tape")
		var done sync.WaitGroup
		for i := range 6 {
			c := &Command{CDB: []byte{byte(i), 0, 0, 0, 0, 0}, Done: func(*Command) { done.Done() }}
			if i%2 == 0 {
				c.In = make([]byte, 8192)
			} else {
				c.Out = make([]byte, 40000)
			}
			done.Add(1)
			if err := s.Submit(c); err != nil {
				t.Fatal(err)
			}
		}
		var ask sync.WaitGroup
		ask.Go(func() { s.Manage(t.Context(), TargetWarmReset, 0, nil) })
		nc.started.Do(func() { close(nc.play) })
		done.Wait()
		ask.Wait()
		s.Close()
		if s.Err() == nil {
			t.Error("the session outlives its connection")
		}
		// Six commands, and answers to what is at least a header each.
		if most := 6*41000 + 2*len(data) + 4096; nc.written > most {
			t.Errorf("%d bytes written after %d were read", nc.written, len(data))
		}
	})
}

// recorder keeps what is written to it.
type recorder struct{ w io.Writer }

func (c *recorder) Write(p []byte) (int, error)   { return c.w.Write(p) }
func (*recorder) Read([]byte) (int, error)        { return 0, io.EOF }
func (*recorder) Close() error                    { return nil }
func (*recorder) LocalAddr() net.Addr             { return nil }
func (*recorder) RemoteAddr() net.Addr            { return nil }
func (*recorder) SetDeadline(time.Time) error     { return nil }
func (*recorder) SetReadDeadline(time.Time) error { return nil }
func (*recorder) SetWriteDeadline(time.Time) error {
	return nil
}

// FuzzInputMatchesRaw: however the bytes come in, PDUs are cut the same way.
func FuzzInputMatchesRaw(f *testing.F) {
	f.Add([]byte{0x20, 0x80, 0, 0, 1, 0, 0, 5}, byte(1))
	f.Fuzz(func(t *testing.T, data []byte, step byte) {
		cut := func(n int) (pdus []PDU, last error) {
			in := newInput(&stutter{data: data, n: n})
			in.dataDigest = step&1 != 0
			for {
				var p PDU
				ahs, err := in.next(&p.BHS)
				if err != nil {
					return pdus, err
				}
				p.AHS = bytes.Clone(ahs)
				p.Data = make([]byte, p.DataLen())
				if len(pdus)%2 == 0 {
					err = in.dataInto(p.Data)
				} else {
					var d []byte
					d, err = in.data(p.DataLen())
					copy(p.Data, d)
				}
				if err != nil {
					return pdus, err
				}
				pdus = append(pdus, p)
			}
		}
		a, errA := cut(1 + int(step))
		b, errB := cut(1 << 20)
		if len(a) != len(b) || errors.Is(errA, io.EOF) != errors.Is(errB, io.EOF) {
			t.Fatalf("%d PDUs and %v, %d and %v", len(a), errA, len(b), errB)
		}
		for i := range a {
			if a[i].BHS != b[i].BHS || !bytes.Equal(a[i].AHS, b[i].AHS) || !bytes.Equal(a[i].Data, b[i].Data) {
				t.Fatalf("PDU %d differs", i)
			}
		}
	})
}

// stutter gives n bytes at a time.
type stutter struct {
	data []byte
	n    int
}

func (s *stutter) Read(p []byte) (int, error) {
	if len(s.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.data[:min(s.n, len(s.data))])
	s.data = s.data[n:]
	return n, nil
}

func FuzzParseSense(f *testing.F) {
	f.Add([]byte{0xf0, 0, 5, 0, 0, 0, 9, 10, 0, 0, 0, 0, 0x21, 0, 0, 0xc8, 0, 2})
	f.Add([]byte{0x72, 5, 0x21, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 9})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, ok := ParseSense(b); ok && (len(b) < 3 || b[0]&0x7c != 0x70) {
			t.Errorf("%x was taken for sense data", b)
		}
	})
}
