package conndrive_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"blockgate/internal/conndrive"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair makes both ends of a connection.
func pair(t testing.TB, network string) (server, client net.Conn) {
	t.Helper()
	if network == "pipe" {
		return net.Pipe()
	}
	addr, over := "127.0.0.1:0", "tcp"
	if network == "unix" {
		addr, over = filepath.Join(t.TempDir(), "s"), "unix"
	}
	ln, err := net.Listen(over, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial(over, ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	if network == "tls" {
		server = tls.Server(server, &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}})
		client = tls.Client(client, &tls.Config{InsecureSkipVerify: true})
	}
	t.Cleanup(func() {
		client.Close()
		server.Close()
	})
	return server, client
}

func selfSigned(t testing.TB) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// run drives a machine over one end; wait ends it and returns what Run did.
func run(t testing.TB, nc net.Conn, rest []byte) (e *echo, wait func() error) {
	c := conndrive.New(nc)
	e = newEcho(c.SendsWithoutWaiting())
	e.conn = c
	c.Attach(e)
	ended := make(chan error, 1)
	go func() { ended <- c.Run(rest) }()
	return e, func() error { return <-ended }
}

// payload is n bytes that differ from those of other lengths.
func payload(n int) []byte {
	p := make([]byte, 251)
	for i := range p {
		p[i] = byte(i + n)
	}
	return bytes.Repeat(p, n/len(p)+1)[:n]
}

func readFrame(r io.Reader) ([]byte, error) {
	var h [headLen]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(h[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

var networks = []string{"tcp", "unix", "tls", "pipe"}

func eachNetwork(t *testing.T, f func(t *testing.T, network string)) {
	for _, n := range networks {
		t.Run(n, func(t *testing.T) { f(t, n) })
	}
}

// TestAnswers: frames of every length, many at once, come back whole and in
// order, from memory that is spoilt when the driver says that it waits.
func TestAnswers(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network string) {
		server, client := pair(t, network)
		// What was read before the driver took over comes first.
		first := frame(wayNow, []byte("before"))
		e, wait := run(t, server, first)
		sizes := []int{0, 1, 5, 100, 4096, directMin - 1, directMin, directMin + 1, 70000, 1 << 20, 3 << 20}
		var sent [][]byte
		for i := range 33 {
			sent = append(sent, payload(sizes[i%len(sizes)]))
		}
		var wrote sync.WaitGroup
		wrote.Go(func() {
			var b []byte
			for _, p := range sent {
				b = append(b, frame(wayNow, p)...)
			}
			// In odd pieces.
			for n := 1; len(b) > 0; n = n*3%65537 + 1 {
				m := min(n, len(b))
				if _, err := client.Write(b[:m]); err != nil {
					t.Error(err)
					return
				}
				b = b[m:]
			}
		})
		for i, want := range append([][]byte{[]byte("before")}, sent...) {
			got, err := readFrame(client)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("frame %d of %d bytes came back wrong: %v", i, len(want), err)
			}
		}
		wrote.Wait()
		client.Close()
		if err := wait(); err == nil {
			t.Error("Run ended without a reason")
		}
		if e.directs.Load() == 0 {
			t.Error("no payload was received in place")
		}
	})
}

// TestLongPayloadsAreReceivedInPlace: after the first, next to nothing of a row of
// long payloads goes through the buffer; and short frames behind them are read in
// large pieces again.
func TestLongPayloadsAreReceivedInPlace(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network string) {
		server, client := pair(t, network)
		e, wait := run(t, server, nil)
		const n, size = 50, 200 << 10
		var b []byte
		for range n {
			b = append(b, frame(wayNow, payload(size))...)
		}
		for range 1000 {
			b = append(b, frame(wayNow, payload(100))...)
		}
		go client.Write(b)
		for i := range n + 1000 {
			want := size
			if i >= n {
				want = 100
			}
			if got, err := readFrame(client); err != nil || !bytes.Equal(got, payload(want)) {
				t.Fatalf("frame %d came back wrong: %v", i, err)
			}
		}
		client.Close()
		wait()
		// A transport that is no socket is read as it comes.
		if limit := int64(256<<10 + n*(4<<10)); (network == "tcp" || network == "unix") && e.copied.Load() > limit {
			t.Errorf("%d bytes of %d payloads were copied, want at most %d", e.copied.Load(), n, limit)
		}
	})
}

