package server

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"go.uber.org/goleak"

	"blockgate/nbd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// peer is a client that does what a test says, and nothing else.
type peer struct {
	t    *testing.T
	nc   net.Conn
	mode nbd.Mode
	next uint64
}

// got is a whole reply.
type got struct {
	cookie  uint64
	err     nbd.Errno
	message string
	data    []byte
	extents []nbd.Extent
	chunks  int // of a structured reply
}

func (p *peer) send(b []byte) {
	p.t.Helper()
	if _, err := p.nc.Write(b); err != nil {
		p.t.Fatalf("send: %v", err)
	}
}

func (p *peer) take(n int) []byte {
	p.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(p.nc, b); err != nil {
		p.t.Fatalf("read %d bytes: %v", n, err)
	}
	return b
}

// greet takes the greeting and answers it.
func (p *peer) greet() {
	p.t.Helper()
	if _, err := nbd.DecodeGreeting(p.take(nbd.GreetingLen)); err != nil {
		p.t.Fatal(err)
	}
	p.send(nbd.AppendClientFlags(nil, nbd.ClientFixedNewstyle|nbd.ClientNoZeroes))
}

// option sends an option and takes its replies, the last of which ends it.
func (p *peer) option(o nbd.Option, data []byte) (infos [][]byte, last nbd.ReplyType) {
	p.t.Helper()
	p.send(nbd.AppendOption(nil, o, data))
	for {
		h, err := nbd.DecodeOptionReplyHeader(p.take(nbd.OptionReplyHeaderLen))
		if err != nil || h.Option != o {
			p.t.Fatalf("reply to %v: %+v, %v", o, h, err)
		}
		d := p.take(int(h.Length))
		if h.Type == nbd.RepAck || h.Type.IsError() {
			return infos, h.Type
		}
		infos = append(infos, d)
	}
}

// enter goes to the transmission phase of an export, in a mode, with the
// allocation context if the mode can.
func (p *peer) enter(name string, m nbd.Mode) nbd.Info {
	p.t.Helper()
	p.greet()
	ack := func(o nbd.Option, data []byte) [][]byte {
		p.t.Helper()
		infos, last := p.option(o, data)
		if last != nbd.RepAck {
			p.t.Fatalf("%v: %v", o, last)
		}
		return infos
	}
	switch m {
	case nbd.Structured:
		ack(nbd.OptStructuredReply, nil)
	case nbd.Extended:
		ack(nbd.OptExtendedHeaders, nil)
	}
	if m != nbd.Simple {
		ack(nbd.OptSetMetaContext, nbd.MetaContextRequest{Export: name, Queries: []string{nbd.AllocationContext}}.Append(nil))
	}
	infos := ack(nbd.OptGo, nbd.InfoRequest{Name: name, Infos: []nbd.InfoType{nbd.InfoBlockSize}}.Append(nil))
	p.mode = m
	i, err := nbd.DecodeInfo(infos[0])
	if err != nil || i.Type != nbd.InfoExport {
		p.t.Fatalf("%+v, %v", i, err)
	}
	return i
}

// ask sends a request without waiting and returns its cookie.
func (p *peer) ask(c nbd.Command, f nbd.CommandFlags, off, n uint64, data []byte) uint64 {
	p.t.Helper()
	p.next++
	if p.mode == nbd.Extended && data != nil {
		f |= nbd.FlagPayloadLen
	}
	p.send(append(nbd.Request{Flags: f, Type: c, Cookie: p.next, Offset: off, Length: n}.Append(nil, p.mode), data...))
	return p.next
}

