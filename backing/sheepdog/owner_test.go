package sheepdog_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/sheepdog"
	"blockgate/backing/sheepdog/sheepfake"
)

// tcpRig is a rig with sheep on TCP, as one that is to be fenced has to be reached.
func tcpRig(t testing.TB, sheep int) *rig {
	t.Helper()
	r := &rig{Cluster: sheepfake.New(sheepfake.Options{Locks: true, BlockShift: 20})}
	t.Cleanup(r.Close)
	for range sheep {
		s, err := r.Start("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		r.sheep = append(r.sheep, s)
	}
	return r
}

var exclusive = backing.OpenOptions{Create: true, CreateSize: 8 * mib, Exclusive: true}

func TestExclusive(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, 3, sheepfake.Options{Locks: true})
	s := r.open(t, r.location("disk", 0, 2), exclusive)
	if owner, held := r.Owner("disk"); !held || owner != r.sheep[0].ID() {
		t.Errorf("owner %v, %v", owner, held)
	}
	for _, i := range []int{0, 1} {
		if _, err := sheepdog.OpenAt(ctx, r.location("disk", i), exclusive, quick); !errors.Is(err, backing.ErrBusy) {
			t.Errorf("second open through sheep %d: %v", i, err)
		}
	}
	ok(t, s.WriteAt(ctx, fill(4096, 1), 0))
	// The lock goes along to the new id, and to the next sheep.
	_, err := s.CreateSnapshot(ctx, "one")
	ok(t, err)
	if owner, held := r.Owner("disk"); !held || owner != r.sheep[0].ID() {
		t.Errorf("owner after a snapshot: %v, %v", owner, held)
	}
	r.sheep[0].Stop()
	ok(t, s.WriteAt(ctx, fill(4096, 2), 4096))
	if owner, held := r.Owner("disk"); !held || owner != r.sheep[2].ID() {
		t.Errorf("owner after its sheep was lost: %v, %v", owner, held)
	}
	ok(t, s.Close())
	if _, held := r.Owner("disk"); held {
		t.Error("closed, but still locked")
	}
	s = r.open(t, r.location("disk", 1), exclusive)
	expect(t, s, 0, append(fill(4096, 1), fill(4096, 2)...))
	ok(t, s.Close())
}

// TestStaleLock: a lock whose sheep is gone, and one of a process of this host that
// ended, keep nobody out; the lock of a stranger does.
func TestStaleLock(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, 2, sheepfake.Options{Locks: true})
	s := r.open(t, r.location("disk", 0), exclusive)
	// As if it had been killed: nothing gets out any more, then it is gone.
	r.sheep[0].Stop()
	l := r.location("disk", 1)
	s2 := r.open(t, l, exclusive)
	ok(t, s2.WriteAt(ctx, fill(512, 1), 0))
	ok(t, r.sheep[0].Start())
	// The first finds out before it does any harm.
	if err := s.WriteAt(ctx, fill(512, 2), 0); !errors.Is(err, backing.ErrBusy) {
		t.Errorf("write of the owner before: %v", err)
	}
	expect(t, s2, 0, fill(512, 1))
	ok(t, s.Close())
	expect(t, s2, 0, fill(512, 1))

	// An owner that goes without a word, with its sheep alive.
	r.SetFault(func(q sheepfake.Request) (f sheepfake.Fault) {
		if q.Sheep == r.sheep[1].ID() {
			f.Kind = sheepfake.CloseBefore
		}
		return f
	})
	short := quick
	short.Backoff = time.Millisecond
	ok(t, s2.Close())
	r.SetFault(nil)
	if owner, held := r.Owner("disk"); !held || owner != r.sheep[1].ID() {
		t.Fatalf("owner %v, %v", owner, held)
	}
	s3 := r.open(t, l, exclusive)
	expect(t, s3, 0, fill(512, 1))
	ok(t, s3.Close())

	// Somebody who leaves no mark, QEMU for instance.
	r.Lock("disk", r.sheep[0])
	if _, err := sheepdog.OpenAt(ctx, l, exclusive, quick); !errors.Is(err, backing.ErrBusy) {
		t.Errorf("open of what a stranger locked: %v", err)
	}
}

