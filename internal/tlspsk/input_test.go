package tlspsk

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
)

// waits is a socket that tells when somebody waits for it.
type waits struct {
	fd     int
	waited func()
}

func (w *waits) Control(f func(uintptr)) error    { f(uintptr(w.fd)); return nil }
func (w *waits) Write(f func(uintptr) bool) error { return errors.ErrUnsupported }

func (w *waits) Read(f func(uintptr) bool) error {
	for !f(uintptr(w.fd)) {
		w.waited()
	}
	return nil
}

// A connection that waits holds no memory, or what a part of a record needs.
func TestIdleHoldsNothing(t *testing.T) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fds[0])
	closed := false
	defer func() {
		if !closed {
			syscall.Close(fds[1])
		}
	}()
	if err := syscall.SetNonblock(fds[0], true); err != nil {
		t.Fatal(err)
	}
	send := func(p []byte) {
		if _, err := syscall.Write(fds[1], p); err != nil {
			t.Fatal(err)
		}
	}
	data := bytes.Repeat([]byte("0123456789"), 2000)
	w := &waits{fd: fds[0]}
	in := input{raw: w}
	step := 0
	w.waited = func() {
		step++
		switch step {
		case 1:
			if in.buf != nil {
				t.Error("memory is held while nothing is there")
			}
			send(data[:100])
		case 2:
			if n := len(in.buf.B); n > 512 || !bytes.Equal(in.unread(), data[:100]) {
				t.Errorf("%d bytes are held for 100", n)
			}
			send(data[100:])
		case 3:
			if in.buf != nil {
				t.Error("memory is held though all was taken")
			}
			syscall.Close(fds[1])
			closed = true
		}
	}
	if err := in.fillTo(len(data)); err != nil || !bytes.Equal(in.unread(), data) {
		t.Fatal("the data is another", err)
	}
	in.r = in.w
	if err := in.fillTo(1); err != ErrTruncated {
		t.Errorf("at the end: %v", err)
	}
	if step != 3 {
		t.Errorf("it waited %d times", step)
	}
}

// Who has a key learns nothing about other names by offering them beside his own.
func TestNamesCannotBeProbed(t *testing.T) {
	m := []byte("a hello")
	sum := sha256.Sum256(m)
	mine, other := testKey, bytes.Repeat([]byte{9}, 32)
	try := func(known map[string][]byte, binders ...[]byte) (int, error) {
		c := Server(nil, func(user string) ([]byte, bool) { k, ok := known[user]; return k, ok })
		h := &clientHello{identities: []string{"bob", "alice"}, binders: binders, truncated: len(m)}
		i, early, err := c.choose(h, m)
		if err == nil && !bytes.Equal(early, earlySecret(known[h.identities[i]])) {
			t.Error("the secret is another name's")
		}
		return i, err
	}
	right, wrong := binder(earlySecret(mine), sum[:]), make([]byte, hashLen)
	for name, known := range map[string]map[string][]byte{
		"known": {"alice": mine, "bob": other}, "unknown": {"alice": mine},
	} {
		if i, err := try(known, wrong, right); i != 1 || err != nil {
			t.Errorf("beside a name that is %s: %d, %v", name, i, err)
		}
		_, err := try(known, wrong, wrong)
		if a, ok := local(err); !ok || a != alertDecryptError || err.Error() != "tlspsk: the client does not have the key of a user there is" {
			t.Errorf("a name that is %s: %v", name, err)
		}
	}
}

// BenchmarkStream is one connection of TCP, in pieces of 64 KiB.
func BenchmarkStream(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		io.Copy(io.Discard, Server(nc, lookup))
	}()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	c := Client(nc, "alice", testKey)
	defer c.Close()
	p := make([]byte, 64<<10)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if _, err := c.Write(p); err != nil {
			b.Fatal(err)
		}
	}
}
