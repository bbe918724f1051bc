package brpc

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The bytes of a request as brpc's own C++ client and the protocol's description
// have them.
func TestRequestBytes(t *testing.T) {
	got := AppendRequest(nil, "S", "M", 7, []byte{0x08, 0x01}, 3)
	want := "50525043" + "00000011" + "0000000c" + // PRPC, size of the body and of meta
		"0a06" + "0a0153" + "12014d" + // request {service, method}
		"2007" + "2803" + // correlation id, size of the attachment
		"0801"
	if hex.EncodeToString(got) != want {
		t.Errorf("got  %x\nwant %s", got, want)
	}
}

func TestNegativeEnum(t *testing.T) {
	b := AppendInt(nil, 1, -1)
	if want := "08ffffffffffffffffff01"; hex.EncodeToString(b) != want {
		t.Errorf("-1 is %x, want %s", b, want)
	}
	f, rest, err := Next(b)
	if err != nil || len(rest) != 0 || f.Int32() != -1 {
		t.Errorf("-1 comes back as %d, %v", f.Int32(), err)
	}
}

func FuzzMessage(f *testing.F) {
	f.Add(AppendBytes(AppendUint(AppendInt(nil, 1, -1), 2, 1<<40), 3, "text"))
	f.Add([]byte{0x0d, 1, 2, 3, 4, 0x11, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(t *testing.T, b []byte) {
		for n := 0; len(b) > 0; n++ {
			fld, rest, err := Next(b)
			if err != nil {
				return
			}
			if len(rest) >= len(b) || fld.Num <= 0 || len(fld.Bytes) > len(b) {
				t.Fatalf("field %+v of %x leaves %x", fld, b, rest)
			}
			b = rest
		}
	})
}

func FuzzFrame(f *testing.F) {
	f.Add(AppendRequest(nil, "nebd.client.NebdFileService", "Read", 1, []byte{8, 1}, 0))
	f.Add(AppendResponse(nil, 1002, "no such method", 9, nil, 0))
	f.Add(append(AppendResponse(nil, 0, "", 9, []byte{8, 0}, 4), 1, 2, 3, 4))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderSize {
			return
		}
		h, err := ParseHeader((*[HeaderSize]byte)(b))
		if err != nil || len(b) < HeaderSize+h.Meta {
			return
		}
		m, err := ParseMeta(b[HeaderSize:][:h.Meta])
		if err != nil {
			return
		}
		if m.Attachment < 0 || m.Attachment > MaxBody || h.Body < h.Meta {
			t.Fatalf("%+v %+v", h, m)
		}
	})
}

// FuzzAnswers gives a connection whatever comes: it neither panics nor hangs nor
// writes past the call's buffer.
func FuzzAnswers(f *testing.F) {
	f.Add(append(AppendResponse(nil, 0, "", 1, []byte{8, 0}, 4), 1, 2, 3, 4))
	f.Add(append(AppendResponse(nil, 0, "", 1, []byte{8, 0}, 40), make([]byte, 40)...))
	f.Add(AppendResponse(nil, 2003, "stopping", 1, nil, 0))
	f.Add(AppendResponse(nil, 0, "", 2, []byte{8, 0}, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		here, there := net.Pipe()
		c := NewConn(here, time.Second)
		go func() {
			_, _ = there.Write(b)
			there.Close()
		}()
		go func() { _, _ = io.Copy(io.Discard, there) }()
		room := bytes.Repeat([]byte{0xaa}, 64)
		x := Call{Service: "S", Method: "M", In: room[16:32], Deadline: time.Now().Add(5 * time.Second)}
		c.Do(&x)
		c.Close()
		if errors.Is(x.Err, ErrUnanswered) {
			t.Error("waited for an answer on a connection that had ended")
		}
		for i, v := range room {
			if (i < 16 || i >= 32) && v != 0xaa {
				t.Fatalf("byte %d outside of the buffer was changed", i-16)
			}
		}
	})
}

// A call that changes something and is late ends the connection, any other does
// not; the late answer is skipped.
func TestDeadlines(t *testing.T) {
	here, there := net.Pipe()
	c := NewConn(here, time.Millisecond)
	defer c.Close()
	got := make(chan uint64)
	go func() {
		defer close(got)
		for {
			var h [HeaderSize]byte
			if _, err := io.ReadFull(there, h[:]); err != nil {
				return
			}
			head, err := ParseHeader(&h)
			if err != nil {
				return
			}
			b := make([]byte, head.Body)
			if _, err := io.ReadFull(there, b); err != nil {
				return
			}
			m, err := ParseMeta(b[:head.Meta])
			if err != nil {
				return
			}
			got <- m.ID
		}
	}()
	soon := func() time.Time { return time.Now().Add(10 * time.Millisecond) }
	x := Call{Service: "S", Method: "M", In: make([]byte, 4), Deadline: soon()}
	var first uint64
	taken := make(chan struct{})
	go func() { first = <-got; close(taken) }()
	if c.Do(&x); !errors.Is(x.Err, ErrUnanswered) {
		t.Fatalf("error %v, want ErrUnanswered", x.Err)
	}
	<-taken
	x = Call{Service: "S", Method: "M"}
	go func() {
		id := <-got
		_, _ = there.Write(append(AppendResponse(nil, 0, "", first, []byte{8, 0}, 4), 1, 2, 3, 4))
		_, _ = there.Write(AppendResponse(nil, 0, "", id, []byte{8, 0}, 0))
	}()
	if c.Do(&x); x.Err != nil || string(x.Reply) != "\x08\x00" {
		t.Fatalf("after a late answer: %v, %x", x.Err, x.Reply)
	}
	x = Call{Service: "S", Method: "M", Changes: true, Deadline: soon()}
	go func() { <-got }()
	if c.Do(&x); !errors.Is(x.Err, ErrUnanswered) {
		t.Fatalf("error %v, want ErrUnanswered", x.Err)
	}
	<-c.Failed()
	if !c.Dirty() {
		t.Error("a change was lost and the connection is not dirty")
	}
	if c.Do(&x); !errors.Is(x.Err, ErrLost) {
		t.Errorf("a call on a connection that failed: %v", x.Err)
	}
	there.Close()
}