// TestTwoGateways: two stores that share a VDI, each through its own sheep, hand it
// to and fro as I/O comes in, and no write is lost and nothing old is read.
func TestTwoGateways(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, 2, sheepfake.Options{Locks: true, Shuffle: true})
	var stores []*sheepdog.Store
	for i := range 2 {
		l := r.location("disk", i)
		l.Shared = true
		s := r.open(t, l, exclusive)
		defer s.Close()
		stores = append(stores, s)
	}
	want := make([]byte, 8*mib)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		s := stores[i%2]
		for range 4 {
			off := rng.Int64N(7*mib-9000) &^ 511
			p := fill(512*(1+rng.IntN(16)), byte(rng.IntN(256)))
			switch rng.IntN(8) {
			case 0:
				ok(t, s.Discard(ctx, off, mib))
				clear(want[off : off+mib])
				off = 0
			case 1:
				if i < 20 {
					_, err := s.CreateSnapshot(ctx, fmt.Sprint("s", i, off))
					ok(t, err)
				}
			default:
				ok(t, s.WriteAt(ctx, p, off))
				copy(want[off:], p)
			}
			if off > 7*mib-9000 {
				off = 0
			}
			expect(t, s, off, want[off:off+mib])
		}
		if i%10 == 0 {
			expect(t, stores[1-i%2], 0, want)
		}
	}
	ok(t, r.Check())
	// Both at once, each in its own blocks of the same objects.
	var wg sync.WaitGroup
	for w, s := range stores {
		wg.Go(func() {
			for i := range int64(40) {
				off := (i%8)*mib + i*16384 + int64(w)*8192
				if err := s.WriteAt(ctx, fill(4096, byte(i)+byte(w)*64), off); err != nil {
					t.Errorf("gateway %d: %v", w, err)
					return
				}
			}
		})
	}
	wg.Wait()
	for i := range int64(40) {
		for w := range int64(2) {
			expect(t, stores[1-w], (i%8)*mib+i*16384+w*8192, fill(4096, byte(i)+byte(w)*64))
		}
	}
}

// TestFence: an owner that does not let go is stopped by stopping its sheep; what it
// sends after that is refused.
func TestFence(t *testing.T) {
	ctx := t.Context()
	r := tcpRig(t, 3)
	deaf := quick
	deaf.Hold = time.Hour // it never lets go
	l := r.location("disk", 0, 2)
	l.Shared = true
	first, err := sheepdog.OpenAt(ctx, l, exclusive, deaf)
	ok(t, err)
	defer first.Close()
	ok(t, first.WriteAt(ctx, fill(4096, 1), 0))
	l = r.location("disk", 1)
	l.Shared, l.Fence = true, true
	second, err := sheepdog.OpenAt(ctx, l, exclusive, quick)
	ok(t, err)
	defer second.Close()
	ok(t, second.WriteAt(ctx, fill(4096, 2), 4096))
	if owner, held := r.Owner("disk"); !held || owner != r.sheep[1].ID() {
		t.Errorf("owner %v, %v", owner, held)
	}
	expect(t, second, 0, append(fill(4096, 1), fill(4096, 2)...))
	// The first has another sheep to go to, and may ask for the VDI back; it does
	// not write before it has it.
	got := make(chan netip.AddrPort, 1)
	r.SetFault(func(q sheepfake.Request) sheepfake.Fault {
		if q.Sheep == r.sheep[2].ID() && q.Flags != 0 && q.Data() && !q.Inode() {
			owner, _ := r.Owner("disk")
			select {
			case got <- owner:
			default:
			}
		}
		return sheepfake.Fault{}
	})
	ok(t, first.WriteAt(ctx, fill(4096, 3), 8192))
	if owner := <-got; owner != r.sheep[2].ID() {
		t.Errorf("wrote while %v owned it", owner)
	}
	expect(t, second, 8192, fill(4096, 3))
}

