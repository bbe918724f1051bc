package crc32c

import (
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// reference is what hash/crc32 says.
func reference(crc uint32, p []byte) uint32 {
	return crc32.Update(crc, crc32.MakeTable(crc32.Castagnoli), p)
}

func TestUpdate(t *testing.T) {
	if got := Update(0, []byte("123456789")); got != 0xe3069283 {
		t.Errorf("check value %08x, not e3069283", got)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, 70000)
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
	check := func(crc uint32, p []byte) {
		t.Helper()
		if got, want := Update(crc, p), reference(crc, p); got != want {
			t.Fatalf("%d bytes after %08x: %08x, not %08x", len(p), crc, got, want)
		}
	}
	for n := range 2100 {
		check(0, p[:n])
		check(rnd.Uint32(), p[n%67:][:n])
	}
	for range 200 {
		at := rnd.IntN(4096)
		check(rnd.Uint32(), p[at:at+rnd.IntN(len(p)-at)])
	}
	if n := testing.AllocsPerRun(100, func() { Update(0, p[:4096]) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestZeroesAndOnes: the RFC's vectors are of 32 bytes (RFC 7143 appendix A.4);
// blocks of the same are where a lost bit of the state would show.
func TestZeroesAndOnes(t *testing.T) {
	for _, b := range []byte{0, 0xff} {
		p := make([]byte, 8192)
		for i := range p {
			p[i] = b
		}
		for n := 512; n <= len(p); n += 256 {
			for bit := range 32 {
				if got, want := Update(1<<bit, p[:n]), reference(1<<bit, p[:n]); got != want {
					t.Fatalf("%d bytes %02x after bit %d: %08x, not %08x", n, b, bit, got, want)
				}
			}
		}
	}
}

func FuzzUpdate(f *testing.F) {
	f.Add(uint32(0), []byte("123456789"), uint16(1))
	f.Add(^uint32(0), make([]byte, 300), uint16(700))
	f.Fuzz(func(t *testing.T, crc uint32, p []byte, times uint16) {
		var long []byte
		for len(p) > 0 && len(long) < int(times) {
			long = append(long, p...)
		}
		long = append(long, p...)
		if got, want := Update(crc, long), reference(crc, long); got != want {
			t.Errorf("%d bytes after %08x: %08x, not %08x", len(long), crc, got, want)
		}
		cut := int(times) % (len(long) + 1)
		if got, want := Update(Update(crc, long[:cut]), long[cut:]), reference(crc, long); got != want {
			t.Errorf("%d bytes cut at %d: %08x, not %08x", len(long), cut, got, want)
		}
	})
}

// benchmark takes pieces from all over memory that is larger than the second-level
// cache by far (cold), or the same one each time.
func benchmark(b *testing.B, cold bool, size int, update func(uint32, []byte) uint32) {
	p := make([]byte, 1<<30)
	for i := 0; i < len(p); i += 4096 {
		p[i] = byte(i >> 12)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	b.SetBytes(int64(size))
	b.ResetTimer()
	at := 0
	for range b.N {
		if cold {
			at = int(rnd.Uint32N(uint32(len(p)/size))) * size
		}
		update(0, p[at:at+size])
	}
}

func BenchmarkUpdate(b *testing.B) {
	for _, way := range []struct {
		name   string
		cold   bool
		update func(uint32, []byte) uint32
	}{
		{"here/warm", false, Update}, {"hash/warm", false, reference},
		{"here/cold", true, Update}, {"hash/cold", true, reference},
	} {
		for _, size := range []int{512, 4096} {
			b.Run(way.name+map[int]string{512: "/512B", 4096: "/4K"}[size], func(b *testing.B) { benchmark(b, way.cold, size, way.update) })
		}
	}
}
