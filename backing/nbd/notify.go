package nbd

import (
	"sync"

	"blockgate/backing"
	"blockgate/nbd/client"
)

// notes tells those who asked of changes.
type notes struct {
	mu   sync.Mutex // held while they are told
	next int
	fns  map[int]func(backing.Change)
}

// tell is a client's OnChange.
func (n *notes) tell(c client.Change) {
	var b backing.Change
	if c&client.StatusChanged != 0 {
		b |= backing.HealthChanged
	}
	if c&client.SizeChanged != 0 {
		b |= backing.SizeChanged
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, fn := range n.fns {
		fn(b)
	}
}

func (n *notes) add(fn func(backing.Change)) (stop func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fns == nil {
		n.fns = make(map[int]func(backing.Change))
	}
	n.next++
	id := n.next
	n.fns[id] = fn
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.fns, id)
	}
}
