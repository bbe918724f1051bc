package state

import (
	"context"
	"sync"
)

// watchers hands committed events to those who watch a backend of this process.
type watchers struct {
	mu     sync.Mutex
	subs   map[chan []Event]struct{}
	closed bool
}

// backlog is how many transactions a watcher may fall behind.
const backlog = 256

func (w *watchers) watch(ctx context.Context) <-chan []Event {
	ch := make(chan []Event, backlog)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		close(ch)
		return ch
	}
	if w.subs == nil {
		w.subs = map[chan []Event]struct{}{}
	}
	w.subs[ch] = struct{}{}
	context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.drop(ch)
	})
	return ch
}

func (w *watchers) drop(ch chan []Event) {
	if _, ok := w.subs[ch]; ok {
		delete(w.subs, ch)
		close(ch)
	}
}

func (w *watchers) send(t Txn, rev uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.subs) == 0 {
		return
	}
	ev := make([]Event, 0, len(t.Put)+len(t.Delete))
	for _, it := range t.Put {
		it.Revision = rev
		ev = append(ev, Event{Item: it})
	}
	for _, k := range t.Delete {
		ev = append(ev, Event{Item: Item{Key: k, Revision: rev}, Deleted: true})
	}
	for ch := range w.subs {
		select {
		case ch <- ev:
		default:
			w.drop(ch)
		}
	}
}

func (w *watchers) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for ch := range w.subs {
		w.drop(ch)
	}
}
