package curve_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"blockgate/backing"
	"blockgate/backing/curve"
	"blockgate/backing/curve/nebdfake"
	"blockgate/backing/storetest"
)

func TestMain(m *testing.M) {
	// Each of storetest's random histories moves tens of MiB over a socket; the
	// command line may ask for more of them.
	if err := flag.Set("rapid.checks", "30"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// quick are times for tests: nobody is far away.
var quick = curve.Config{
	Heartbeat: 20 * time.Millisecond, Settle: time.Millisecond, Backoff: time.Millisecond,
	CloseTimeout: 2 * time.Second, Poll: time.Millisecond, ClientConf: "/nonexistent",
}

var names atomic.Uint32

// rig is a nebd-server on a socket.
type rig struct {
	*nebdfake.Server
	dir, socket string
}

func newRig(t testing.TB, o nebdfake.Options) *rig {
	t.Helper()
	// A unix socket's path is short.
	dir, err := os.MkdirTemp("", "nebd")
	if err != nil {
		t.Fatal(err)
	}
	if o.SegmentSize == 0 {
		o.SegmentSize = 1 << 20
	}
	r := &rig{Server: nebdfake.New(o), dir: dir, socket: filepath.Join(dir, "sock")}
	if err := r.Start(r.socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Stop()
		os.RemoveAll(dir)
		if err := r.Check(); err != nil {
			t.Errorf("nebd-server would have crashed: %v", err)
		}
	})
	return r
}

// restart is kill -9 and a new process.
func (r *rig) restart(t testing.TB) {
	t.Helper()
	r.Stop()
	if err := r.Start(r.socket); err != nil {
		t.Fatal(err)
	}
}

// volume makes a new volume.
func (r *rig) volume(size int64, block int) curve.Location {
	l := curve.Location{Pool: "pool", Volume: fmt.Sprint("/vol", names.Add(1)), User: "user", Socket: r.socket, Timeout: 10 * time.Second}
	r.Create(l.Name(), size, block)
	return l
}

func open(t testing.TB, l curve.Location, o backing.OpenOptions) *curve.Store {
	t.Helper()
	s, err := curve.OpenAt(t.Context(), l, o, quick)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

var exclusive = backing.OpenOptions{Exclusive: true}

func TestStore(t *testing.T) {
	for _, c := range []struct {
		name    string
		block   int
		discard bool
	}{{"4096", 4096, true}, {"512", 512, false}} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nebdfake.Options{Shuffle: true})
			storetest.Run(t, func(t *testing.T) backing.Store {
				l := r.volume(storetest.Size, c.block)
				l.Discard = c.discard
				s, err := curve.OpenAt(t.Context(), l, exclusive, quick)
				if err != nil {
					t.Fatal(err)
				}
				return s
			})
			if left := r.Open(); len(left) > 0 {
				t.Errorf("still open after Close: %v", left)
			}
		})
	}
}
