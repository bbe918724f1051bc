package file

import (
	"runtime"

	"blockgate/backing"
	"blockgate/internal/aio"
)

// SetFaults has f change what the kernel says of the requests of a direct store
// that has had none yet. It reports false if the store has no AIO.
func SetFaults(s backing.Store, f aio.Faults) (bool, error) {
	a := s.(*Store).starter
	if a == nil {
		return false, nil
	}
	q, err := aio.NewFaulty(int(a.s.f.Fd()), a.ended, f)
	if err != nil {
		return false, err
	}
	a.q.Close()
	a.q = q
	return true, nil
}

// Place maps the window of a store's range, as LendMapped does when it has found
// the range to be inside the store.
func Place(s backing.Store, off, n int64) bool {
	l := s.(*Store).lending
	i := s.(*Store).window(off, n)
	if i >= 0 {
		l.w.done(l.w.bytes(i, 0, 1))
	}
	return i >= 0
}

// CloseWhileLooked closes a store while somebody else looks whether its windows
// are their own.
func CloseWhileLooked(s backing.Store) {
	w := s.(*Store).lending.w
	var looked []int
	for i := range w.slots {
		if w.slots[i].store == s.(*Store) {
			w.slots[i].loans.Add(1)
			looked = append(looked, i)
		}
	}
	closed := make(chan struct{})
	go func() {
		s.Close()
		close(closed)
	}()
	for range 1000 {
		runtime.Gosched()
	}
	for _, i := range looked {
		w.slots[i].loans.Add(-1)
	}
	<-closed
}
