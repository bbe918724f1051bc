package curve_test

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"blockgate/backing/curve/nebdfake"
)

// faults makes requests go wrong at random, but of those that are never answered
// none. Requests that are held are released a few later, on whatever connection
// there is then.
type faults struct {
	r    *rig
	rate float64

	mu   sync.Mutex
	rng  *rand.Rand
	held []chan struct{}
	n    atomic.Int64
}

func (f *faults) decide(q nebdfake.Request) nebdfake.Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	// Whoever waits for long is let go.
	for len(f.held) > 0 && (f.rng.IntN(4) == 0 || len(f.held) > 4) {
		i := f.rng.IntN(len(f.held))
		close(f.held[i])
		f.held[i] = f.held[len(f.held)-1]
		f.held = f.held[:len(f.held)-1]
	}
	if f.rng.Float64() >= f.rate {
		return nebdfake.Fault{}
	}
	f.n.Add(1)
	switch f.rng.IntN(7) {
	case 0:
		return nebdfake.Fault{Kind: nebdfake.CloseBefore}
	case 1:
		return nebdfake.Fault{Kind: nebdfake.CloseAfter}
	case 2:
		return nebdfake.Fault{Kind: nebdfake.Torn, Bytes: f.rng.IntN(5000)}
	case 3:
		return nebdfake.Fault{Kind: nebdfake.BRPC, Code: 2003}
	case 4:
		go f.r.Drop()
		fallthrough
	default:
		if q.Method != "Write" && q.Method != "Read" {
			return nebdfake.Fault{}
		}
		ch := make(chan struct{})
		f.held = append(f.held, ch)
		return nebdfake.Fault{Kind: nebdfake.Late, Before: f.rng.IntN(2) == 0, Until: ch}
	}
}

// release lets go of all that is held, for good.
func (f *faults) release() {
	f.r.SetFault(nil)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, ch := range f.held {
		close(ch)
	}
	f.held = nil
}

// Random histories of several writers, each with bytes of its own between those of
// the others, on a server that loses connections, restarts, answers late and in
// any order: no call fails, and every read finds what was written last.
func TestModelWithFaults(t *testing.T) {
	for _, block := range []int{512, 4096} {
		t.Run(map[int]string{512: "512", 4096: "4096"}[block], func(t *testing.T) { modelWithFaults(t, block, uint64(block)) })
	}
}

func modelWithFaults(t *testing.T, block int, seed uint64) {
	const (
		workers = 6
		size    = 4 << 20
		rounds  = 150
	)
	r := newRig(t, nebdfake.Options{Shuffle: true, Seed: seed})
	l := r.volume(size, block)
	l.Discard, l.Timeout = true, 60*time.Second
	s := open(t, l, exclusive)
	f := &faults{r: r, rate: 0.05, rng: rand.New(rand.NewPCG(seed, 2))}
	r.SetFault(f.decide)

	// A held request needs others to be let go; these also tear connections.
	stop := make(chan struct{})
	var wg, chaos sync.WaitGroup
	chaos.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			f.decide(nebdfake.Request{})
			if i%60 == 30 {
				r.Stop()
				ok(t, r.Start(r.socket))
			}
		}
	})
	want := make([]byte, size)
	stripes := func(w int, rng *rand.Rand) (off, n int) {
		// Stripes of 3000 bytes, one of six: neighbours share blocks.
		k := rng.IntN(size / (3000 * workers))
		if rng.IntN(2) == 0 {
			k %= 3 // where they meet
		}
		off = (k*workers + w) * 3000
		n = 1 + rng.IntN(3000)
		if rng.IntN(4) == 0 {
			return off, 3000
		}
		return off + rng.IntN(3000-n+1), n
	}
	for w := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(w)+100))
			for i := range rounds {
				off, n := stripes(w, rng)
				mine := want[off : off+n]
				switch rng.IntN(8) {
				case 0:
					if err := s.WriteZeroes(t.Context(), int64(off), int64(n), rng.IntN(2) == 0); err != nil {
						t.Errorf("zero: %v", err)
						return
					}
					clear(mine)
				case 1:
					if err := s.Discard(t.Context(), int64(off), int64(n)); err != nil {
						t.Errorf("discard: %v", err)
						return
					}
					clear(mine)
				case 2, 3:
					got := make([]byte, n)
					if err := s.ReadAt(t.Context(), got, int64(off)); err != nil {
						t.Errorf("read: %v", err)
						return
					}
					if !bytes.Equal(got, mine) {
						t.Errorf("worker %d, round %d: wrong data at [%d,+%d)", w, i, off, n)
						return
					}
				case 4:
					if err := s.Flush(t.Context()); err != nil {
						t.Errorf("flush: %v", err)
						return
					}
				default:
					for k := range mine {
						mine[k] = byte(i + k*7 + w)
					}
					if err := s.WriteAt(t.Context(), mine, int64(off)); err != nil {
						t.Errorf("write: %v", err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	chaos.Wait()
	f.release()
	if t.Failed() {
		return
	}
	holds(t, s, 0, want)
	ok(t, s.Close())
	// Whatever was still on its way is there now, or never comes.
	r.restart(t)
	got := make([]byte, size)
	r.Content(l.Name(), got, 0)
	if !bytes.Equal(got, want) {
		t.Error("the volume changed after all was over")
	}
	if f.n.Load() < 20 {
		t.Errorf("only %d faults: the test tests little", f.n.Load())
	}
	t.Logf("%d faults", f.n.Load())
}
