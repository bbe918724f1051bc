package client_test

import (
	"context"
	"encoding/binary"
	"net"
	"strings"
	"testing"
	"time"

	"blockgate/nbd"
	"blockgate/nbd/client"
	"blockgate/nbd/client/nbdfake"
)

func chunk(r nbd.Request, flags nbd.ChunkFlags, t nbd.ChunkType, p []byte) []byte {
	return append(nbd.Chunk{Flags: flags, Type: t, Cookie: r.Cookie, Length: uint64(len(p))}.Append(nil, nbd.Structured), p...)
}

func data(r nbd.Request, flags nbd.ChunkFlags, off uint64, n int) []byte {
	return chunk(r, flags, nbd.ChunkOffsetData, append(nbd.AppendOffset(nil, off), make([]byte, n)...))
}

// A server that answers nonsense is left with a word about what was wrong.
func TestNonsense(t *testing.T) {
	read := func(c *client.Client) error { return c.ReadAt(context.Background(), make([]byte, 1000), 4096) }
	status := func(c *client.Client) error {
		return c.BlockStatus(context.Background(), 0, 8192, func(int64, int64, uint64) bool { return true })
	}
	write := func(c *client.Client) error { return c.WriteAt(context.Background(), make([]byte, 10), 0, 0) }
	for _, k := range []struct {
		name   string
		do     func(*client.Client) error
		answer func(r nbd.Request) []byte
		want   string
	}{
		{"no reply", read, func(nbd.Request) []byte { return []byte("HTTP/1.1 400 Bad Request\r\n") }, "where a reply should begin"},
		{"unknown cookie", read, func(r nbd.Request) []byte { r.Cookie += 77; return data(r, 1, 4096, 1000) }, "not there"},
		{"simple reply", read, func(r nbd.Request) []byte { return nbd.AppendSimpleReply(nil, 0, r.Cookie) }, "simple reply to a READ"},
		{"gap", read, func(r nbd.Request) []byte { return data(r, nbd.ChunkDone, 4096, 999) }, "gaps"},
		{"nothing", read, func(r nbd.Request) []byte { return chunk(r, nbd.ChunkDone, nbd.ChunkNone, nil) }, "gaps"},
		{"before", read, func(r nbd.Request) []byte { return data(r, nbd.ChunkDone, 4095, 1000) }, "at 4095"},
		{"behind", read, func(r nbd.Request) []byte { return data(r, nbd.ChunkDone, 4097, 1000) }, "at 4097"},
		{"far", read, func(r nbd.Request) []byte { return data(r, nbd.ChunkDone, 1<<64-1, 1000) }, "in the answer to a READ"},
		{"too much", read, func(r nbd.Request) []byte { return data(r, nbd.ChunkDone, 4096, 1001) }, "1001 bytes"},
		{"twice", read, func(r nbd.Request) []byte {
			return append(data(r, 0, 4096, 1000), data(r, nbd.ChunkDone, 4196, 10)...)
		}, "twice"},
		{"huge hole", read, func(r nbd.Request) []byte {
			return chunk(r, 1, nbd.ChunkOffsetHole, nbd.AppendOffsetHole(nil, 4096, 1<<31))
		}, "in the answer to a READ"},
		{"short hole", read, func(r nbd.Request) []byte { return chunk(r, 1, nbd.ChunkOffsetHole, make([]byte, 11)) }, "hole chunk"},
		{"short data", read, func(r nbd.Request) []byte { return chunk(r, 1, nbd.ChunkOffsetData, make([]byte, 8)) }, "data chunk of 8 bytes"},
		{"type", read, func(r nbd.Request) []byte { return chunk(r, 1, 77, nil) }, "type 0x4d"},
		{"long nothing", read, func(r nbd.Request) []byte { return chunk(r, 1, nbd.ChunkNone, make([]byte, 3)) }, "empty chunk of 3"},
		{"long error", read, func(r nbd.Request) []byte { return chunk(r, 1, nbd.ChunkError, make([]byte, nbd.MaxErrorLen+1)) }, "error chunk of"},
		{"error without", read, func(r nbd.Request) []byte { return chunk(r, 1, nbd.ChunkError, make([]byte, 6)) }, "error"},
		{"status to READ", read, func(r nbd.Request) []byte { return chunk(r, 1, nbd.ChunkBlockStatus, make([]byte, 12)) }, "in the answer to a READ"},
		{"data to BLOCK_STATUS", status, func(r nbd.Request) []byte { return data(r, 1, 0, 10) }, "in the answer to a BLOCK_STATUS"},
		{"no extents", status, func(r nbd.Request) []byte { return chunk(r, 1, nbd.ChunkNone, nil) }, "no extents"},
		{"empty extent", status, func(r nbd.Request) []byte {
			return chunk(r, 1, nbd.ChunkBlockStatus, binary.BigEndian.AppendUint32(nil, 7<<0)[:4])
		}, "block status"},
		{"other context", status, func(r nbd.Request) []byte {
			return chunk(r, 1, nbd.ChunkBlockStatus, nbd.AppendBlockStatus(nil, nbd.Structured, 99, []nbd.Extent{{Length: 8192}}))
		}, "context 99"},
		{"data to WRITE", write, func(r nbd.Request) []byte { return data(r, 1, 0, 10) }, "in the answer to a WRITE"},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			srv := start(t, modern)
			cfg := quick(srv)
			cfg.Conns, cfg.Stall = 1, 60*time.Millisecond
			c := open(t, cfg)
			srv.SetFault(func(r nbd.Request) nbdfake.Fault {
				return nbdfake.Fault{Kind: nbdfake.Garbage, Bytes: k.answer}
			})
			err := k.do(c)
			is(t, err, client.ErrTimeout)
			if !strings.Contains(err.Error(), k.want) {
				t.Errorf("error %q does not say %q", err, k.want)
			}
			srv.SetFault(nil)
			ok(t, k.do(c))
		})
	}
}

