package curve

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func FuzzSnapshotAnswer(f *testing.F) {
	f.Add([]byte(`{"Code":"0","Message":"Exec success.","RequestId":"r","UUID":"u"}`))
	f.Add([]byte(`{"Code":"0","TotalCount":1,"Snapshots":[{"UUID":"u","File":"/v","SeqNum":3,"Name":"s","Time":1700000000000000,"FileLength":10737418240,"Status":0,"Progress":"100"}]}`))
	f.Add([]byte(`{"Code":"0","TotalCount":1,"TaskInfos":[{"UUID":"u","File":"/v","TaskStatus":7}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAnswer(b)
		if err != nil {
			if d := cmp.Diff(serviceAnswer{}, a); d != "" {
				t.Errorf("an error with an answer: %s", d)
			}
			return
		}
		for i := range a.Snapshots {
			snapshotOf(&a.Snapshots[i])
		}
	})
}

func FuzzClientConf(f *testing.F) {
	f.Add("nebdserver.serverAddress=unix:/data/nebd/nebd.sock\n# x\nmetacache.fileLockPath=/data/nebd/lock")
	f.Fuzz(func(t *testing.T, s string) {
		socket, locks, err := readClientConf(strings.NewReader(s))
		if err == nil && strings.ContainsAny(socket+locks, "\n#") {
			t.Errorf("%q, %q", socket, locks)
		}
	})
}

// Who holds a range excludes those that conflict with him, and nobody else waits.
func TestRangeLock(t *testing.T) {
	const size = 64
	var (
		l      rangeLock
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
				var h hold
				if l.lock(ctx, &h, off, end, excl) == nil {
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
					l.unlock(&h)
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
	var a, b, c, d hold
	for h, r := range map[*hold][2]int64{&a: {0, 8}, &b: {4, 12}} {
		if err := l.lock(t.Context(), h, r[0], r[1], false); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.lock(t.Context(), &c, 12, 16, true); err != nil {
		t.Fatal(err)
	}
	// One who waits in vain leaves nothing behind.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.lock(ctx, &d, 0, everything, true); err == nil {
		t.Fatal("locked what others hold")
	}
	if err := l.lock(t.Context(), &d, 0, 4, false); err != nil {
		t.Fatal(err)
	}
	for _, h := range []*hold{&a, &b, &c, &d} {
		l.unlock(h)
	}
}
