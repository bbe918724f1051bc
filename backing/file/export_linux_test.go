package file

import (
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
