package state

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Memory is a backend that keeps everything in memory and nothing beyond Close.
type Memory struct {
	watchers
	lock  sync.Mutex
	rev   uint64
	items map[string]Item
}

// NewMemory makes an empty one.
func NewMemory() *Memory { return &Memory{items: map[string]Item{}} }

// Get implements Backend.
func (m *Memory) Get(_ context.Context, key string) (Item, bool, error) {
	m.lock.Lock()
	defer m.lock.Unlock()
	it, ok := m.items[key]
	return it, ok, nil
}

// List implements Backend.
func (m *Memory) List(_ context.Context, prefix string) ([]Item, uint64, error) {
	m.lock.Lock()
	defer m.lock.Unlock()
	var l []Item
	for k, it := range m.items {
		if strings.HasPrefix(k, prefix) {
			l = append(l, it)
		}
	}
	slices.SortFunc(l, func(a, b Item) int { return strings.Compare(a.Key, b.Key) })
	return l, m.rev, nil
}

// Txn implements Backend.
func (m *Memory) Txn(_ context.Context, t Txn) (uint64, error) {
	m.lock.Lock()
	defer m.lock.Unlock()
	for _, c := range t.If {
		if rev := m.items[c.Key].Revision; rev != c.Revision {
			return 0, fmt.Errorf("%s: %w", c.Key, ErrCompare)
		}
	}
	m.rev++
	for _, it := range t.Put {
		it.Value, it.Revision = slices.Clone(it.Value), m.rev
		m.items[it.Key] = it
	}
	for _, k := range t.Delete {
		delete(m.items, k)
	}
	m.send(t, m.rev)
	return m.rev, nil
}

// Watch implements Backend.
func (m *Memory) Watch(ctx context.Context) <-chan []Event { return m.watch(ctx) }

// Close implements Backend.
func (m *Memory) Close() error {
	m.watchers.close()
	return nil
}
