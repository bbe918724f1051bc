package sheepfake

import (
	"math/rand/v2"
	"sync"

	"blockgate/backing/sheepdog/internal/wire"
)

// RandomFaults is for SetFault: one request in every n goes wrong in a way that a
// client has to survive without an error, most often a torn connection, rarely
// an answer that never comes. It is the same for the same seed as long as requests
// come in the same order.
func RandomFaults(n int, seed uint64) func(Request) Fault {
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 0))
	passing := [...]wire.Result{wire.NetworkError, wire.Halted, wire.Again, wire.Startup}
	return func(q Request) Fault {
		mu.Lock()
		defer mu.Unlock()
		if rng.IntN(n) != 0 {
			return Fault{}
		}
		switch k := rng.IntN(60); {
		case k < 10:
			return Fault{Kind: CloseBefore}
		case k < 20:
			return Fault{Kind: CloseAfter}
		case k < 30:
			return Fault{Kind: Torn, Bytes: 1 + rng.IntN(3000)}
		case k == 30:
			return Fault{Kind: Swallow}
		case k < 36 && q.Data() && q.Op != wire.OpDiscard:
			// Of an object that exists, while a node is filled again.
			return Fault{Kind: Answer, Result: uint32(wire.NoObject)}
		}
		return Fault{Kind: Answer, Result: uint32(passing[rng.IntN(len(passing))])}
	}
}
