package server_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"blockgate/iscsi"
	"blockgate/iscsi/initiator"
	"blockgate/iscsi/server"
)

// TestBadStreams: what breaks the protocol ends its connection with one line in
// the log, and nobody else's.
func TestBadStreams(t *testing.T) {
	r := serve(t, options{})
	other := r.dial("other", nil)
	for _, tc := range []struct {
		name    string
		digests bool
		send    func(c *initiator.Raw) error
	}{
		{"a data segment of 16 MiB", false, func(c *initiator.Raw) error {
			h := nop(1, 1)
			h.SetDataLen(1<<24 - 1)
			return c.SendBytes(h[:])
		}},
		{"a data segment longer than agreed", false, func(c *initiator.Raw) error {
			h := command(1, 1, 0, rw10(0x2a, 0, 1024), 512<<10, write)
			h.SetDataLen(256<<10 + 1)
			return c.SendBytes(h[:])
		}},
		{"ones", false, func(c *initiator.Raw) error { return c.SendBytes(bytes.Repeat([]byte{0xff}, 100<<10)) }},
		{"a login request", false, func(c *initiator.Raw) error {
			h := new(iscsi.BHS)
			h.SetOpcode(iscsi.OpLoginReq, true)
			return c.Send(h, nil, nil)
		}},
		{"a wrong header digest", true, func(c *initiator.Raw) error {
			b := c.Encode(nil, nop(1, 1), nil, nil)
			b[16] ^= 1
			return c.SendBytes(b)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, cfg := r.raw(), r.config("bad")
			if tc.digests {
				cfg.HeaderDigests = []string{"CRC32C"}
			}
			logins := r.logs.count("logged in")
			if err := c.Login(cfg); err != nil {
				t.Fatal(err)
			}
			r.logs.wait(t, logins+1, "logged in")
			lines, closed := r.logs.count(""), r.logs.count("connection closed", "protocol error")
			tc.send(c)
			wantClosed(t, c.Conn())
			r.logs.wait(t, closed+1, "connection closed", "protocol error")
			if n := r.logs.count("") - lines; n != 1 {
				t.Errorf("%d log lines", n)
			}
			checkIO(t, other, 0, 8)
		})
	}
}

// TestJunkThatIsAnswered: what is wrong in one PDU only costs that PDU.
func TestJunkThatIsAnswered(t *testing.T) {
	r := serve(t, options{})
	c := r.rawLogin("junk")
	junk := bytes.Repeat([]byte{0, 1, 0xee, 7}, 255)
	for i, ahs := range [][]byte{junk, make([]byte, 1020), {0xff, 0xff, 1, 0}, {0, 0, 1, 0}} {
		c.Send(command(uint32(i), c.CmdSN, 0, rw10(0x28, 0, 1), 512, read), ahs, nil)
		c.CmdSN++
		if p, err := c.Recv(); err != nil || p.Opcode() != iscsi.OpReject {
			t.Fatalf("AHS %.8x: %v, %v", ahs, p, err)
		}
	}
	// Opcodes that there are not, with and without data, and Data-Out for nothing.
	h := new(iscsi.BHS)
	h.SetOpcode(0x1d, true)
	c.Send(h, nil, make([]byte, 20000))
	if p, err := c.Recv(); err != nil || p.Opcode() != iscsi.OpReject {
		t.Fatalf("%v, %v", p, err)
	}
	for _, n := range []int{0, 512, 100 << 10} {
		h = new(iscsi.BHS)
		h.SetOpcode(iscsi.OpDataOut, false)
		h.SetITT(0xdead)
		h.SetTTT(0xbeef)
		h.SetBufferOffset(0xfffffff0)
		c.Send(h, nil, make([]byte, n))
	}
	ping(t, c)
	if n := r.logs.count("PDU rejected"); n == 0 || n > 2 {
		t.Errorf("%d log lines for five rejected PDUs in a moment", n)
	}
}

