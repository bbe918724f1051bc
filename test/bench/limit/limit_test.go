//go:build linux

package limit

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const diskSize = 8 << 20

func start(t *testing.T, way string) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	disk := make([]byte, diskSize)
	for i := range disk {
		disk[i] = byte(i>>12) ^ byte(i)
	}
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"), way, path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, path
}

func ask(h header, payload []byte) []byte {
	p := make([]byte, headerLen)
	h.put(p)
	return append(p, payload...)
}

// A read sees what an earlier write of the same batch has put there, in both
// ways, at lengths below and above the buffers, and in bytes that arrive one by one.
func TestAnswers(t *testing.T) {
	for _, way := range []string{Memory, File} {
		for _, size := range []int{1, 4096, 1 << 20, 3 << 20} {
			s, path := start(t, way)
			c, err := net.Dial("tcp", s.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			payload := bytes.Repeat([]byte("0123456789abcdef!"), size/17+1)[:size]
			requests := ask(header{tag: 1, length: 512, offset: 0}, nil)
			requests = append(requests, ask(header{write: true, tag: 2, length: size, offset: 4096}, payload)...)
			requests = append(requests, ask(header{tag: 3, length: size, offset: 4096}, nil)...)
			go func() {
				c.Write(requests[:10])
				c.Write(requests[10 : headerLen+headerLen+1])
				c.Write(requests[headerLen+headerLen+1:])
			}()
			answer := make([]byte, 3*headerLen+512+size)
			if _, err := io.ReadFull(c, answer); err != nil {
				t.Fatalf("%s, %d bytes: %v", way, size, err)
			}
			for i, want := range []header{{tag: 1, length: 512}, {write: true, tag: 2, length: size, offset: 4096}, {tag: 3, length: size, offset: 4096}} {
				got, err := parseHeader(answer)
				if err != nil || got != want {
					t.Fatalf("%s, %d bytes: answer %d is %+v, %v; want %+v", way, size, i, got, err, want)
				}
				answer = answer[headerLen:]
				if !got.write {
					answer = answer[got.length:]
				}
				if got.tag == 1 && answer[0] != 1 {
					t.Errorf("the first answer has the wrong length")
				}
			}
			disk, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(disk[4096:4096+size], payload) {
				t.Errorf("%s, %d bytes: the disk has something else than was written", way, size)
			}
		}
	}
}

// What is not a request of this package ends the connection.
func TestRefuses(t *testing.T) {
	s, _ := start(t, Memory)
	for name, p := range map[string][]byte{
		"an unknown operation":   bytes.Repeat([]byte{9}, headerLen),
		"beyond the end":         ask(header{tag: 1, length: 4096, offset: diskSize - 4095}, nil),
		"far beyond the end":     ask(header{tag: 1, length: 4096, offset: 1<<63 - 1}, nil),
		"a payload out of bound": ask(header{tag: 1, length: MaxPayload + 1}, nil),
	} {
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
		if n, err := io.ReadFull(c, make([]byte, 1)); err == nil {
			t.Errorf("%s: got %d bytes of answer", name, n)
		}
		c.Close()
	}
}

func TestLoad(t *testing.T) {
	for _, way := range []string{Memory, File} {
		s, _ := start(t, way)
		for _, o := range []Options{
			{BlockSize: 4096, Depth: 32, Connections: 1},
			{BlockSize: 4096, Depth: 1, Connections: 1},
			{BlockSize: 4096, Depth: 32, Connections: 4, Write: true},
			{BlockSize: 1 << 20, Depth: 8, Connections: 1, Sequential: true},
			{BlockSize: 1 << 20, Depth: 8, Connections: 2, Sequential: true, Write: true},
		} {
			o.Duration, o.Size = 20*time.Millisecond, diskSize
			r, err := Load(context.Background(), s.Addr(), o)
			if err != nil {
				t.Fatalf("%s, %+v: %v", way, o, err)
			}
			if a := r.All; a.Count < int64(o.Depth*o.Connections) || a.IOPS <= 0 || a.P50 <= 0 || a.P99 < a.P50 || r.Seconds < 0.02 {
				t.Errorf("%s, %+v: %+v", way, o, r)
			}
		}
	}
}

// A server that says nothing does not hold the client for ever.
func TestLoadEndsWithItsContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.ReadFull(c, make([]byte, headerLen))
		cancel()
		io.Copy(io.Discard, c)
	}()
	addr := netip.MustParseAddrPort(l.Addr().String())
	if _, err := Load(ctx, addr, Options{BlockSize: 512, Depth: 1, Connections: 1, Duration: time.Minute, Size: 512}); err == nil {
		t.Error("no error")
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(ask(header{tag: 1, length: 512, offset: 4096}, nil))
	f.Add(ask(header{write: true, tag: 1<<32 - 1, length: MaxPayload, offset: 1<<63 - 1}, nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) < headerLen {
			return
		}
		h, err := parseHeader(p)
		if err != nil {
			return
		}
		again, err := parseHeader(ask(h, nil))
		if err != nil || again != h {
			t.Errorf("%+v comes back as %+v, %v", h, again, err)
		}
	})
}
