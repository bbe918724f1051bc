//go:build linux && !race

package file_test

import (
	"testing"

	"blockgate/backing"
)

// ends counts what has ended.
type ends chan error

func (e ends) IODone(_ *backing.IO, err error) { e <- err }

func TestStarterAllocations(t *testing.T) {
	s := createDirect(t, 1<<20)
	defer s.Close()
	st := backing.StarterOf(s)
	for _, write := range []bool{false, true} {
		for _, n := range []int{1, 2, 16} {
			e := make(ends, n)
			ios := make([]*backing.IO, n)
			for i := range ios {
				ios[i] = &backing.IO{P: blocks(4096), Off: int64(i) * 8192, Write: write, Done: e}
			}
			if a := testing.AllocsPerRun(100, func() {
				st.Start(ios)
				for range n {
					if err := <-e; err != nil {
						t.Error(err)
					}
				}
			}); a > 0.5 {
				t.Errorf("write %v, %d together: %v allocations", write, n, a)
			}
		}
	}
}