// TestTooManyImmediateRequests: no window bounds them, so something else must.
func TestTooManyImmediateRequests(t *testing.T) {
	r := serve(t, options{})
	c := r.rawLogin("immediate")
	rejects := 0
	for i := range uint32(400) {
		// Writes whose data never comes.
		h := command(i, c.CmdSN, 0, rw10(0x2a, 0, 1), 512, write)
		h.SetOpcode(iscsi.OpSCSICmd, true)
		if err := c.Send(h, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	c.Send(nop(0x888, c.CmdSN), nil, nil)
	for {
		p, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if p.Opcode() == iscsi.OpReject && p.Response() == byte(iscsi.RejectTooManyImmediate) {
			rejects++
		}
		if p.Opcode() == iscsi.OpNopIn {
			break
		}
	}
	if rejects < 100 || rejects > 350 {
		t.Errorf("%d of 400 refused", rejects)
	}
}

// TestHalfPDUs: a peer that stops in the middle is pinged and dropped.
func TestHalfPDUs(t *testing.T) {
	r := serve(t, options{tick: 2 * time.Millisecond, dir: func(d *directory) { d.offer.NopInterval, d.offer.NopCount = 5, 2 }})
	for i, b := range [][]byte{
		nop(1, 1)[:20],
		append(command(1, 1, 0, rw10(0x2a, 0, 8), 4096, write)[:5:5], 0, 16, 0, 1, 2, 3),
		append(longWrite(64 << 10)[:], make([]byte, 1000)...),
	} {
		c := r.rawLogin("half")
		c.SendBytes(b)
		wantClosed(t, c.Conn())
		r.logs.wait(t, i+1, "connection closed", "NOP-In")
	}
}

func longWrite(n int) *iscsi.BHS {
	h := command(1, 1, 0, rw10(0x2a, 0, uint16(n/512)), n, write)
	h.SetDataLen(n)
	return h
}

// TestPeerThatAnswersPingsStays is the other half.
func TestPeerThatAnswersPingsStays(t *testing.T) {
	pings := make(chan struct{}, 100)
	r := serve(t, options{tick: 2 * time.Millisecond, dir: func(d *directory) { d.offer.NopInterval, d.offer.NopCount = 5, 2 }})
	c := r.rawLogin("alive")
	for range 5 {
		p, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if p.Opcode() != iscsi.OpNopIn || p.TTT() == iscsi.ReservedTag || p.ITT() != iscsi.ReservedTag {
			t.Fatalf("% x", p.BHS[:])
		}
		h := nop(iscsi.ReservedTag, c.CmdSN)
		h.SetTTT(p.TTT())
		if err := c.Send(h, nil, nil); err != nil {
			t.Fatal(err)
		}
		pings <- struct{}{}
	}
}

// TestClientThatNeverReads is cut off after the stall timeout; others do not
// notice it.
func TestClientThatNeverReads(t *testing.T) {
	r := serve(t, options{tick: 20 * time.Millisecond, cfg: func(c *server.Config) { c.StallTimeout = 100 * time.Millisecond }})
	other := r.dial("other", nil)
	for name, fill := range map[string]func(c *initiator.Raw, i uint32) error{
		"reads": func(c *initiator.Raw, i uint32) error {
			return c.Send(command(i, c.CmdSN+i, 0, rw10(0x28, 0, 2048), 1<<20, read), nil, nil)
		},
		"pings": func(c *initiator.Raw, i uint32) error { return c.Send(nop(i, c.CmdSN), nil, make([]byte, 100<<10)) },
		"texts": func(c *initiator.Raw, i uint32) error {
			h := new(iscsi.BHS)
			h.SetOpcode(iscsi.OpTextReq, true)
			h.SetFlags(final)
			h.SetITT(i)
			h.SetTTT(iscsi.ReservedTag)
			h.SetCmdSN(c.CmdSN)
			return c.Send(h, nil, []byte("SendTargets=All\x00"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			stalls := r.logs.count("does not read")
			c := r.rawLogin("deaf")
			var err error
			for i := uint32(0); err == nil && i < 1<<20; i++ {
				if name == "reads" && i == 100 { // the window is full
					break
				}
				err = fill(c, i)
			}
			r.logs.wait(t, stalls+1, "connection closed", "does not read")
			checkIO(t, other, 0, 16)
		})
	}
}

// TestSlowReaderStays: a peer that takes longer than the stall timeout for what
// the server hands to its socket at once is not cut off while it reads.
func TestSlowReaderStays(t *testing.T) {
	const timeout = time.Second
	r := serve(t, options{tick: 20 * time.Millisecond, cfg: func(c *server.Config) { c.StallTimeout = timeout }})
	c := r.rawLogin("slow")
	c.Conn().(*net.TCPConn).SetReadBuffer(64 << 10)
	var asks []byte
	for i := range uint32(32) {
		asks = c.Encode(asks, command(i, c.CmdSN+i, 0, rw10(0x28, 0, 2048), 1<<20, read), nil, nil)
	}
	if err := c.SendBytes(asks); err != nil {
		t.Fatal(err)
	}
	step := time.NewTicker(timeout / 20)
	defer step.Stop()
	begin, n := time.Now(), 0
	for p := make([]byte, 64<<10); time.Since(begin) < 2*timeout; <-step.C {
		m, err := c.Conn().Read(p)
		if err != nil {
			t.Fatalf("after %v and %d bytes: %v", time.Since(begin), n, err)
		}
		n += m
	}
	if n > 16<<20 {
		t.Skipf("it read %d bytes, which is not slow", n)
	}
	if l := r.logs.count("does not read"); l != 0 {
		t.Error("the server took it for a peer that does not read")
	}
}

// TestNOPFlood: a peer that reads may ping as fast as it likes, in order and
// whole.
func TestNOPFlood(t *testing.T) {
	const n = 20000
	r := serve(t, options{})
	c := r.rawLogin("flood")
	go func() {
		var b []byte
		for i := range uint32(n) {
			b = c.Encode(b, nop(i, c.CmdSN), nil, pattern(int(i%5)*8, uint64(i)))
			if len(b) > 100<<10 || i == n-1 {
				if c.SendBytes(b) != nil {
					return
				}
				b = b[:0]
			}
		}
	}()
	for i := range uint32(n) {
		p, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if p.Opcode() != iscsi.OpNopIn || p.ITT() != i || !bytes.Equal(p.Data, pattern(int(i%5)*8, uint64(i))) {
			t.Fatalf("ping %d: % x %x", i, p.BHS[:], p.Data)
		}
		if p.StatSN() != c.ExpStatSN+i {
			t.Fatalf("StatSN %d, want %d", p.StatSN(), c.ExpStatSN+i)
		}
	}
}

// TestLongText: a text without end is refused, not gathered.
func TestLongText(t *testing.T) {
	r := serve(t, options{})
	c := r.rawLogin("text")
	h := new(iscsi.BHS)
	h.SetOpcode(iscsi.OpTextReq, true)
	h.SetFlags(iscsi.FlagContinue)
	h.SetITT(1)
	h.SetTTT(iscsi.ReservedTag)
	h.SetCmdSN(c.CmdSN)
	for range 100 {
		if err := c.Send(h, nil, bytes.Repeat([]byte("X-a=b\x00"), 1000)); err != nil {
			t.Fatal(err)
		}
		p, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if p.Opcode() == iscsi.OpReject {
			ping(t, c)
			return
		}
		h.SetTTT(p.TTT())
	}
	t.Error("600 kB of text were gathered")
}

// TestPeersThatVanish: connections that are cut anywhere leave nothing behind;
// serve's cleanup checks the budget and the tables.
func TestPeersThatVanish(t *testing.T) {
	r := serve(t, options{})
	full := append(longWrite(64 << 10)[:], pattern(64<<10, 1)...)
	for _, n := range []int{0, 1, 47, 48, 1000, 40000, len(full) - 1} {
		c := r.rawLogin("gone")
		c.SendBytes(full[:n])
		c.Close()
	}
	for range 20 {
		c := r.rawLogin("gone")
		for i := range uint32(20) {
			c.Send(command(i, c.CmdSN+i, 0, rw10(0x2a, i*8, 8), 4096, iscsi.FlagWrite), nil, nil) // data to come
		}
		c.Close()
	}
	r.logs.wait(t, 27, "connection closed")
	checkIO(t, r.dial("alive", nil), 0, 0)
	if _, err := r.raw().Conn().Write(nil); errors.Is(err, io.EOF) {
		t.Error(err)
	}
}
