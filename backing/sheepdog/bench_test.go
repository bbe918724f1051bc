package sheepdog_test

import (
	"bufio"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"blockgate/backing"
	"blockgate/backing/sheepdog"
	"blockgate/backing/sheepdog/internal/wire"
	"blockgate/backing/sheepdog/sheepfake"
)

const benchDepth = 32

// BenchmarkRandomRead reads 4 KiB at random places with 32 requests under way,
// through a store and, as what can be had at best, with a client that only writes
// request headers and reads answers in batches. Both talk to the fake over one or two
// unix sockets in the same process, so the fake's work is in both figures.
func BenchmarkRandomRead(b *testing.B) {
	const size = 64 * mib
	r := newRig(b, 1, sheepfake.Options{BlockShift: 22})
	s, err := sheepdog.OpenAt(b.Context(), r.location("disk", 0), backing.OpenOptions{Create: true, CreateSize: size}, sheepdog.Config{})
	ok(b, err)
	defer s.Close()
	for off := int64(0); off < size; off += mib {
		ok(b, s.WriteAt(b.Context(), fill(mib, 1), off))
	}
	b.Run("store", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(4096)
		var left atomic.Int64
		left.Store(int64(b.N))
		var wg sync.WaitGroup
		for range benchDepth {
			wg.Go(func() {
				p := make([]byte, 4096)
				rng := rand.New(rand.NewPCG(1, 2))
				for left.Add(-1) >= 0 {
					if err := s.ReadAt(b.Context(), p, rng.Int64N(size/4096)*4096); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
	b.Run("bare", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(4096)
		network, address := r.sheep[0].Addr()
		nc, err := net.Dial(network, address)
		ok(b, err)
		defer nc.Close()
		bare(b, nc, size)
	})
}

// bare keeps benchDepth requests under way: one more for each answer, sent when no
// answer is left in the buffer.
func bare(b *testing.B, nc net.Conn, size int64) {
	rng := rand.New(rand.NewPCG(1, 2))
	in, out := bufio.NewReaderSize(nc, 256<<10), bufio.NewWriterSize(nc, 64<<10)
	vid := lookup(b, in, nc)
	p := make([]byte, 4096)
	send := func() {
		off := rng.Int64N(size/4096) * 4096
		var h [wire.HeaderSize]byte
		(&wire.Request{Op: wire.OpRead, OID: wire.DataOID(vid, uint32(off>>22)), Offset: uint32(off & (4*mib - 1)), Length: 4096}).Put(&h)
		_, _ = out.Write(h[:])
	}
	sent := min(b.N, benchDepth)
	for range sent {
		send()
	}
	ok(b, out.Flush())
	for range b.N {
		var h [wire.HeaderSize]byte
		_, err := io.ReadFull(in, h[:])
		ok(b, err)
		if resp := wire.ParseResponse(&h); resp.Result != wire.Success || resp.Length != 4096 {
			b.Fatalf("answer %+v", resp)
		}
		_, err = io.ReadFull(in, p)
		ok(b, err)
		if sent < b.N {
			send()
			sent++
		}
		if in.Buffered() < wire.HeaderSize {
			ok(b, out.Flush())
		}
	}
}

func lookup(b *testing.B, in io.Reader, nc net.Conn) uint32 {
	var h [wire.HeaderSize]byte
	(&wire.Request{Op: wire.OpGetVDIInfo, Flags: wire.FlagWrite, Length: 512}).Put(&h)
	_, err := nc.Write(append(h[:], wire.PutNames("disk", "")...))
	ok(b, err)
	_, err = io.ReadFull(in, h[:])
	ok(b, err)
	return wire.ParseResponse(&h).VID
}

// BenchmarkRandomWrite writes 4 KiB at random places of objects that exist, at
// depth 32.
func BenchmarkRandomWrite(b *testing.B) {
	const size = 64 * mib
	r := newRig(b, 1, sheepfake.Options{BlockShift: 22})
	s, err := sheepdog.OpenAt(b.Context(), r.location("disk", 0), backing.OpenOptions{Create: true, CreateSize: size}, sheepdog.Config{})
	ok(b, err)
	defer s.Close()
	for off := int64(0); off < size; off += mib {
		ok(b, s.WriteAt(b.Context(), fill(mib, 1), off))
	}
	b.ReportAllocs()
	b.SetBytes(4096)
	b.ResetTimer()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	for range benchDepth {
		wg.Go(func() {
			p := fill(4096, 2)
			rng := rand.New(rand.NewPCG(1, 2))
			for left.Add(-1) >= 0 {
				if err := s.WriteAt(b.Context(), p, rng.Int64N(size/4096)*4096); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
