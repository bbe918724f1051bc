package iscsi_test

import (
	"sync/atomic"
	"testing"

	"blockgate/backing"
	"blockgate/iscsi"
)

// beginner is a store that begins reads and writes by itself, at once.
type beginner struct {
	backing.Store
	begun atomic.Int64
}

func (s *beginner) Starter() backing.Starter { return s }
func (s *beginner) Depth() int               { return 64 }

func (s *beginner) Start(ios []*backing.IO) {
	for _, io := range ios {
		s.begun.Add(1)
		var err error
		if io.Write {
			err = s.WriteAt(io.Ctx, io.P, io.Off)
		} else {
			err = s.ReadAt(io.Ctx, io.P, io.Off)
		}
		io.Done.IODone(io, err)
	}
}

// TestCommandRunByAnotherConnection: an initiator that uses a task tag twice can have
// one connection's reader bring the end of another's command. What is gathered for
// the store belongs to one reader; the command must neither be left there, where
// nobody may look for it again, nor be put there from two goroutines.
func TestCommandRunByAnotherConnection(t *testing.T) {
	s := &beginner{Store: openStore(t, "ram:1M")}
	r := newRig(t, rigOptions{conns: 2, stores: map[uint64]backing.Store{0: s}, params: func(p *iscsi.Params) {
		p.InitialR2T, p.ImmediateData, p.MaxConnections = false, true, 2
	}})
	a, b := r.conns[0], r.conns[1]
	b.send(cmdPDU(5, 1, 0, rw10(0x2a, 0, 1), 512, w), nil)
	b.send(cmdPDU(5, 3, 0, rw10(0x2a, 1, 1), 512, w), nil) // waits for CmdSN 2
	b.send(dataOut(5, iscsi.ReservedTag, 0, 0, true), pattern(512, 1))
	if n := s.begun.Load(); n != 0 {
		t.Fatalf("%d writes were begun before CmdSN 2", n)
	}
	a.send(cmdPDU(1, 2, 0, make([]byte, 6), 0, 0x80), nil)
	a.next().want(t, iscsi.OpSCSIResp, 1)
	if n := s.begun.Load(); n != 1 {
		t.Fatalf("%d writes were begun, want 1", n)
	}
	b.next().want(t, iscsi.OpReject, iscsi.ReservedTag)
	b.next().want(t, iscsi.OpSCSIResp, 5)
}