// TestFencedWritesStay: what an owner had under way when it was fenced is not sent
// again when its sheep is back, as the VDI is another's.
func TestFencedWritesStay(t *testing.T) {
	r := tcpRig(t, 2)
	l := r.location("disk", 0)
	l.Shared = true
	first, err := sheepdog.OpenAt(t.Context(), l, exclusive, quick)
	ok(t, err)
	defer first.Close()
	ok(t, first.WriteAt(t.Context(), fill(mib, 1), 0))
	l = r.location("disk", 1)
	l.Shared, l.Fence = true, true
	second, err := sheepdog.OpenAt(t.Context(), l, exclusive, quick)
	ok(t, err)
	defer second.Close()

	const writes = 16
	held := make(chan struct{}, writes)
	data := func(q sheepfake.Request) bool {
		return q.Sheep == r.sheep[0].ID() && q.Flags != 0 && q.Data() && !q.Inode()
	}
	// Its sheep takes writes and does nothing, and so it does not let go.
	r.SetFault(func(q sheepfake.Request) sheepfake.Fault {
		if !data(q) {
			return sheepfake.Fault{}
		}
		select {
		case held <- struct{}{}:
		default: // sent again
		}
		return sheepfake.Fault{Kind: sheepfake.Swallow}
	})
	done := make(chan error, writes)
	for i := range int64(writes) {
		go func() { done <- first.WriteAt(t.Context(), fill(4096, 2), i<<14) }()
	}
	for range writes {
		<-held
	}
	ok(t, second.WriteAt(t.Context(), fill(mib, 3), 0))
	if owner, _ := r.Owner("disk"); owner != r.sheep[1].ID() {
		t.Fatalf("owner %v", owner)
	}
	r.SetFault(func(q sheepfake.Request) sheepfake.Fault {
		if data(q) {
			if owner, _ := r.Owner("disk"); owner != r.sheep[0].ID() {
				t.Errorf("the fenced gateway wrote while %v owned the VDI", owner)
			}
		}
		return sheepfake.Fault{}
	})
	ok(t, r.sheep[0].Start())
	for range writes {
		ok(t, <-done) // once it has the VDI again
	}
	want := fill(mib, 3)
	for i := range writes {
		copy(want[i<<14:], fill(4096, 2))
	}
	expect(t, second, 0, want)
}

// TestFenceByCommandsThatGiveUp: hosts take commands back sooner than an owner may
// be fenced. It is, when it has been asked for long enough by all of them together;
// and one that lives is not.
func TestFenceByCommandsThatGiveUp(t *testing.T) {
	ctx := t.Context()
	r := tcpRig(t, 2)
	deaf := quick
	deaf.Hold = time.Hour // it never lets go
	l := r.location("disk", 0)
	l.Shared = true
	first, err := sheepdog.OpenAt(ctx, l, exclusive, deaf)
	ok(t, err)
	defer first.Close()
	ok(t, first.WriteAt(ctx, fill(4096, 1), 0))
	l = r.location("disk", 1)
	l.Shared, l.Fence = true, true
	second, err := sheepdog.OpenAt(ctx, l, exclusive, quick)
	ok(t, err)
	defer second.Close()
	limit := quick.Hold + 4*quick.Poll + quick.AnswerTimeout
	command := func() error {
		ctx, cancel := context.WithTimeout(ctx, limit/8)
		defer cancel()
		return second.WriteAt(ctx, fill(4096, 2), 4096)
	}
	begin := time.Now()
	tries := 1
	for ; command() != nil; tries++ {
		if time.Since(begin) > 20*time.Second {
			t.Fatal("the owner is not fenced")
		}
	}
	if d := time.Since(begin); d < limit || tries < 3 {
		t.Errorf("fenced after %v and %d commands, not before %v", d, tries, limit)
	}
	if owner, _ := r.Owner("disk"); owner != r.sheep[1].ID() {
		t.Errorf("owner %v", owner)
	}

	// The first comes back, and takes the VDI again. That it was asked once is over.
	ok(t, r.sheep[0].Start())
	ok(t, second.Yield(ctx))
	ok(t, first.WriteAt(ctx, fill(4096, 3), 8192))
	if owner, _ := r.Owner("disk"); owner != r.sheep[0].ID() {
		t.Fatalf("owner %v", owner)
	}
	begin = time.Now()
	_ = command()
	if owner, _ := r.Owner("disk"); owner != r.sheep[0].ID() && time.Since(begin) < limit {
		t.Errorf("fenced at once for what it was asked before: owner %v", owner)
	}
}

