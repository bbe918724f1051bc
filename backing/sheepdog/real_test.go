package sheepdog_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/sheepdog"
	"blockgate/backing/storetest"
)

// TestRealCluster runs against a cluster of real sheep, formatted with two copies or
// more: SHEEPDOG is the beginning of locations, up to the name ("unix:/sheep/sock:"),
// and SHEEPDOG_OPTIONS what follows it. The VDIs it makes stay.
func TestRealCluster(t *testing.T) {
	base := os.Getenv("SHEEPDOG")
	if base == "" {
		t.Skip("SHEEPDOG names no cluster")
	}
	stamp := time.Now().UnixNano()
	where := func(name string) string {
		return fmt.Sprintf("%s%s-%d%s", base, strings.ReplaceAll(name, "/", "-"), stamp, os.Getenv("SHEEPDOG_OPTIONS"))
	}
	open := func(t *testing.T, name string, o backing.OpenOptions) *sheepdog.Store {
		t.Helper()
		s, err := sheepdog.Open(t.Context(), where(name), o)
		if err != nil {
			t.Fatal(err)
		}
		return s.(*sheepdog.Store)
	}
	t.Run("Store", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) backing.Store {
			return open(t, t.Name(), backing.OpenOptions{Create: true, CreateSize: storetest.Size})
		})
	})
	t.Run("Snapshots", func(t *testing.T) {
		ctx := t.Context()
		s := open(t, "snap", backing.OpenOptions{Create: true, CreateSize: 64 * mib, Exclusive: true})
		defer s.Close()
		ok(t, s.WriteAt(ctx, fill(9*mib, 1), mib))
		snap, err := s.CreateSnapshot(ctx, "first")
		ok(t, err)
		t.Logf("%+v", snap)
		ok(t, s.WriteAt(ctx, fill(4096, 2), mib))
		ok(t, s.WriteAt(ctx, fill(4096, 3), 40*mib))
		ok(t, s.Discard(ctx, 4*mib, 4*mib))
		want := fill(9*mib, 1)
		reader := open(t, "snap", backing.OpenOptions{})
		expect(t, reader, 8*mib, want[7*mib:])
		ok(t, reader.Close())
		copy(want, fill(4096, 2))
		clear(want[3*mib : 7*mib])
		expect(t, s, mib, want)
		clone, err := s.Clone(ctx, "first", fmt.Sprint("clone-", stamp))
		ok(t, err)
		c, err := sheepdog.Open(ctx, clone, backing.OpenOptions{Exclusive: true})
		ok(t, err)
		defer c.Close()
		expect(t, c, mib, fill(9*mib, 1))
		ok(t, c.WriteAt(ctx, fill(512, 4), 5*mib))
		other := open(t, "snap", backing.OpenOptions{})
		defer other.Close()
		_, err = other.CreateSnapshot(ctx, "foreign")
		ok(t, err)
		ok(t, s.WriteAt(ctx, fill(4096, 5), 20*mib))
		ok(t, s.WriteAt(ctx, fill(4096, 6), mib+8192))
		copy(want[8192:], fill(4096, 6))
		expect(t, s, mib, want)
		list, err := s.Snapshots(ctx)
		ok(t, err)
		if len(list) != 2 {
			t.Errorf("snapshots %+v", list)
		}
		ok(t, s.DeleteSnapshot(ctx, "first"))
		expect(t, s, mib, want)
		expect(t, c, 6*mib, fill(9*mib, 1)[5*mib:])
		again := open(t, "snap", backing.OpenOptions{})
		defer again.Close()
		expect(t, again, mib, want)
	})
}