// script is a server that says the same to everybody.
func script(t testing.TB, out []byte) client.Config {
	return client.Config{Backoff: time.Millisecond, Stall: 20 * time.Millisecond, Conns: 1, Dial: func(context.Context) (net.Conn, error) {
		here, there := net.Pipe()
		go func() {
			b := make([]byte, 4096)
			for {
				if _, err := there.Read(b); err != nil {
					return
				}
			}
		}()
		go func() {
			defer there.Close()
			there.SetWriteDeadline(time.Now().Add(5 * time.Second))
			_, _ = there.Write(out)
		}()
		return here, nil
	}}
}

func greeting() []byte { return nbd.AppendGreeting(nil, nbd.FixedNewstyle|nbd.NoZeroes) }

// hello is a handshake up to and with GO.
func hello(size uint64, bs nbd.BlockSize) []byte {
	b := nbd.AppendOptionReply(greeting(), nbd.OptExtendedHeaders, nbd.RepErrUnsupported, nil)
	b = nbd.AppendOptionReply(b, nbd.OptStructuredReply, nbd.RepAck, nil)
	b = nbd.AppendOptionReply(b, nbd.OptSetMetaContext, nbd.RepMetaContext, nbd.MetaContext{ID: 1, Name: nbd.AllocationContext}.Append(nil))
	b = nbd.AppendOptionReply(b, nbd.OptSetMetaContext, nbd.RepAck, nil)
	b = nbd.AppendOptionReply(b, nbd.OptGo, nbd.RepInfo, nbd.Info{Type: nbd.InfoExport, Size: size, Flags: nbdfake.All}.Append(nil))
	b = nbd.AppendOptionReply(b, nbd.OptGo, nbd.RepInfo, nbd.Info{Type: nbd.InfoBlockSize, BlockSize: bs}.Append(nil))
	return nbd.AppendOptionReply(b, nbd.OptGo, nbd.RepAck, nil)
}