// TestUnusedIsLetGo: a gateway that has the VDI since it was opened, as nobody else had
// it then, does not keep one that has work waiting.
func TestUnusedIsLetGo(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, 2, sheepfake.Options{Locks: true})
	keeps := quick
	keeps.Hold = time.Hour
	l := r.location("disk", 0)
	l.Shared = true
	first, err := sheepdog.OpenAt(ctx, l, exclusive, keeps)
	ok(t, err)
	defer first.Close()
	l.Gateways = r.location("disk", 1).Gateways
	second := r.open(t, l, exclusive)
	defer second.Close()
	ok(t, second.WriteAt(ctx, fill(4096, 1), 0))
	if owner, _ := r.Owner("disk"); owner != r.sheep[1].ID() {
		t.Errorf("owner %v", owner)
	}
	expect(t, first, 0, fill(4096, 1))
	short, cancel := context.WithTimeout(ctx, 20*quick.Poll)
	defer cancel()
	if err := second.WriteAt(short, fill(4096, 2), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("write while the first has used the VDI: %v", err)
	}
}

// twoGateways has a cluster of so many nodes, and a VDI that gateways at the first two
// of them share.
func twoGateways(t *testing.T, nodes int) (r *rig, a, b *sheepdog.Store) {
	t.Helper()
	r = newRig(t, nodes, sheepfake.Options{Locks: true})
	l := r.location("disk", 0)
	l.Shared = true
	a = r.open(t, l, exclusive)
	l.Gateways = r.location("disk", 1).Gateways
	return r, a, r.open(t, l, exclusive)
}

func TestYieldAndTakeOver(t *testing.T) {
	ctx := t.Context()
	r, a, b := twoGateways(t, 2)
	defer a.Close()
	defer b.Close()
	ok(t, a.WriteAt(ctx, fill(512, 1), 0))
	ok(t, a.Yield(ctx))
	if _, held := r.Owner("disk"); held {
		t.Error("yielded, but still locked")
	}
	ok(t, b.TakeOver(ctx))
	if owner, _ := r.Owner("disk"); owner != r.sheep[1].ID() {
		t.Errorf("owner %v", owner)
	}
	expect(t, b, 0, fill(512, 1))
}

// TestSharedNeedsLocks: a cluster without locks cannot keep two gateways apart.
func TestSharedNeedsLocks(t *testing.T) {
	r := newRig(t, 1, sheepfake.Options{})
	l := r.location("disk", 0)
	l.Shared = true
	if _, err := sheepdog.OpenAt(t.Context(), l, exclusive, quick); !errors.Is(err, backing.ErrNotSupported) {
		t.Errorf("shared without locks: %v", err)
	}
	l.Shared = false
	ok(t, r.open(t, l, exclusive).Close())
}