// TestRealLoad reads and writes for SHEEPDOG_LOAD, while somebody stops sheep and
// starts them again: no call fails and every read is right.
func TestRealLoad(t *testing.T) {
	base := os.Getenv("SHEEPDOG")
	long, err := time.ParseDuration(os.Getenv("SHEEPDOG_LOAD"))
	if base == "" || err != nil {
		t.Skip("SHEEPDOG and SHEEPDOG_LOAD name no cluster and time")
	}
	ctx := t.Context()
	s, err := sheepdog.Open(ctx, base+os.Getenv("SHEEPDOG_VDI")+os.Getenv("SHEEPDOG_OPTIONS"), backing.OpenOptions{Create: true, CreateSize: 256 * mib, Exclusive: true})
	ok(t, err)
	defer s.Close()
	workers := int64(16)
	if n, err := strconv.Atoi(os.Getenv("SHEEPDOG_WORKERS")); err == nil {
		workers = int64(n)
	}
	const blocks = 4096
	var done, slowest atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for w := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			seeds := make(map[int64]byte)
			got := make([]byte, 4096)
			for time.Since(begin) < long {
				k := rng.Int64N(blocks)
				off := (k*workers + w) * 4096
				at := time.Now()
				seed, written := seeds[k]
				var err error
				if !written || rng.IntN(2) == 0 {
					seed = byte(rng.IntN(256))
					err = s.WriteAt(ctx, fill(4096, seed), off)
					seeds[k] = seed
				} else if err = s.ReadAt(ctx, got, off); err == nil && differ(got, fill(4096, seed)) >= 0 {
					err = fmt.Errorf("wrong data at %d", off)
				}
				if err != nil {
					t.Errorf("%s: %v", time.Now().Format(time.TimeOnly), err)
					return
				}
				done.Add(1)
				for d := int64(time.Since(at)); ; {
					if old := slowest.Load(); old >= d || slowest.CompareAndSwap(old, d) {
						break
					}
				}
			}
			for k, seed := range seeds {
				expect(t, s, (k*workers+w)*4096, fill(4096, seed))
			}
		})
	}
	wg.Wait()
	t.Logf("%d calls, the slowest took %v", done.Load(), time.Duration(slowest.Load()))
}

// TestRealGateways hands a VDI to and fro between two gateways on real sheep, and then
// stops the sheep of one that does not let go: SHEEPDOG_OTHER is the beginning of
// locations through the second sheep. The cluster is formatted with locks; the sheep of
// SHEEPDOG is gone afterwards.
func TestRealGateways(t *testing.T) {
	base, other := os.Getenv("SHEEPDOG"), os.Getenv("SHEEPDOG_OTHER")
	if base == "" || other == "" {
		t.Skip("SHEEPDOG and SHEEPDOG_OTHER name no two sheep")
	}
	ctx := t.Context()
	name := fmt.Sprint("two-", time.Now().UnixNano())
	open := func(base string, hold time.Duration) *sheepdog.Store {
		l, err := sheepdog.ParseLocation(base + name + "?shared=yes&fence=yes")
		ok(t, err)
		cfg := sheepdog.Config{Poll: 50 * time.Millisecond, Hold: hold, AnswerTimeout: 4 * time.Second}
		s, err := sheepdog.OpenAt(ctx, l, backing.OpenOptions{Create: true, CreateSize: 64 * mib, Exclusive: true}, cfg)
		ok(t, err)
		return s
	}
	a := open(base, 100*time.Millisecond)
	b := open(other, 100*time.Millisecond)
	begin := time.Now()
	for i := range int64(10) {
		ok(t, a.WriteAt(ctx, fill(4096, byte(i)), i*mib))
		expect(t, b, i*mib, fill(4096, byte(i)))
		ok(t, b.WriteAt(ctx, fill(4096, byte(i+100)), i*mib+4096))
		expect(t, a, i*mib+4096, fill(4096, byte(i+100)))
	}
	t.Logf("40 calls in turns took %v", time.Since(begin))
	ok(t, a.Close())
	deaf := open(base, time.Hour)
	defer deaf.Close()
	ok(t, deaf.TakeOver(ctx))
	ok(t, deaf.WriteAt(ctx, fill(4096, 50), 0))
	begin = time.Now()
	ok(t, b.WriteAt(ctx, fill(4096, 51), 4096))
	t.Logf("fenced after %v", time.Since(begin))
	expect(t, b, 0, append(fill(4096, 50), fill(4096, 51)...))
	ok(t, b.Close())
}
