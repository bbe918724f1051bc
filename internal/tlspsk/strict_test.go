package tlspsk

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

var changeCipherSpec = []byte{typeChangeCipherSpec, 3, 3, 0, 1, 1}

// A change of cipher spec is passed over where RFC 8446 section 5 lets it be, and
// nowhere else.
func TestChangeCipherSpec(t *testing.T) {
	c := Client(nil, "alice", testKey)
	hello := c.appendRecord(nil, typeHandshake, c.clientHello(keysFor(t), earlySecret(testKey)))
	shake := func(b ...[]byte) (alert, bool, error) {
		err := Server(replay{r: bytes.NewReader(bytes.Join(b, nil))}, lookup).Handshake(t.Context())
		a, ok := local(err)
		return a, ok, err
	}
	if a, ok, err := shake(changeCipherSpec, hello); !ok || a != alertUnexpectedMessage {
		t.Errorf("before the hello: %v", err)
	}
	if _, _, err := shake(hello, changeCipherSpec); !errors.Is(err, ErrTruncated) {
		t.Errorf("behind the hello: %v", err)
	}
	answer := serverHelloSeed(t)
	n := recordHeader + int(answer[3])<<8 | int(answer[4])
	m := answer[recordHeader:][:n-recordHeader]
	cut := bytes.Join([][]byte{
		c.appendRecord(nil, typeHandshake, m[:10]), changeCipherSpec, c.appendRecord(nil, typeHandshake, m[10:]),
	}, nil)
	err := Client(replay{r: bytes.NewReader(cut)}, "alice", testKey).Handshake(t.Context())
	if err == nil || !strings.Contains(err.Error(), "within a handshake message") {
		t.Errorf("within a message: %v", err)
	}
	cl, srv, err1, err2 := pair(t, "alice", testKey)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	go cl.nc.Write(changeCipherSpec)
	_, err = srv.Read(make([]byte, 1))
	if a, ok := local(err); !ok || a != alertUnexpectedMessage {
		t.Errorf("behind the handshake: %v", err)
	}
}

// Padding counts: RFC 8446 section 5.4 bounds what it is a part of.
func TestLongPadding(t *testing.T) {
	for _, padding := range []int{maxPlain - 1, maxPlain} {
		cl, srv, err1, err2 := pair(t, "alice", testKey)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		inner := append([]byte{'x', typeData}, make([]byte, padding)...)
		n := len(inner) + tagLen
		head := []byte{typeData, 3, 3, byte(n >> 8), byte(n)}
		var nonce [ivLen]byte
		b := cl.out.aead.Seal(head, cl.out.nonce(&nonce), inner, head)
		go cl.nc.Write(b)
		got, err := srv.Read(make([]byte, 10))
		a, ok := local(err)
		if padding < maxPlain && (got != 1 || err != nil) || padding == maxPlain && (!ok || a != alertRecordOverflow) {
			t.Errorf("%d bytes of padding: %d bytes, %v", padding, got, err)
		}
	}
}
