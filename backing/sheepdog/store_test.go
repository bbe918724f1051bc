package sheepdog_test

import (
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"blockgate/backing"
	"blockgate/backing/sheepdog"
	"blockgate/backing/sheepdog/sheepfake"
	"blockgate/backing/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// quick are times for tests: nobody is far away.
var quick = sheepdog.Config{
	AnswerTimeout: 400 * time.Millisecond, Settle: time.Millisecond, Backoff: time.Millisecond,
	Poll: 5 * time.Millisecond, Hold: 10 * time.Millisecond,
}

var names atomic.Uint32

// rig is a cluster with some sheep on unix sockets.
type rig struct {
	*sheepfake.Cluster
	sheep []*sheepfake.Sheep
}

func newRig(t testing.TB, sheep int, o sheepfake.Options) *rig {
	t.Helper()
	if o.BlockShift == 0 {
		o.BlockShift = 20
	}
	r := &rig{Cluster: sheepfake.New(o)}
	t.Cleanup(r.Close)
	dir := t.TempDir()
	for i := range sheep {
		s, err := r.Start("unix", filepath.Join(dir, fmt.Sprint("sock", i)))
		if err != nil {
			t.Fatal(err)
		}
		r.sheep = append(r.sheep, s)
	}
	return r
}

// location is a VDI seen through these sheep.
func (r *rig) location(name string, sheep ...int) sheepdog.Location {
	l := sheepdog.Location{Name: name, Timeout: 10 * time.Second}
	for _, i := range sheep {
		network, address := r.sheep[i].Addr()
		l.Gateways = append(l.Gateways, sheepdog.Gateway{Network: network, Address: address})
	}
	return l
}

func (r *rig) open(t testing.TB, l sheepdog.Location, o backing.OpenOptions) *sheepdog.Store {
	t.Helper()
	s, err := sheepdog.OpenAt(t.Context(), l, o, quick)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// create makes and opens a new VDI; the test's end closes it.
func (r *rig) create(t testing.TB, size int64) *sheepdog.Store {
	t.Helper()
	s := r.open(t, r.location(fmt.Sprint("vdi", names.Add(1)), 0), backing.OpenOptions{Create: true, CreateSize: size})
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestStore(t *testing.T) {
	r := newRig(t, 1, sheepfake.Options{Shuffle: true})
	storetest.Run(t, func(t *testing.T) backing.Store {
		l := r.location(fmt.Sprint("vdi", names.Add(1)), 0)
		return r.open(t, l, backing.OpenOptions{Create: true, CreateSize: storetest.Size})
	})
	if err := r.Check(); err != nil {
		t.Error(err)
	}
}
