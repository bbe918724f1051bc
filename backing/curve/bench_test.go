package curve_test

import (
	"bufio"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"blockgate/backing/curve"
	"blockgate/backing/curve/internal/brpc"
	"blockgate/backing/curve/internal/nebd"
	"blockgate/backing/curve/nebdfake"
)

const (
	benchDepth = 32
	benchSize  = 64 << 20
)

func benchVolume(b *testing.B) (*rig, curve.Location) {
	b.Helper()
	r := newRig(b, nebdfake.Options{})
	l := r.volume(benchSize, 4096)
	s := open(b, l, exclusive)
	for off := int64(0); off < benchSize; off += 1 << 20 {
		ok(b, s.WriteAt(b.Context(), fill(1<<20, 1), off))
	}
	ok(b, s.Close())
	return r, l
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// report tells requests a second, and the CPU time of client and server for one.
func report(b *testing.B, before time.Duration) {
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
	b.ReportMetric(float64((cpu()-before).Nanoseconds())/float64(b.N), "cpu-ns/req")
}

// BenchmarkRead4K reads 4 KiB at random with 32 requests under way, from the fake
// on a unix socket in the same process: through a Store, and with a client that
// does no more than send frames made beforehand, 32 at a time, and read the
// answers.
func BenchmarkRead4K(b *testing.B) {
	b.Run("Store", func(b *testing.B) {
		_, l := benchVolume(b)
		s := open(b, l, exclusive)
		b.ReportAllocs()
		before := cpu()
		b.ResetTimer()
		var wg sync.WaitGroup
		var n atomic.Int64
		for w := range benchDepth {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(1, uint64(w)))
				p := make([]byte, 4096)
				for n.Add(1) <= int64(b.N) {
					if err := s.ReadAt(context.Background(), p, rng.Int64N(benchSize/4096)*4096); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		report(b, before)
	})
	b.Run("Bare", func(b *testing.B) {
		r, l := benchVolume(b)
		nc, err := net.Dial("unix", r.socket)
		ok(b, err)
		defer nc.Close()
		in := bufio.NewReaderSize(nc, 256<<10)
		p := make([]byte, 4096)
		take := func() nebd.Response {
			var h [brpc.HeaderSize]byte
			_, err := io.ReadFull(in, h[:])
			ok(b, err)
			head, err := brpc.ParseHeader(&h)
			ok(b, err)
			meta, err := in.Peek(head.Meta)
			ok(b, err)
			m, err := brpc.ParseMeta(meta)
			ok(b, err)
			_, _ = in.Discard(head.Meta)
			msg, err := in.Peek(head.Body - head.Meta - m.Attachment)
			ok(b, err)
			resp, err := nebd.ParseResponse(msg)
			ok(b, err)
			_, _ = in.Discard(len(msg))
			_, err = io.ReadFull(in, p[:m.Attachment])
			ok(b, err)
			return resp
		}
		_, err = nc.Write(brpc.AppendRequest(nil, nebd.Service, nebd.OpenFile, 1, nebd.AppendOpen(nil, l.Name()), 0))
		ok(b, err)
		fd := take().FD
		rng := rand.New(rand.NewPCG(1, 1))
		var batches [64][]byte
		for i := range batches {
			for k := range benchDepth {
				msg := nebd.AppendIO(nil, fd, rng.Uint64N(benchSize/4096)*4096, 4096)
				batches[i] = brpc.AppendRequest(batches[i], nebd.Service, nebd.Read, uint64(k), msg, 0)
			}
		}
		b.ReportAllocs()
		before := cpu()
		b.ResetTimer()
		for i := 0; i*benchDepth < b.N; i++ {
			_, err := nc.Write(batches[i%len(batches)])
			ok(b, err)
			for range benchDepth {
				take()
			}
		}
		report(b, before)
	})
}
