package iscsi_test

import (
	"context"
	"testing"

	"blockgate/backing"
	"blockgate/iscsi"
	"blockgate/scsi"
)

func TestMemoryBudgetGivesTaskSetFull(t *testing.T) {
	r := newRig(t, rigOptions{memory: 1 << 20})
	l := r.conns[0]
	l.send(cmdPDU(1, 1, 0, rw10(0x2a, 0, 1024), 512<<10, w), nil)
	l.nothing()
	l.send(cmdPDU(2, 2, 0, rw10(0x28, 0, 1024), 512<<10, fR), nil)
	l.next().wantStatus(t, scsi.TaskSetFull)
	l.send(cmdPDU(3, 3, 0, rw10(0x28, 0, 1), 512, fR), nil)
	l.next().wantStatus(t, scsi.TaskSetFull)
	l.send(cmdPDU(4, 4, 0, rw10(0x2a, 0, 64), 32<<10, fW), make([]byte, 32<<10))
	l.next().wantStatus(t, scsi.TaskSetFull)
	l.send(cmdPDU(5, 5, 0, make([]byte, 6), 0, 0x80), nil)
	l.next().wantStatus(t, scsi.Good)
	l.close()
	if u := r.budget.Used(); u != 0 {
		t.Errorf("%d bytes of the budget are not given back", u)
	}
}

// TestWindowShrinksWithMemory: while the budget fills the initiator is given fewer
// places in its window, one an answer, never taken back what it was promised, and
// gets them again when there is memory.
func TestWindowShrinksWithMemory(t *testing.T) {
	r := newRig(t, rigOptions{memory: 1 << 20, queue: 32, stores: map[uint64]backing.Store{0: openStore(t, "ram:4M"), 1: openStore(t, "ram:4M")}})
	l := r.conns[0]
	sn, last := uint32(0), uint32(0)
	next := func() uint32 { sn++; return sn }
	var open []uint32
	// window is what a command that needs no memory is answered.
	window := func() int {
		t.Helper()
		n := next()
		l.send(cmdPDU(n, n, 0, make([]byte, 6), 0, 0x80), nil)
		p := l.next()
		p.wantStatus(t, scsi.Good)
		if iscsi.SNLess(p.MaxCmdSN(), last) {
			t.Fatalf("MaxCmdSN went back from %d to %d", last, p.MaxCmdSN())
		}
		last = p.MaxCmdSN()
		return int(p.MaxCmdSN()-p.ExpCmdSN()+1) + len(open)
	}
	settled := func() int {
		t.Helper()
		for range 32 {
			window()
		}
		return window()
	}
	gather := func(lun uint64, size uint32) { // a write whose data has not come
		n := next()
		l.send(cmdPDU(n, n, lun<<48, rw10(0x2a, 0, uint16(size/512)), size, w), nil)
		open = append(open, n)
	}
	if n := settled(); n != 32 {
		t.Fatalf("with nothing in memory the window is %d, want 32", n)
	}
	gather(0, 512<<10)
	gather(1, 128<<10)
	for want := 31; want >= 16; want-- {
		if n := window(); n != want {
			t.Fatalf("beyond half of the budget the window is %d, want %d", n, want)
		}
	}
	if n := settled(); n != 16 {
		t.Fatalf("beyond half of the budget the window is %d, want 16", n)
	}
	gather(1, 160<<10)
	if n := settled(); n != 8 {
		t.Fatalf("beyond three quarters of the budget the window is %d, want 8", n)
	}
	for _, itt := range open {
		lun := uint64(1) << 48
		if itt == open[0] {
			lun = 0
		}
		l.send(tmf(1000+itt, sn+1, 1, lun, itt, itt), nil) // immediate
		if p := l.next(); p.Opcode() != iscsi.OpTaskResp || p.Response() != 0 {
			t.Fatalf("ABORT TASK of %d: %v, response %d", itt, p.Opcode(), p.Response())
		}
	}
	open = nil
	if n := settled(); n != 32 {
		t.Fatalf("with memory again the window is %d, want 32", n)
	}
	l.close()
	if u := r.budget.Used(); u != 0 {
		t.Errorf("%d bytes of the budget are not given back", u)
	}
}

// TestHungUnitLeavesMemory: commands for a store that hangs cannot hold all of the
// budget, so that those for another still run.
func TestHungUnitLeavesMemory(t *testing.T) {
	hung := newHung(t)
	r := newRig(t, rigOptions{memory: 1 << 20, stores: map[uint64]backing.Store{0: hung, 1: openStore(t, "ram:4M")}})
	l := r.conns[0]
	const n, size = 14, 64 << 10 // of 16 in the budget
	full := 0
	for i := range uint32(n) {
		l.send(cmdPDU(1+i, 1+i, 0, rw10(0x2a, i*128, 128), size, fW), make([]byte, size))
	}
	// A quarter of the budget for whoever comes first, and what one session gets of
	// one unit while all the others do nothing.
	for range n - 8 {
		l.next().wantStatus(t, scsi.TaskSetFull)
		full++
	}
	l.send(cmdPDU(50, n+1, 1<<48, rw10(0x2a, 0, 128), size, fW), make([]byte, size))
	l.next().wantStatus(t, scsi.Good)
	close(hung.release)
	for range n - full {
		l.next().wantStatus(t, scsi.Good)
	}
	l.close()
	if u := r.budget.Used(); u != 0 {
		t.Errorf("%d bytes of the budget are not given back", u)
	}
}

// hungStore does not return from writes and reads until released.
type hungStore struct {
	backing.Store
	in      chan struct{} // one for each call that arrived
	release chan struct{}
}

func (h *hungStore) WriteAt(_ context.Context, p []byte, off int64) error {
	h.in <- struct{}{}
	<-h.release
	return h.Store.WriteAt(context.Background(), p, off)
}

func (h *hungStore) ReadAt(_ context.Context, p []byte, off int64) error {
	h.in <- struct{}{}
	<-h.release
	return h.Store.ReadAt(context.Background(), p, off)
}

func newHung(t *testing.T) *hungStore {
	return &hungStore{openStore(t, "ram:4M"), make(chan struct{}, 100), make(chan struct{})}
}
