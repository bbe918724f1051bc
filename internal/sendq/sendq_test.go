package sendq_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"

	"blockgate/internal/sendq"
)

type request struct {
	sendq.Ticket
	payload []byte
}

func (r *request) AppendHead(b []byte) []byte {
	return binary.BigEndian.AppendUint32(b, uint32(len(r.payload)))
}
func (r *request) Payload() []byte { return r.payload }

// TestRequestsArriveWhole: of many senders, with payloads that are copied and such
// that are sent in place.
func TestRequestsArriveWhole(t *testing.T) {
	here, there := net.Pipe()
	defer here.Close()
	q := sendq.New(here, 0, func(err error) { t.Error(err) })
	const senders, each = 8, 20
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			for i := range each {
				r := &request{payload: bytes.Repeat([]byte{byte(s)}, (i%3)*sendq.CopyLimit+i+1)}
				r.Begin(r.payload)
				q.Send(r)
				r.Leave() // nobody answers
				r.Wait()
				clear(r.payload) // ours again: a late reader would show
			}
		})
	}
	seen := map[byte]int{}
	for range senders * each {
		var h [4]byte
		if _, err := io.ReadFull(there, h[:]); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, binary.BigEndian.Uint32(h[:]))
		if _, err := io.ReadFull(there, p); err != nil {
			t.Fatal(err)
		}
		if len(bytes.Trim(p, string(p[:1]))) != 0 || len(p) != seen[p[0]]%3*sendq.CopyLimit+seen[p[0]]+1 {
			t.Fatalf("%d bytes of sender %d as its request %d", len(p), p[0], seen[p[0]])
		}
		seen[p[0]]++
	}
	wg.Wait()
}

// TestLostConnection: the queue lets go of what it could not send.
func TestLostConnection(t *testing.T) {
	here, there := net.Pipe()
	there.Close()
	failed := 0
	q := sendq.New(here, 0, func(error) { failed++; here.Close() })
	for range 2 {
		r := &request{payload: make([]byte, sendq.CopyLimit+1)}
		r.Begin(r.payload)
		q.Send(r)
		r.Leave()
		r.Wait()
	}
	refused := &request{payload: make([]byte, sendq.CopyLimit+1)}
	refused.Begin(refused.payload)
	refused.Refuse()
	refused.Wait()
	if failed == 0 {
		t.Error("nobody was told")
	}
}