// TestOwnerMissesSnapshot: an owner that has not noticed a snapshot of somebody else has
// no lock on the new working VDI; another gateway does not take it behind its back.
func TestOwnerMissesSnapshot(t *testing.T) {
	ctx := t.Context()
	r, a, b := twoGateways(t, 3)
	defer a.Close()
	defer b.Close()
	ok(t, a.WriteAt(ctx, fill(512, 1), 0))
	other := r.open(t, r.location("disk", 2), backing.OpenOptions{})
	defer other.Close()
	_, err := other.CreateSnapshot(ctx, "now")
	ok(t, err)
	ok(t, b.WriteAt(ctx, fill(512, 2), 0))
	expect(t, a, 0, fill(512, 2))
	if _, err := sheepdog.OpenAt(ctx, r.location("disk", 2), exclusive, quick); !errors.Is(err, backing.ErrBusy) {
		t.Errorf("open for one alone: %v", err)
	}
}

// TestTakenByTwo: an owner is gone, and several gateways that wait see it at the same
// time. One of them has the VDI; the others do not release its lock for that of the one
// before, and none writes without the lock.
func TestTakenByTwo(t *testing.T) {
	ctx := t.Context()
	const waiting = 3
	r := newRig(t, waiting+1, sheepfake.Options{Locks: true, Shuffle: true})
	patient := quick
	patient.Settle, patient.AnswerTimeout = 100*time.Millisecond, 5*time.Second
	var stores []*sheepdog.Store
	for i := range waiting + 1 {
		l := r.location("disk", i)
		l.Shared = true
		s, err := sheepdog.OpenAt(ctx, l, exclusive, patient)
		ok(t, err)
		defer s.Close()
		stores = append(stores, s)
	}
	r.SetFault(func(q sheepfake.Request) sheepfake.Fault {
		if q.Data() && !q.Inode() && q.Flags != 0 {
			if owner, held := r.Owner("disk"); !held || owner != q.Sheep {
				t.Errorf("sheep %v writes while %v has the lock (%v)", q.Sheep, owner, held)
			}
		}
		return sheepfake.Fault{}
	})
	for round := range byte(8) {
		first := int(round) % len(stores)
		ok(t, stores[first].WriteAt(ctx, fill(4096, round), 0))
		r.sheep[first].Stop()
		var wg sync.WaitGroup
		for i, s := range stores {
			if i != first {
				wg.Go(func() {
					if err := s.WriteAt(ctx, fill(4096, round), int64(i)<<13); err != nil {
						t.Errorf("gateway %d: %v", i, err)
					}
				})
			}
		}
		wg.Wait()
		ok(t, r.sheep[first].Start())
		if t.Failed() {
			return
		}
	}
}

// TestSheepLostWhileTaking: the sheep is lost through which the lock was taken, before
// the VDI is the gateway's. The lock of a sheep that is no member keeps nobody out.
func TestSheepLostWhileTaking(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, 3, sheepfake.Options{Locks: true})
	first := r.sheep[0].ID()
	stopped := make(chan struct{})
	var once sync.Once
	r.SetFault(func(q sheepfake.Request) sheepfake.Fault {
		if q.Sheep == first && q.Inode() && q.Flags != 0 {
			once.Do(func() {
				go func() {
					r.sheep[0].Stop()
					close(stopped)
				}()
			})
			return sheepfake.Fault{Kind: sheepfake.CloseBefore}
		}
		return sheepfake.Fault{}
	})
	v, err := sheepdog.OpenAt(ctx, r.location("disk", 2), backing.OpenOptions{Create: true, CreateSize: 8 * mib}, quick)
	ok(t, err)
	ok(t, v.Close())
	s := r.open(t, r.location("disk", 0, 1), exclusive)
	defer s.Close()
	<-stopped
	if owner, held := r.Owner("disk"); !held || owner != r.sheep[1].ID() {
		t.Errorf("owner %v, %v", owner, held)
	}
	if _, err := sheepdog.OpenAt(ctx, r.location("disk", 2), exclusive, quick); !errors.Is(err, backing.ErrBusy) {
		t.Errorf("second open: %v", err)
	}
	ok(t, s.WriteAt(ctx, fill(4096, 1), 0))
	expect(t, s, 0, fill(4096, 1))
}
