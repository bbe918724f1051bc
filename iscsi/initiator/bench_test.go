package initiator

import (
	"context"
	"net"
	"sync"
	"testing"

	"blockgate/iscsi"
)

// overTCP starts a session with quick over a loopback connection.
func overTCP(tb testing.TB, p iscsi.Params) *Session {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		if nc, err := ln.Accept(); err == nil {
			quick(nc, p)
			nc.Close()
		}
	})
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	r := NewRaw(nc)
	r.Params, r.TSIH, r.CmdSN, r.ExpCmdSN, r.MaxCmdSN, r.ExpStatSN = p, 1, 10, 10, 200, 100
	s := &Session{cfg: Config{TargetName: "iqn.2025-01.test:q"}.filled()}
	s.log = s.cfg.Logger
	s.start(r, "tcp")
	tb.Cleanup(func() { s.Close(); wg.Wait() })
	return s
}

// load keeps depth commands of size bytes out until n are done.
func load(tb testing.TB, s *Session, n, depth, size int, op byte) {
	var (
		mu   sync.Mutex
		left = n
		wg   sync.WaitGroup
	)
	again := func(c *Command) {
		if err := c.Failure(); err != nil {
			tb.Error(err)
			wg.Done()
			return
		}
		mu.Lock()
		left--
		more := left >= 0
		mu.Unlock()
		if !more || s.Submit(c) != nil {
			wg.Done()
		}
	}
	for range min(depth, n) {
		c := &Command{CDB: PutCDB16(make([]byte, 16), op, 0, uint32(size/512)), Done: again}
		if op == opRead16 {
			c.In = make([]byte, size)
		} else {
			c.Out = make([]byte, size)
		}
		wg.Add(1)
		left--
		if err := s.Submit(c); err != nil {
			tb.Fatal(err)
		}
	}
	wg.Wait()
}

func benchmarkLoad(b *testing.B, depth, size int, op byte, change func(*iscsi.Params)) {
	p := DefaultParams()
	p.MaxXmitDataSegment, p.MaxRecvDataSegment = 256<<10, 1<<20
	if change != nil {
		change(&p)
	}
	s := overTCP(b, p)
	load(b, s, 4*depth, depth, size, op)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	load(b, s, b.N, depth, size, op)
}

func BenchmarkRead4K(b *testing.B)  { benchmarkLoad(b, 32, 4096, opRead16, nil) }
func BenchmarkWrite4K(b *testing.B) { benchmarkLoad(b, 32, 4096, opWrite16, nil) }
func BenchmarkRead4KDepth1(b *testing.B) {
	benchmarkLoad(b, 1, 4096, opRead16, nil)
}
func BenchmarkRead4KDigests(b *testing.B) {
	benchmarkLoad(b, 32, 4096, opRead16, func(p *iscsi.Params) { p.HeaderDigest, p.DataDigest = true, true })
}
func BenchmarkRead1M(b *testing.B) { benchmarkLoad(b, 8, 1<<20, opRead16, nil) }

// TestNoAllocations: a command that is used again costs no memory.
func TestNoAllocations(t *testing.T) {
	s := overTCP(t, DefaultParams())
	c := read(4096)
	ctx := context.Background()
	run := func() {
		if err := s.Execute(ctx, &c); err != nil || !c.Good() {
			t.Fatal(err, c.Failure())
		}
	}
	for range 100 {
		run()
	}
	// The race detector has pools drop what is put into them.
	if n := testing.AllocsPerRun(500, run); n >= 1 && !raceEnabled {
		t.Errorf("%v allocations a command", n)
	}
}
