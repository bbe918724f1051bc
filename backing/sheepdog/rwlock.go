package sheepdog

import (
	"context"
	"sync"
)

// rwLock is a lock that many can hold shared or one alone, and whose waiters can
// give up. One who waits to have it alone lets no more in. The zero value is free.
type rwLock struct {
	mu      sync.Mutex
	shared  int
	alone   bool
	waiting int           // to have it alone
	wake    chan struct{} // closed at the next change; nil: nobody waits
}

func (l *rwLock) rlock(ctx context.Context) error {
	l.mu.Lock()
	for l.alone || l.waiting > 0 {
		if err := l.wait(ctx); err != nil {
			l.mu.Unlock()
			return err
		}
	}
	l.shared++
	l.mu.Unlock()
	return nil
}

func (l *rwLock) runlock() {
	l.mu.Lock()
	l.shared--
	if l.shared == 0 {
		l.changed()
	}
	l.mu.Unlock()
}

func (l *rwLock) lock(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting++
	defer func() { l.waiting-- }()
	for l.alone || l.shared > 0 {
		if err := l.wait(ctx); err != nil {
			l.changed()
			return err
		}
	}
	l.alone = true
	return nil
}

func (l *rwLock) unlock() {
	l.mu.Lock()
	l.alone = false
	l.changed()
	l.mu.Unlock()
}

// wait gives mu up until the next change.
func (l *rwLock) wait(ctx context.Context) error {
	if l.wake == nil {
		l.wake = make(chan struct{})
	}
	wake := l.wake
	l.mu.Unlock()
	defer l.mu.Lock()
	select {
	case <-wake:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *rwLock) changed() {
	if l.wake != nil {
		close(l.wake)
		l.wake = nil
	}
}