// TestOthersAnswer: what others finish is sent while the reader waits for input.
func TestOthersAnswer(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network string) {
		server, client := pair(t, network)
		e, wait := run(t, server, nil)
		worker := make(chan struct{})
		go func() {
			defer close(worker)
			for p := range e.later {
				e.queue(p)
			}
		}()
		for n := range 200 {
			p := payload(n * 100)
			if _, err := client.Write(frame(wayLater, p)); err != nil {
				t.Fatal(err)
			}
			if got, err := readFrame(client); err != nil || !bytes.Equal(got, p) {
				t.Fatalf("answer %d: %v", n, err)
			}
		}
		client.Close()
		wait()
		close(e.later)
		<-worker
	})
}

// TestPeerThatDoesNotRead: the reader stops reading, somebody else's answer does not block
// whoever gives it, and closing the transport ends it all.
func TestPeerThatDoesNotRead(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network string) {
		server, client := pair(t, network)
		e, wait := run(t, server, nil)
		wrote := make(chan struct{})
		go func() {
			defer close(wrote)
			b := frame(wayNow, payload(1<<20))
			for {
				if _, err := client.Write(b); err != nil {
					return
				}
			}
		}()
		for !e.Sending() {
			runtime.Gosched()
		}
		for range 100 {
			e.queue(payload(100))
		}
		server.Close()
		if err := wait(); err == nil {
			t.Error("Run ended without a reason")
		}
		client.Close()
		<-wrote
		if e.Sending() {
			t.Error("the machine was not told that sending failed")
		}
		e.queue(payload(100)) // late: nobody sends it, and nothing breaks
		e.conn.Wake()
	})
}

// TestWriterFails: an error of the writer ends the reader, which waits for input.
func TestWriterFails(t *testing.T) {
	server, client := pair(t, "tcp")
	boom := errors.New("boom")
	e, wait := run(t, brokenWrite{server, boom}, nil)
	go client.Write(frame(wayLater, nil))
	e.queue(<-e.later)
	if err := wait(); err != boom {
		t.Errorf("Run says %v, want what the writer met", err)
	}
}

type brokenWrite struct {
	net.Conn
	err error
}

func (b brokenWrite) Write([]byte) (int, error) { return 0, b.err }

// TestMachineError: what was queued before an error of the peer is sent.
func TestMachineError(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network string) {
		server, client := pair(t, network)
		_, wait := run(t, server, nil)
		go client.Write(append(frame(wayNow, []byte("last")), frame(wayBad, nil)...))
		if got, err := readFrame(client); err != nil || string(got) != "last" {
			t.Errorf("got %q, %v", got, err)
		}
		if err := wait(); err != errBad {
			t.Errorf("Run says %v, want the machine's error", err)
		}
	})
}

// TestEndOfStream: a peer that closes is io.EOF, also in the middle of a frame.
func TestEndOfStream(t *testing.T) {
	for _, b := range [][]byte{nil, frame(wayNow, payload(9))[:3], frame(wayNow, payload(1<<20))[:30000]} {
		server, client := pair(t, "tcp")
		_, wait := run(t, server, nil)
		if _, err := client.Write(b); err != nil {
			t.Fatal(err)
		}
		client.Close()
		if err := wait(); err != io.EOF {
			t.Errorf("after %d bytes Run says %v, want EOF", len(b), err)
		}
	}
}

// TestSeeProgress: a batch that waits makes progress when the peer reads, and none
// while it does not.
func TestSeeProgress(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			server, client := pair(t, network)
			e, wait := run(t, server, nil)
			go client.Write(frame(wayNow, payload(maxFrame)))
			for e.settled.Load() == 0 { // the socket is full
				runtime.Gosched()
			}
			// What the system has taken may still be on its way for a while.
			for n := uint64(0); ; {
				before := e.progress.Load()
				e.conn.SeeProgress()
				if e.progress.Load() != before {
					n = 0
				} else if n++; n == 1000 {
					break
				}
			}
			before := e.progress.Load()
			if _, err := io.ReadFull(client, make([]byte, 4<<20)); err != nil {
				t.Fatal(err)
			}
			for e.progress.Load() == before {
				e.conn.SeeProgress()
			}
			client.Close()
			wait()
		})
	}
}

func BenchmarkRound(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(map[int]string{1: "depth=1", 32: "depth=32"}[depth], func(b *testing.B) {
			server, client := pair(b, "tcp")
			_, wait := run(b, server, nil)
			out := bytes.Repeat(frame(wayNow, payload(100)), depth)
			in := make([]byte, len(out))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.Write(out); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(client, in); err != nil {
					b.Fatal(err)
				}
			}
			client.Close()
			wait()
		})
	}
}
