package tlspsk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testKey = bytes.Repeat([]byte{7, 9}, 16)

func lookup(user string) ([]byte, bool) { return testKey, user == "alice" }

// pair connects two ends by TCP and shakes hands.
func pair(t testing.TB, user string, key []byte) (cl, srv *Conn, clErr, srvErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	cl, srv = Client(a, user, key), Server(b, lookup)
	t.Cleanup(func() { cl.Close(); srv.Close() })
	var wg sync.WaitGroup
	wg.Go(func() {
		if clErr = cl.Handshake(t.Context()); clErr != nil {
			cl.Close()
		}
	})
	wg.Go(func() {
		if srvErr = srv.Handshake(t.Context()); srvErr != nil {
			srv.Close()
		}
	})
	wg.Wait()
	return cl, srv, clErr, srvErr
}

func TestBothWays(t *testing.T) {
	cl, srv, err1, err2 := pair(t, "alice", testKey)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if srv.User() != "alice" || cl.User() != "alice" {
		t.Errorf("users %q and %q", srv.User(), cl.User())
	}
	want := make([]byte, 3<<20+17)
	for i := range want {
		want[i] = byte(i * 11)
	}
	var wg sync.WaitGroup
	for _, k := range []struct{ from, to *Conn }{{cl, srv}, {srv, cl}} {
		wg.Go(func() {
			for at, n := 0, 1; at < len(want); n = n*3 + 1 {
				end := min(at+n, len(want))
				if _, err := k.from.Write(want[at:end]); err != nil {
					t.Error(err)
				}
				at = end
				// New keys now and then, one's own and asked for.
				if n%2 == 0 {
					k.from.owed.Store(true)
				}
			}
		})
		wg.Go(func() {
			got := make([]byte, len(want))
			if _, err := io.ReadFull(k.to, got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("content differs, or %v", err)
			}
		})
	}
	wg.Wait()
	cl.Close()
	if _, err := srv.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after a farewell: %v", err)
	}
}

func TestKeysAreRenewed(t *testing.T) {
	cl, srv, err1, err2 := pair(t, "alice", testKey)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(cl.out.secret)
	cl.out.seq = maxRecords
	srv.in.seq = maxRecords
	go cl.Write([]byte("x"))
	p := make([]byte, 1)
	if _, err := srv.Read(p); err != nil || p[0] != 'x' {
		t.Fatal(err)
	}
	if bytes.Equal(before, srv.in.secret) || srv.in.seq != 1 {
		t.Error("a key was used for longer than it may be")
	}
	// The peer asks for ours to be renewed.
	cl.outMu.Lock()
	b := cl.appendRecord(nil, typeHandshake, []byte{msgKeyUpdate, 0, 0, 1, 1})
	cl.out.update()
	b = cl.appendRecord(b, typeData, []byte("y"))
	cl.outMu.Unlock()
	cl.nc.Write(b)
	if _, err := srv.Read(p); err != nil || p[0] != 'y' {
		t.Fatal(err)
	}
	before = bytes.Clone(srv.out.secret)
	go srv.Write([]byte("z"))
	if _, err := cl.Read(p); err != nil || p[0] != 'z' {
		t.Fatal(err)
	}
	if bytes.Equal(before, cl.in.secret) {
		t.Error("what was asked for was not done")
	}
}

func TestRefused(t *testing.T) {
	other := bytes.Repeat([]byte{8}, 32)
	for name, k := range map[string]struct {
		user string
		key  []byte
	}{"another key": {"alice", other}, "unknown user": {"bob", testKey}} {
		_, _, clErr, srvErr := pair(t, k.user, k.key)
		var peer peerError
		if !errors.As(clErr, &peer) || alert(peer) != alertDecryptError {
			t.Errorf("%s: the client sees %v", name, clErr)
		}
		if a, ok := local(srvErr); !ok || a != alertDecryptError {
			t.Errorf("%s: the server sees %v", name, srvErr)
		}
	}
	for name, k := range map[string]struct {
		user string
		key  []byte
	}{"short key": {"alice", testKey[:8]}, "no user": {"", testKey}, "long user": {strings.Repeat("x", 600), testKey}} {
		a, b := net.Pipe()
		if err := Client(a, k.user, k.key).Handshake(t.Context()); err == nil {
			t.Errorf("%s: taken", name)
		}
		a.Close()
		b.Close()
	}
}

