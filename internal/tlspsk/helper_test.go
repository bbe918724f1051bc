package tlspsk

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"testing"
)

func keysFor(t testing.TB) []*ecdh.PrivateKey {
	t.Helper()
	var l []*ecdh.PrivateKey
	for _, c := range curves {
		k, err := c.curve.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		l = append(l, k)
	}
	return l
}

// tape is replay, and keeps what is written.
type tape struct {
	replay
	w *bytes.Buffer
}

func (t tape) Write(p []byte) (int, error) { return t.w.Write(p) }

// serverHelloSeed is what a server answers to some client.
func serverHelloSeed(t testing.TB) []byte {
	t.Helper()
	c := Client(nil, "alice", testKey)
	hello := c.appendRecord(nil, typeHandshake, c.clientHello(keysFor(t), earlySecret(testKey)))
	var out bytes.Buffer
	_ = Server(tape{replay{r: bytes.NewReader(hello)}, &out}, lookup).Handshake(t.Context())
	if out.Len() == 0 {
		t.Fatal("the server says nothing")
	}
	return out.Bytes()
}
