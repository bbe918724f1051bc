package server_test

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"blockgate/backing"
	"blockgate/iscsi"
)

// unreadable is a store that lends what it cannot read again.
type unreadable struct {
	backing.Store
	mem        []byte
	out, asked atomic.Int64
}

var errCutOff = errors.New("the file has become shorter")

func (s *unreadable) Prompt() bool { return false }

func (s *unreadable) LendMapped(off, n int64) []byte {
	s.out.Add(1)
	return s.mem[off:][:n:n]
}

func (s *unreadable) ReturnMapped([]byte, int64) { s.out.Add(-1) }
func (s *unreadable) Distrust()                  {}

func (s *unreadable) CopyMapped([]byte, int64) error {
	s.asked.Add(1)
	return errCutOff
}

func (s *unreadable) ReadAt(context.Context, []byte, int64) error { return errCutOff }

// TestLoanThatIsLostBehindAFullSocket: when a peer does not read, what is on loan
// has to be copied, and if that cannot be done the connection ends there and then.
func TestLoanThatIsLostBehindAFullSocket(t *testing.T) {
	const size, n = 16 << 20, 16
	s := &unreadable{Store: memory(t, size), mem: make([]byte, size)}
	for i := range s.mem {
		s.mem[i] = 0xa5
	}
	r := serve(t, options{stores: []backing.Store{s}})
	slow := r.asksForAll("slow", size, n)
	r.logs.wait(t, 1, "connection closed", errCutOff.Error())
	for {
		p, err := slow.Recv()
		if err != nil {
			break
		}
		if p.Opcode() == iscsi.OpDataIn && len(bytes.Trim(p.Data, "\xa5")) > 0 {
			t.Fatal("what was lost is made up")
		}
	}
	if s.asked.Load() == 0 {
		t.Error("nothing had to be copied")
	}
	if n := s.out.Load(); n != 0 {
		t.Errorf("%d loans are not returned", n)
	}
}
