package iscsi_test

import (
	"testing"

	"blockgate/iscsi"
)

// batch is PDUs that are fed together, again and again, with new CmdSNs.
type batch struct {
	l     *link
	wire  []byte
	at    []int // where each header is
	cmdSN uint32
}

func newBatch(t testing.TB, n int, op byte, flags byte, data []byte) *batch {
	r := newRig(t, rigOptions{params: func(p *iscsi.Params) { p.ImmediateData = true }})
	b := &batch{l: r.conns[0], cmdSN: 1}
	for i := range n {
		b.at = append(b.at, len(b.wire))
		b.wire = append(b.wire, b.l.wire(cmdPDU(uint32(i), 0, 0, rw10(op, uint32(i)*8, 8), 4096, flags), data)...)
	}
	return b
}

// run feeds the batch and throws away what comes out; it returns how many bytes
// these were.
func (b *batch) run(t testing.TB) (sent int) {
	for _, at := range b.at {
		(*iscsi.BHS)(b.wire[at:]).SetCmdSN(b.cmdSN)
		b.cmdSN++
	}
	for p := b.wire; len(p) > 0; {
		n, err := b.l.c.Feed(p)
		if p = p[n:]; err != nil || len(p) > 0 && !b.l.c.Again() {
			t.Fatalf("Feed left %d of %d bytes: %v", len(p), len(b.wire), err)
		}
		if b.l.c.EndFeed() || b.l.c.BeginSend() {
			for iov := b.l.c.Gather(); iov != nil; iov = b.l.c.Gather() {
				for _, v := range iov {
					sent += len(v)
				}
			}
		}
	}
	return sent
}

// TestAnswersLeaveWhileMoreIsToDo: of many commands that came together the first
// are answered before the last have run.
func TestAnswersLeaveWhileMoreIsToDo(t *testing.T) {
	b := newBatch(t, 40, 0x28, fR, nil)
	for i, at := range b.at {
		(*iscsi.BHS)(b.wire[at:]).SetCmdSN(b.cmdSN + uint32(i))
	}
	n, err := b.l.c.Feed(b.wire)
	if err != nil || n != 16*iscsi.BHSLen || !b.l.c.Again() {
		t.Errorf("Feed took %d bytes (%v) and Again is %v, want 16 commands and true", n, err, b.l.c.Again())
	}
	if n, err = b.l.c.Feed(b.wire[n:][:4*iscsi.BHSLen]); err != nil || n != 4*iscsi.BHSLen || b.l.c.Again() {
		t.Errorf("Feed took %d bytes (%v) of 4 commands and Again is %v, want all and false", n, err, b.l.c.Again())
	}
}

// TestSteadyStateDoesNotAllocate: 4 KiB reads and writes of a store that answers
// at once cost no memory.
func TestSteadyStateDoesNotAllocate(t *testing.T) {
	for _, tc := range []struct {
		name      string
		op, flags byte
		data      []byte
		want      int // bytes sent for a command
	}{
		{"read", 0x28, fR, nil, 48 + 4096},
		{"write", 0x2a, fW, pattern(4096, 1), 48},
	} {
		t.Run(tc.name, func(t *testing.T) {
			const n = 32
			b := newBatch(t, n, tc.op, tc.flags, tc.data)
			for range 10 {
				if sent := b.run(t); sent != n*tc.want {
					t.Fatalf("%d bytes sent, want %d", sent, n*tc.want)
				}
			}
			per := testing.AllocsPerRun(200, func() { b.run(t) }) / n
			t.Logf("%.3f allocations a command", per)
			// Pools lose things under the race detector, and at times to a collection.
			if per > 0.1 && !raceEnabled {
				t.Errorf("%.3f allocations a command", per)
			}
		})
	}
}

func benchmarkTarget(b *testing.B, depth int, op, flags byte, data []byte) {
	f := newBatch(b, depth, op, flags, data)
	b.SetBytes(4096)
	b.ReportAllocs()
	for i := 0; i < b.N; i += depth {
		f.run(b)
	}
}

func BenchmarkTargetRead4K(b *testing.B)  { benchmarkTarget(b, 32, 0x28, fR, nil) }
func BenchmarkTargetWrite4K(b *testing.B) { benchmarkTarget(b, 32, 0x2a, fW, pattern(4096, 1)) }
func BenchmarkTargetRead4KDepth1(b *testing.B) {
	benchmarkTarget(b, 1, 0x28, fR, nil)
}
func BenchmarkTargetWrite4KDepth1(b *testing.B) {
	benchmarkTarget(b, 1, 0x2a, fW, pattern(4096, 1))
}