func TestBadHandshakes(t *testing.T) {
	bs := nbd.DefaultBlockSize()
	for name, k := range map[string]struct {
		out  []byte
		want string
	}{
		"nothing":       {nil, "no greeting"},
		"not NBD":       {[]byte("SSH-2.0-OpenSSH_9.2p1 Debian-2"), "not an NBD server"},
		"oldstyle":      {binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, nbd.Magic), nbd.OldstyleMagic), "no greeting"},
		"not fixed":     {nbd.AppendGreeting(nil, 0), "fixed newstyle"},
		"other option":  {nbd.AppendOptionReply(greeting(), nbd.OptList, nbd.RepAck, nil), "not what was asked"},
		"huge reply":    {nbd.OptionReplyHeader{Option: nbd.OptExtendedHeaders, Type: nbd.RepAck, Length: 1 << 31}.Append(greeting()), "bytes"},
		"TLS wanted":    {nbd.AppendOptionReply(greeting(), nbd.OptExtendedHeaders, nbd.RepErrTLSRequired, nil), "TLS is required"},
		"huge size":     {hello(1<<63, bs), "an export of"},
		"block of 3":    {hello(1<<20, nbd.BlockSize{Min: 3, Preferred: 4096, MaxPayload: 1 << 20}), "size constraints"},
		"block of 0":    {hello(1<<20, nbd.BlockSize{Min: 0, Preferred: 4096, MaxPayload: 1 << 20}), "size constraints"},
		"small payload": {hello(1<<20, nbd.BlockSize{Min: 1, Preferred: 4096, MaxPayload: 0}), "size constraints"},
	} {
		_, err := client.Open(t.Context(), script(t, k.out))
		if err == nil || !strings.Contains(err.Error(), k.want) {
			t.Errorf("%s: %v, want %q", name, err, k.want)
		}
	}
}

// FuzzServer: whatever a server says, nothing panics, hangs or is written where it
// does not belong.
func FuzzServer(f *testing.F) {
	bs := nbd.BlockSize{Min: 512, Preferred: 4096, MaxPayload: 1 << 20}
	h := hello(1<<20, bs)
	f.Add(h)
	r := nbd.Request{Cookie: 1, Offset: 0}
	f.Add(append(h[:len(h):len(h)], data(r, nbd.ChunkDone, 0, 4096)...))
	f.Add(append(h[:len(h):len(h)], chunk(r, 0, nbd.ChunkOffsetHole, nbd.AppendOffsetHole(nil, 0, 4096))...))
	f.Add(append(h[:len(h):len(h)], chunk(r, 1, nbd.ChunkErrorOffset, nbd.ErrorInfo{Error: nbd.EIO, Message: "no", Offset: 5}.Append(nil, nbd.ChunkErrorOffset))...))
	f.Add(append(h[:len(h):len(h)], chunk(r, 1, nbd.ChunkBlockStatus, nbd.AppendBlockStatus(nil, nbd.Structured, 1, []nbd.Extent{{Length: 512, Flags: 3}}))...))
	f.Add(nbd.AppendOptionReply(greeting(), nbd.OptList, nbd.RepServer, nbd.ServerEntry{Name: "a"}.Append(nil)))
	f.Fuzz(func(t *testing.T, out []byte) {
		cfg := script(t, out)
		cfg.Stall = time.Millisecond
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, _ = client.List(ctx, cfg)
		c, err := client.Open(ctx, cfg)
		if err != nil {
			return
		}
		defer c.Close()
		n := min(c.Size(), 4096)
		p := make([]byte, n+2)
		p[0], p[n+1] = 0xa5, 0xa5
		_ = c.ReadAt(ctx, p[1:n+1], 0)
		if p[0] != 0xa5 || p[n+1] != 0xa5 {
			t.Error("written outside of the buffer")
		}
		_ = c.BlockStatus(ctx, 0, n, func(off, k int64, _ uint64) bool {
			if off < 0 || k <= 0 || k > n-off {
				t.Errorf("extent of %d at %d", k, off)
			}
			return true
		})
	})
}