// reply takes the next reply; reads says how long a READ's data is where the
// reply does not (mode Simple).
func (p *peer) reply(reads int) got {
	p.t.Helper()
	var g got
	for {
		magic := p.take(4)
		n := nbd.ReplyLen(magic, p.mode)
		if n == 0 {
			p.t.Fatalf("not a reply: %x", magic)
		}
		var r nbd.Reply
		if !nbd.DecodeReply(append(magic, p.take(n-4)...), p.mode, &r) {
			p.t.Fatal("reply is not decoded")
		}
		g.cookie = r.Cookie
		g.chunks++
		if r.Simple {
			if g.err = r.Error; g.err == nbd.None && p.mode == nbd.Simple {
				g.data = p.take(reads)
			}
			return g
		}
		b := p.take(int(r.Length))
		switch {
		case r.Type.IsError():
			e, err := nbd.DecodeError(b, r.Type)
			if err != nil {
				p.t.Fatal(err)
			}
			g.err, g.message = e.Error, e.Message
		case r.Type == nbd.ChunkOffsetData:
			g.data = append(g.data, b[8:]...)
		case r.Type == p.mode.BlockStatusType():
			id, l, err := nbd.DecodeBlockStatus(b, p.mode, nil)
			if err != nil || id != contextID {
				p.t.Fatalf("context %d, %v", id, err)
			}
			g.extents = l
		case r.Type != nbd.ChunkNone:
			p.t.Fatalf("chunk %+v", r.Chunk)
		}
		if r.Flags&nbd.ChunkDone != 0 {
			return g
		}
	}
}

// do sends a request and takes its reply.
func (p *peer) do(c nbd.Command, f nbd.CommandFlags, off, n uint64, data []byte) got {
	p.t.Helper()
	cookie := p.ask(c, f, off, n, data)
	reads := 0
	if c == nbd.CmdRead {
		reads = int(n)
	}
	g := p.reply(reads)
	if g.cookie != cookie {
		p.t.Fatalf("reply to %d, not to %d", g.cookie, cookie)
	}
	return g
}

func (p *peer) write(off uint64, data []byte) got {
	p.t.Helper()
	return p.do(nbd.CmdWrite, 0, off, uint64(len(data)), data)
}

func (p *peer) read(off, n uint64) got {
	p.t.Helper()
	return p.do(nbd.CmdRead, 0, off, n, nil)
}

// wants fails the test unless the reply has this error.
func (g got) wants(t *testing.T, what string, e nbd.Errno) {
	t.Helper()
	if g.err != e {
		t.Errorf("%s: %v (%s), want %v", what, g.err, g.message, e)
	}
}

// closed waits for the other end to close.
func (p *peer) closed() {
	p.t.Helper()
	p.nc.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := p.nc.Read(make([]byte, 1)); err == nil || n > 0 {
		p.t.Errorf("connection is open: %d bytes, %v", n, err)
	} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
		p.t.Error("connection stays open")
	}
}

// eventually looks until it is true.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Errorf("%s: never", what)
			return
		}
	}
}

// start serves a directory on a Unix socket or TCP and gives a way to connect.
func start(t *testing.T, cfg Config, a Access, network string) (*Server, func() *peer) {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = t.TempDir() + "/s"
	}
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	s := New(cfg)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln, a) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != ErrClosed {
			t.Errorf("Serve: %v", err)
		}
		// Close does not wait for requests that a store has.
		eventually(t, "the whole budget is given back", func() bool { return s.MemoryUsed() == 0 })
	})
	return s, func() *peer {
		t.Helper()
		nc, err := net.Dial(network, ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		nc.SetDeadline(time.Now().Add(30 * time.Second))
		return &peer{t: t, nc: nc}
	}
}

// pattern is data that tells where it belongs.
func pattern(off, n int) []byte {
	b := make([]byte, (n+7)/8*8)
	for i := 0; i < len(b); i += 8 {
		binary.BigEndian.PutUint64(b[i:], uint64(off+i)*0x9e3779b97f4a7c15+1)
	}
	return b[:n]
}

func wantData(t *testing.T, what string, g got, want []byte) {
	t.Helper()
	g.wants(t, what, nbd.None)
	if !bytes.Equal(g.data, want) {
		at := 0
		for at < min(len(g.data), len(want)) && g.data[at] == want[at] {
			at++
		}
		t.Errorf("%s: %d bytes, want %d; they differ at %d", what, len(g.data), len(want), at)
	}
}

func eachMode(t *testing.T, f func(t *testing.T, m nbd.Mode)) {
	for m := nbd.Simple; m <= nbd.Extended; m++ {
		t.Run(fmt.Sprint([]string{"simple", "structured", "extended"}[m]), func(t *testing.T) { f(t, m) })
	}
}
