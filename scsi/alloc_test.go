package scsi_test

import (
	"testing"

	"blockgate/scsi"
)

// slot is a transport's task that is used again and again.
type slot struct {
	task scsi.Task
	cdb  [16]byte
	done int
}

func (s *slot) TaskDone(*scsi.Task) { s.done++ }

func (s *slot) execute(n *scsi.Nexus, cdb, out []byte) {
	t := &s.task
	t.CDB = s.cdb[:copy(s.cdb[:], cdb)]
	t.Attr, t.MaxIn, t.MaxOut, t.Transport = scsi.Simple, 1<<16, int64(len(out)), s
	if n.Admit(t) {
		t.Out = out
		t.Run()
	}
	t.Reset()
}

func promptRig(t testing.TB) (*rig, *host) {
	r := newRig(t, func(c *scsi.UnitConfig) { c.Store.(*gatedStore).prompt = true })
	return r, r.login("a")
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	r, h := promptRig(t)
	s := &slot{}
	data := make([]byte, 4096)
	for name, c := range map[string]struct{ cdb, out []byte }{
		"TEST UNIT READY": {tur, nil}, "READ(10)": {read10(8, 8), nil}, "WRITE(10)": {write10(8, 8), data},
	} {
		if n := testing.AllocsPerRun(200, func() { s.execute(h.nx, c.cdb, c.out) }); n > 0.1 && !raceEnabled {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	if r.unit.Busy() || s.done == 0 {
		t.Errorf("busy %v, %d done", r.unit.Busy(), s.done)
	}
}

func BenchmarkTestUnitReady(b *testing.B) {
	_, h := promptRig(b)
	s := &slot{}
	b.ReportAllocs()
	for b.Loop() {
		s.execute(h.nx, tur, nil)
	}
}

func BenchmarkRead4K(b *testing.B) {
	_, h := promptRig(b)
	s := &slot{}
	cdb := read10(8, 8)
	b.ReportAllocs()
	b.SetBytes(4096)
	for b.Loop() {
		s.execute(h.nx, cdb, nil)
	}
}