// Nothing that is changed on its way is taken.
func TestTampering(t *testing.T) {
	for _, at := range []int{0, 1, 2, 3, 5, 6, 11, 20, 27, 28} {
		cl, srv, err1, err2 := pair(t, "alice", testKey)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		b := cl.appendRecord(nil, typeData, []byte("secret "))
		if at >= len(b) {
			t.Fatal(len(b))
		}
		b[at] ^= 1
		go func() {
			cl.nc.Write(b)
			cl.nc.Close()
		}()
		if n, err := srv.Read(make([]byte, 100)); n != 0 || err == nil || err == io.EOF {
			t.Errorf("byte %d changed: %d bytes, %v", at, n, err)
		}
	}
}

// A connection that is cut off is not one that has ended.
func TestTruncated(t *testing.T) {
	cl, srv, err1, err2 := pair(t, "alice", testKey)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	cl.nc.Close()
	if _, err := srv.Read(make([]byte, 1)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error = %v", err)
	}
}

func TestUselessRecords(t *testing.T) {
	cl, srv, err1, err2 := pair(t, "alice", testKey)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	go func() {
		cl.outMu.Lock()
		defer cl.outMu.Unlock()
		for range 2 * maxUseless {
			if _, err := cl.nc.Write(cl.appendRecord(nil, typeData, nil)); err != nil {
				return
			}
		}
	}()
	if _, err := srv.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "without data") {
		t.Errorf("error = %v", err)
	}
}

func TestHandshakeEnds(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := Server(a, lookup).Handshake(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error = %v", err)
	}
}

// A timeout of Read is not its end.
func TestReadDeadline(t *testing.T) {
	cl, srv, err1, err2 := pair(t, "alice", testKey)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	b := cl.appendRecord(nil, typeData, []byte("hello"))
	cl.nc.Write(b[:10])
	srv.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
	p := make([]byte, 5)
	var ne net.Error
	if _, err := srv.Read(p); !errors.As(err, &ne) || !ne.Timeout() {
		t.Fatalf("error = %v", err)
	}
	srv.SetReadDeadline(time.Time{})
	cl.nc.Write(b[10:])
	if _, err := io.ReadFull(srv, p); err != nil || string(p) != "hello" {
		t.Errorf("%q, %v", p, err)
	}
}

func TestParseKeys(t *testing.T) {
	key := strings.Repeat("0a", 16)
	keys, err := ParseKeys(strings.NewReader("# a comment\nalice:" + key + "\r\n\nb:o:b:" + key + "\n"))
	if err != nil || len(keys) != 2 || len(keys["alice"]) != 16 || keys["b:o:b"] == nil {
		t.Errorf("%v, %v", keys, err)
	}
	for _, s := range []string{"alice", ":" + key, "alice:", "alice:0g" + key, "alice:0a0b", "a:" + key + "\na:" + key} {
		if _, err := ParseKeys(strings.NewReader(s)); err == nil || strings.Contains(err.Error(), key) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// replay is a peer that says the same to everybody.
type replay struct {
	net.Conn
	r io.Reader
}

func (r replay) Read(p []byte) (int, error)       { return r.r.Read(p) }
func (r replay) Write(p []byte) (int, error)      { return len(p), nil }
func (r replay) Close() error                     { return nil }
func (r replay) SetDeadline(time.Time) error      { return nil }
func (r replay) SetWriteDeadline(time.Time) error { return nil }

func FuzzServer(f *testing.F) {
	c := Client(nil, "alice", testKey)
	hello := c.clientHello(keysFor(f), earlySecret(testKey))
	f.Add(c.appendRecord(nil, typeHandshake, hello))
	f.Add([]byte{22, 3, 1, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := Server(replay{r: bytes.NewReader(b)}, lookup)
		if err := s.Handshake(t.Context()); err == nil {
			t.Error("a peer that knows nothing was taken")
		}
	})
}

func FuzzClient(f *testing.F) {
	f.Add([]byte{21, 3, 3, 0, 2, 2, 40})
	f.Add([]byte{22, 3, 3, 0, 4, 2, 0, 0, 0})
	f.Add(serverHelloSeed(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := Client(replay{r: bytes.NewReader(b)}, "alice", testKey)
		if err := c.Handshake(t.Context()); err == nil {
			t.Error("a peer that knows nothing was taken")
		}
	})
}

func FuzzKeys(f *testing.F) {
	f.Add("alice:000102030405060708090a0b0c0d0e0f\n")
	f.Fuzz(func(t *testing.T, s string) {
		keys, err := ParseKeys(strings.NewReader(s))
		for user, key := range keys {
			if err == nil && (user == "" || len(key) < MinKey) {
				t.Errorf("%q: %x", user, key)
			}
		}
	})
}
