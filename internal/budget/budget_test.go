package budget

import (
	"math/rand/v2"
	"sync"
	"testing"
)

// hog takes all that a share gets, in pieces, and returns how much that is and
// how to give it back.
func hog(b *Budget, s Share, piece int64) (total int64, back func()) {
	var l []bool
	for {
		ok, counted := b.Reserve(s, piece)
		if !ok {
			break
		}
		l = append(l, counted)
	}
	return int64(len(l)) * piece, func() {
		for _, counted := range l {
			if counted {
				b.Leave(s, piece)
			}
			b.Give(piece)
		}
	}
}

// However many hold all that they get, there is room for one more.
func TestThereIsAlwaysARest(t *testing.T) {
	const limit, piece = 1 << 30, 16 << 10
	for name, share := range map[string]func(i int) Share{
		"one peer each":   func(i int) Share { return Share{Peer: i, Thing: i} },
		"of one thing":    func(i int) Share { return Share{Peer: i, Thing: "it"} },
		"one peer of all": func(i int) Share { return Share{Peer: "he", Thing: i} },
	} {
		b := New(limit)
		var backs []func()
		for i := range 8 {
			n, back := hog(b, share(i), piece)
			backs = append(backs, back)
			if n == 0 {
				t.Errorf("%s: nothing is left for number %d; %d of %d are used", name, i, b.Used(), b.Limit())
			}
			if i == 0 && (n < limit/3 || n > limit*3/4) {
				t.Errorf("%s: who is alone gets %d of %d", name, n, int64(limit))
			}
		}
		if ok, counted := b.Enter(Share{Thing: "new"}, 0); !ok || counted {
			t.Errorf("%s: nothing at all does not fit", name)
		}
		if !b.Take(piece) {
			t.Errorf("%s: no room for what has no share yet", name)
		}
		b.Give(piece)
		for _, back := range backs {
			back()
		}
		if b.Used() != 0 || len(b.shares) != 0 {
			t.Errorf("%s: %d bytes and %d shares stay", name, b.Used(), len(b.shares))
		}
	}
}

func TestAloneMayTakeMore(t *testing.T) {
	b := New(1000)
	if ok, counted := b.Reserve(Share{Peer: 1, Thing: 1}, 5000); !ok || !counted {
		t.Fatal("who is alone does not get more than there is", ok, counted)
	}
	if b.Fits(Share{Peer: 2, Thing: 2}, 1) || b.Take(1) {
		t.Error("there is more than there is")
	}
	b.Leave(Share{Peer: 1, Thing: 1}, 5000)
	b.Give(5000)
	if !b.Take(5000) {
		t.Error("who is alone does not get more than there is")
	}
}

type waiter chan struct{}

func (w waiter) Freed() {
	select {
	case w <- struct{}{}:
	default:
	}
}

// Many that wait for each other's memory all get theirs, and the bound holds.
func TestWaitersGetTheirTurn(t *testing.T) {
	const limit = 1 << 20
	b := New(limit)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			s, w := Share{Peer: i, Thing: i % 4}, make(waiter, 1)
			for range 100 {
				n := 1 + rng.Int64N(limit/4)
				for {
					ok, counted := b.Reserve(s, n)
					if ok {
						if u := b.Used(); u > limit {
							t.Errorf("%d of %d bytes are used", u, limit)
						}
						if counted {
							b.Leave(s, n)
						}
						b.Give(n)
						break
					}
					b.Wait(w, true)
					for !b.Fits(s, n) {
						<-w
					}
					b.Wait(w, false)
				}
			}
		})
	}
	wg.Wait()
	if b.Used() != 0 || len(b.shares) != 0 {
		t.Errorf("%d bytes and %d shares stay", b.Used(), len(b.shares))
	}
}