func TestParseURI(t *testing.T) {
	for s, want := range map[string]client.URI{
		"nbd://host":                                    {Network: "tcp", Address: "host:10809", Hostname: "host"},
		"nbd://host:1/a%20b":                            {Network: "tcp", Address: "host:1", Export: "a b", Hostname: "host"},
		"NBD://[::1]:7//abs":                            {Network: "tcp", Address: "[::1]:7", Export: "/abs", Hostname: "::1"},
		"nbd+unix:///e?socket=/run/s":                   {Network: "unix", Address: "/run/s", Export: "e"},
		"nbds://u@h/e?tls-psk-file=/k":                  {Network: "tcp", Address: "h:10809", Export: "e", TLS: true, User: "u", PSKFile: "/k", Hostname: "h"},
		"nbds://h/?tls-certificates=/c&tls-hostname=x":  {Network: "tcp", Address: "h:10809", TLS: true, Certificates: "/c", Hostname: "x"},
		"nbds+unix:///?socket=s&tls-username=me":        {Network: "unix", Address: "s", TLS: true, User: "me"},
		"nbd:h:10:exportname=x:y":                       {Network: "tcp", Address: "h:10", Export: "x:y", Hostname: "h"},
		"nbd:unix:/a/b:exportname=z":                    {Network: "unix", Address: "/a/b", Export: "z"},
		"nbd:unix:/a/b":                                 {Network: "unix", Address: "/a/b"},
		"nbd+unix:///e?socket=/run/s&connections=4&x=%": {},
		"nbd:":                       {},
		"nbd://":                     {},
		"nbd:host":                   {},
		"http://host/":               {},
		"nbd://u:secret@host/":       {},
		"nbd://host/?socket=/a":      {},
		"nbd+unix:///e":              {},
		"nbd+unix://host/e?socket=s": {},
		"nbd://h/?tls-psk-file=/k":   {},
		"nbds://h/?tls-psk-file=/k&tls-certificates=/c": {},
		"nbd://h/%ff":                          {},
		"nbd://h/" + strings.Repeat("x", 4097): {},
		"nbd://h/e#fragment":                   {},
	} {
		u, err := client.ParseURI(s)
		if want.Network == "" {
			if err == nil {
				t.Errorf("%q: %+v, want an error", s, u)
			}
			continue
		}
		if err != nil {
			t.Error(err)
			continue
		}
		if len(u.Params) != 0 {
			t.Errorf("%q: left %v", s, u.Params)
		}
		u.Params = nil
		if u.Network != want.Network || u.Address != want.Address || u.Export != want.Export || u.TLS != want.TLS ||
			u.User != want.User || u.PSKFile != want.PSKFile || u.Certificates != want.Certificates || u.Hostname != want.Hostname {
			t.Errorf("%q: %+v", s, u)
		}
	}
}

func FuzzURI(f *testing.F) {
	f.Add("nbds://u@h:1/e?tls-psk-file=/k")
	f.Add("nbd:unix:/a:exportname=b")
	f.Add("nbd+unix:///a%20b?socket=/x")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := client.ParseURI(s)
		if err != nil || u.Network == "" {
			return
		}
		// What is shown of it names the same export.
		v, err := client.ParseURI(u.String())
		if err != nil || v.Network != u.Network || v.Address != u.Address || v.Export != u.Export || v.TLS != u.TLS {
			t.Errorf("%q is shown as %q: %+v, %v", s, u, v, err)
		}
	})
}

// A server that tells of less than one of its blocks is not asked for ever.
func TestStatusOfNothing(t *testing.T) {
	o := modern
	o.BlockSize = &nbd.BlockSize{Min: 4096, Preferred: 4096, MaxPayload: 1 << 20}
	srv := start(t, o)
	c := open(t, quick(srv))
	srv.SetFault(func(r nbd.Request) nbdfake.Fault {
		return nbdfake.Fault{Kind: nbdfake.Garbage, Bytes: func(r nbd.Request) []byte {
			return chunk(r, nbd.ChunkDone, nbd.ChunkBlockStatus, nbd.AppendBlockStatus(nil, nbd.Structured, 7, []nbd.Extent{{Length: 100}}))
		}}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	is(t, c.BlockStatus(ctx, 512, 8192, func(int64, int64, uint64) bool { return true }), client.ErrProtocol)
}
