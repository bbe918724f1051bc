package iscsi_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"

	"blockgate/backing"
	"blockgate/iscsi"
)

// untouchable is a store that lends memory which must not be touched: whoever
// does so ends the test.
type untouchable struct {
	backing.Store
	mem        []byte // with no rights at all
	lent, out  int
	distrusted int
	lost       error
}

func newUntouchable(t *testing.T) *untouchable {
	t.Helper()
	mem, err := syscall.Mmap(-1, 0, 4<<20, syscall.PROT_NONE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Munmap(mem) })
	return &untouchable{Store: openStore(t, "ram:4M"), mem: mem}
}

func (s *untouchable) LendMapped(off, n int64) []byte {
	if s.distrusted > 0 {
		return nil
	}
	s.lent++
	s.out++
	return s.mem[off:][:n:n]
}

func (s *untouchable) Prompt() bool               { return true }
func (s *untouchable) ReturnMapped([]byte, int64) { s.out-- }
func (s *untouchable) Distrust()                  { s.distrusted++ }

func (s *untouchable) CopyMapped(dst []byte, off int64) error {
	if s.lost != nil {
		s.distrusted++
		return s.lost
	}
	return s.ReadAt(context.Background(), dst, off)
}

// reads makes the machine queue some READs of 4 KiB.
func (l *link) reads(n uint32) (p []byte) {
	for i := range n {
		p = append(p, l.wire(cmdPDU(i, 1+i, 0, rw10(0x28, i*8, 8), 4096, fR), nil)...)
	}
	return p
}

// TestMappedLoansAreNotTouched: what a mapped file lends is copied by the store
// when the transport has to wait, and not taken where it would have to be read.
func TestMappedLoansAreNotTouched(t *testing.T) {
	const n = 16
	for _, digests := range []bool{false, true} {
		s := newUntouchable(t)
		want := pattern(n*4096, 5)
		if err := s.WriteAt(t.Context(), want, 0); err != nil {
			t.Fatal(err)
		}
		l := newRig(t, rigOptions{stores: map[uint64]backing.Store{0: s}, queue: n,
			params: func(p *iscsi.Params) { p.HeaderDigest, p.DataDigest, p.MaxXmitDataSegment = true, digests, 3000 }}).conns[0]
		l.takes, l.meanwhile = 7, func() {}
		l.batchOf(l.reads(n))
		for i := range uint32(n) {
			l.wantRead(i, want[i*4096:][:4096])
		}
		if lent := s.lent > 0; lent == digests {
			t.Errorf("data digests %v: %d loans", digests, s.lent)
		}
		if s.out != 0 {
			t.Errorf("%d loans are not returned", s.out)
		}
	}
}

// TestMappedLoanIsLost: a response that cannot be finished ends the connection,
// and says why; it is not finished with something else.
func TestMappedLoanIsLost(t *testing.T) {
	s := newUntouchable(t)
	s.lost = errors.New("the file has become shorter")
	l := newRig(t, rigOptions{stores: map[uint64]backing.Store{0: s}}).conns[0]
	l.takes, l.meanwhile = 7, func() {}
	l.batchOf(l.reads(4))
	select {
	case why := <-l.aborted:
		if !strings.Contains(why, s.lost.Error()) {
			t.Errorf("it ends with %q", why)
		}
	default:
		t.Fatal("the connection goes on")
	}
	if s.out != 0 {
		t.Errorf("%d loans are not returned", s.out)
	}
	if l.c.BeginSend() {
		t.Error("more is to be sent")
	}
}

// TestLostLoanIsNotSent: nor where it is not the transport that has to wait, but
// another command wants to run.
func TestLostLoanIsNotSent(t *testing.T) {
	s := newUntouchable(t)
	s.lost = errors.New("the file has become shorter")
	l := newRig(t, rigOptions{stores: map[uint64]backing.Store{0: s}}).conns[0]
	p := append(l.reads(2), l.wire(cmdPDU(2, 3, 0, []byte{0, 0, 0, 0, 0, 0}, 0, 0), nil)...)
	if _, err := l.c.Feed(p); err == nil {
		t.Error("the connection goes on")
	}
	if l.c.EndFeed() && l.c.Gather() != nil {
		t.Error("what is lost is sent")
	}
	if s.out != 0 {
		t.Errorf("%d loans are not returned", s.out)
	}
}

// TestSystemRefusesMappedLoan: EFAULT from the system makes the store lend no
// more; any other error does not.
func TestSystemRefusesMappedLoan(t *testing.T) {
	for err, want := range map[error]int{syscall.EFAULT: 4, io.ErrClosedPipe: 0} {
		s := newUntouchable(t)
		l := newRig(t, rigOptions{stores: map[uint64]backing.Store{0: s}}).conns[0]
		if _, err := l.c.Feed(l.reads(4)); err != nil {
			t.Fatal(err)
		}
		if !l.c.EndFeed() || l.c.Gather() == nil {
			t.Fatal("nothing to send")
		}
		l.c.RequestLogout(0)
		l.c.SendFailed(err)
		if l.c.BeginSend() {
			t.Errorf("%v: more is to be sent behind half of a PDU", err)
		}
		if s.distrusted != want || s.out != 0 {
			t.Errorf("%v: %d loans were distrusted, want %d; %d are still out", err, s.distrusted, want, s.out)
		}
	}
}
