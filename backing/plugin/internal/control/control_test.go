package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"

	"blockgate/backing"
)

func frame(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

func FuzzRead(f *testing.F) {
	f.Add(frame([]byte(`{"id":1,"op":"ping"}`)))
	f.Add(frame([]byte(`{"op":"changed","body":{"size":-1,"state":9}}`)))
	f.Add(frame([]byte(`{"id":2,"error":{"kind":"busy","text":"x"}}`)))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0, 0, 0, 5, '{'})
	f.Fuzz(func(t *testing.T, in []byte) {
		m, err := Read(bytes.NewReader(in))
		if err != nil {
			return
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatalf("%+v cannot be sent: %v", m, err)
		}
		n, err := Read(bytes.NewReader(frame(again)))
		if err != nil || n.ID != m.ID || n.Op != m.Op {
			t.Fatalf("%+v became %+v, %v", m, n, err)
		}
	})
}

func TestFramesAreBounded(t *testing.T) {
	for _, c := range []struct {
		in   []byte
		want error
	}{
		{binary.BigEndian.AppendUint32(nil, MaxMessage+1), ErrFrame},
		{make([]byte, 8), ErrFrame},
		{frame([]byte("no json")), ErrFrame},
		{[]byte{0, 0, 0, 9, '{'}, io.ErrUnexpectedEOF},
		{nil, io.EOF},
	} {
		if _, err := Read(bytes.NewReader(c.in)); !errors.Is(err, c.want) {
			t.Errorf("%x: %v, want %v", c.in, err, c.want)
		}
	}
	ours, theirs := net.Pipe()
	defer theirs.Close()
	if err := NewConn(ours).Send(Message{ID: 1}, make([]byte, MaxMessage)); err == nil {
		t.Error("a message that is too long was sent")
	}
	// The longest there is fits.
	b, err := json.Marshal(CompareWrite{Off: 1 << 62, Old: make([]byte, MaxCompare), New: make([]byte, MaxCompare)})
	if err != nil || len(b) > MaxMessage-100 {
		t.Errorf("a compare-and-write has %d bytes, %v", len(b), err)
	}
}

// Errors of the package backing keep their meaning on the way.
func TestErrorsKeepTheirMeaning(t *testing.T) {
	for _, k := range kinds() {
		b, err := json.Marshal(ErrorOf(fmt.Errorf("image a: %w", k.err)))
		if err != nil {
			t.Fatal(err)
		}
		var e Error
		if err := json.Unmarshal(b, &e); err != nil || !errors.Is(&e, k.err) {
			t.Errorf("%s: %v, %v", k.name, &e, err)
		}
	}
	e := ErrorOf(Missing("install x"))
	if !errors.Is(e, ErrMissing) || !errors.Is(e, backing.ErrNotSupported) || e.Error() != "install x" {
		t.Errorf("%v is not what is missing", e)
	}
	if e := ErrorOf(errors.New(string(bytes.Repeat([]byte("x"), 1<<20)))); len(e.Text) > MaxError+8 || e.Unwrap() != nil {
		t.Errorf("an error of %d bytes, %v", len(e.Text), e.Unwrap())
	}
	if ErrorOf(nil) != nil {
		t.Error("no error is one")
	}
}

func TestCapabilitiesByName(t *testing.T) {
	for _, c := range []backing.Caps{0, backing.CapsAll, backing.CapDiscard | backing.CapSnapshot} {
		if got := CapsOf(append(CapNames(c), "of-the-future")); got != c {
			t.Errorf("%v became %v", c, got)
		}
	}
	if n := CapNames(backing.CapWriteFUA); !slices.Equal(n, []string{"write-fua"}) {
		t.Error(n)
	}
}

// A peer that reads nothing has half of a frame: the channel has ended.
func TestSendFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		c := NewClient(NewConn(ours), func(Message) {})
		if err := c.Call(t.Context(), OpRefresh, nil, nil); !errors.Is(err, ErrGone) {
			t.Error(err)
		}
		synctest.Wait()
		select {
		case <-c.Done():
		default:
			t.Error("nobody is told")
		}
		c.Close()
	})
}

// Every call ends when the other side goes, and when its context does.
func TestClientEnds(t *testing.T) {
	ours, theirs := net.Pipe()
	c := NewClient(NewConn(ours), func(Message) {})
	ctx, cancel := context.WithCancel(t.Context())
	sent := make(chan Message, 2)
	go func() {
		for {
			m, err := Read(theirs)
			if err != nil {
				return
			}
			sent <- m
		}
	}()
	done := make(chan error, 2)
	go func() { done <- c.Call(ctx, OpRefresh, nil, nil) }()
	<-sent
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	go func() { done <- c.Call(t.Context(), OpRefresh, nil, nil) }()
	<-sent
	theirs.Close()
	if err := <-done; !errors.Is(err, ErrGone) {
		t.Error(err)
	}
	if err := c.Call(t.Context(), OpPing, nil, nil); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
	c.Close()
}
