package daemon

import (
	"testing"
	"testing/synctest"
	"time"
)

// A file system that does not answer is not waited for.
func TestSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if v, ok := soon(func() int { return 7 }); v != 7 || !ok {
			t.Errorf("%d, %v", v, ok)
		}
		hung := make(chan struct{})
		begin := time.Now()
		if v, ok := soon(func() int { <-hung; return 7 }); v != 0 || ok {
			t.Errorf("of one that hangs: %d, %v", v, ok)
		}
		if d := time.Since(begin); d != patience {
			t.Errorf("it took %v", d)
		}
		close(hung)
	})
}
