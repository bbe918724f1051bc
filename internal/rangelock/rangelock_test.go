package rangelock

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
)

// Who holds a range excludes those that conflict with him, and nobody else waits.
func TestRangeLock(t *testing.T) {
	const size = 64
	var (
		l      Lock
		mu     sync.Mutex
		shared [size]int
		alone  [size]int
		wg     sync.WaitGroup
	)
	for w := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			for range 2000 {
				off := rng.Int64N(size)
				end := off + 1 + rng.Int64N(size-off)
				excl := rng.IntN(3) == 0
				ctx, cancel := context.WithCancel(t.Context())
				if rng.IntN(4) == 0 {
					cancel()
				}
				var h Hold
				if l.Lock(ctx, nil, &h, off, end, excl) == nil {
					mark := func(d int) {
						mu.Lock()
						defer mu.Unlock()
						for i := off; i < end; i++ {
							if excl {
								alone[i] += d
							} else {
								shared[i] += d
							}
							if alone[i] > 1 || alone[i] == 1 && shared[i] > 0 {
								t.Errorf("byte %d: %d alone, %d shared", i, alone[i], shared[i])
							}
						}
					}
					mark(1)
					mark(-1)
					l.Unlock(&h)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if l.head != nil || l.tail != nil {
		t.Error("something is left in the list")
	}
	// No conflict, no waiting.
	var a, b, c, d Hold
	for h, r := range map[*Hold][2]int64{&a: {0, 8}, &b: {4, 12}} {
		if err := l.Lock(t.Context(), nil, h, r[0], r[1], false); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Lock(t.Context(), nil, &c, 12, 16, true); err != nil {
		t.Fatal(err)
	}
	// One who waits in vain leaves nothing behind.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Lock(ctx, nil, &d, 0, Everything, true); err == nil {
		t.Fatal("locked what others hold")
	}
	if err := l.Lock(t.Context(), nil, &d, 0, 4, false); err != nil {
		t.Fatal(err)
	}
	for _, h := range []*Hold{&a, &b, &c, &d} {
		l.Unlock(h)
	}
}

// TestStop: who waits can be told that it is in vain.
func TestStop(t *testing.T) {
	var l Lock
	var a, b Hold
	if err := l.Lock(t.Context(), nil, &a, 0, 8, true); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	close(stop)
	if err := l.Lock(t.Context(), stop, &b, 4, 12, true); !errors.Is(err, ErrStopped) {
		t.Errorf("stopped: %v", err)
	}
	l.Unlock(&a)
	if l.head != nil || l.tail != nil {
		t.Error("something is left in the list")
	}
}
