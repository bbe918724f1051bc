package curve_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/curve"
	"blockgate/backing/curve/nebdfake"
)

// twin is a volume beside a slice of bytes that does the same.
type twin struct {
	s     *curve.Store
	want  []byte
	snaps map[string][]byte
	alone map[string]bool // nothing was cloned from it
}

// Random histories of volumes, snapshots of them and clones of those, on a server
// that fails: each holds what a slice of bytes does that was copied then.
func TestModelOfSnapshotsAndClones(t *testing.T) {
	const size = 1 << 20
	r := newRig(t, nebdfake.Options{Shuffle: true})
	svc := nebdfake.NewSnapshotService(r.Server, "pool")
	h := httptest.NewServer(svc)
	defer h.Close()
	rng := rand.New(rand.NewPCG(11, 13))
	begin := func(l curve.Location, want []byte) *twin {
		return &twin{open(t, l, exclusive), want, map[string][]byte{}, map[string]bool{}}
	}
	l := r.volume(size, 4096)
	l.Snapshots, l.Discard, l.Timeout = []string{h.Listener.Addr().String()}, true, 60*time.Second
	twins := []*twin{begin(l, make([]byte, size))}
	f := &faults{r: r, rate: 0.03, rng: rand.New(rand.NewPCG(3, 5))}
	r.SetFault(f.decide)
	defer f.release()
	// Held requests are let go as time goes by, not only by other requests.
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				f.decide(nebdfake.Request{})
			}
		}
	}()
	defer func() { close(stop); <-ended }()

	for step := range 400 {
		v := twins[rng.IntN(len(twins))]
		off := rng.IntN(size)
		n := 1 + rng.IntN(min(size-off, 20000))
		snap := fmt.Sprint("s", rng.IntN(4))
		data, exists := v.snaps[snap]
		switch rng.IntN(12) {
		case 0:
			switch s, err := v.s.CreateSnapshot(t.Context(), snap); {
			case exists:
				is(t, err, backing.ErrExist)
			case err != nil:
				t.Fatal(err)
			default:
				if s.Name != snap || s.Size != size {
					t.Fatalf("snapshot %+v", s)
				}
				v.snaps[snap], v.alone[snap] = bytes.Clone(v.want), true
			}
		case 1:
			switch err := v.s.DeleteSnapshot(t.Context(), snap); {
			case !exists:
				is(t, err, backing.ErrNotExist)
			case !v.alone[snap]:
				if err != nil {
					is(t, err, backing.ErrBusy)
					break
				}
				delete(v.snaps, snap) // its clones had been flattened
			default:
				ok(t, err)
				delete(v.snaps, snap)
			}
		case 2:
			if len(twins) >= 5 {
				if err := v.s.Flatten(t.Context()); err != nil && !errors.Is(err, backing.ErrNotExist) {
					t.Fatal(err)
				}
				break
			}
			location, err := v.s.Clone(t.Context(), snap, fmt.Sprint("clone", step))
			if !exists {
				is(t, err, backing.ErrNotExist)
				break
			}
			ok(t, err)
			l, err := curve.ParseLocation(location)
			ok(t, err)
			v.alone[snap] = false
			twins = append(twins, begin(l, bytes.Clone(data)))
		case 3:
			ok(t, v.s.Discard(t.Context(), int64(off), int64(n)))
			clear(v.want[off : off+n])
		case 4, 5, 6, 7:
			holds(t, v.s, int64(off), v.want[off:off+n])
		default:
			for i := range v.want[off : off+n] {
				v.want[off+i] = byte(step + i)
			}
			ok(t, v.s.WriteAt(t.Context(), v.want[off:off+n], int64(off)))
		}
	}
	for _, v := range twins {
		holds(t, v.s, 0, v.want)
		list, err := v.s.Snapshots(t.Context())
		ok(t, err)
		if len(list) != len(v.snaps) {
			t.Errorf("%d snapshots, want %d", len(list), len(v.snaps))
		}
	}
	if len(twins) < 3 || f.n.Load() < 10 {
		t.Errorf("%d volumes and %d faults: the test tests little", len(twins), f.n.Load())
	}
}
