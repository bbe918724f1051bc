package sheepdog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"blockgate/backing"
	"blockgate/backing/sheepdog"
	"blockgate/backing/sheepdog/sheepfake"
)

// trouble makes one in ten requests go wrong while it is on.
type trouble struct {
	on     atomic.Bool
	faults atomic.Int64
	random func(sheepfake.Request) sheepfake.Fault
}

func (x *trouble) fault(q sheepfake.Request) (f sheepfake.Fault) {
	if x.on.Load() {
		if f = x.random(q); f.Kind != sheepfake.None {
			x.faults.Add(1)
		}
	}
	return f
}

// disk is a store beside what it must hold, and its snapshots beside theirs.
type disk struct {
	t     *testing.T
	r     *rig
	x     *trouble
	l     sheepdog.Location
	cfg   sheepdog.Config
	s     *sheepdog.Store
	want  []byte
	snaps map[string][]byte
	n     int
}

const diskSize = 4*mib + 512

func (d *disk) open(l sheepdog.Location) *sheepdog.Store {
	s, err := sheepdog.OpenAt(d.t.Context(), l, backing.OpenOptions{}, d.cfg)
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

func place(r *rapid.T) (off int64, n int) {
	n = rapid.OneOf(rapid.IntRange(1, 5000), rapid.SampledFrom([]int{512, 4096, mib}), rapid.IntRange(1, 2*mib)).Draw(r, "n")
	n = min(n, diskSize)
	off = rapid.OneOf(rapid.SampledFrom([]int64{0, mib, 2 * mib, 3 * mib, diskSize}), rapid.Int64Range(0, diskSize)).Draw(r, "off")
	return min(off, int64(diskSize-n)), n
}

func (d *disk) actions() map[string]func(*rapid.T) {
	ctx := d.t.Context()
	check := func(r *rapid.T, err error) {
		r.Helper()
		if err != nil {
			r.Fatal(err)
		}
	}
	return map[string]func(*rapid.T){
		"write": func(r *rapid.T) {
			off, n := place(r)
			p := fill(n, rapid.Byte().Draw(r, "seed"))
			check(r, d.s.WriteAt(ctx, p, off))
			copy(d.want[off:], p)
		},
		"writes beside each other": func(r *rapid.T) {
			off, _ := place(r)
			off = min(off, diskSize-64<<10)
			p := fill(64<<10, rapid.Byte().Draw(r, "seed"))
			var wg sync.WaitGroup
			errs := make([]error, 16)
			for i := range errs {
				wg.Go(func() { errs[i] = d.s.WriteAt(ctx, p[i<<12:][:4096], off+int64(i)<<12) })
			}
			wg.Wait()
			check(r, errors.Join(errs...))
			copy(d.want[off:], p)
		},
		"discard": func(r *rapid.T) {
			off, n := place(r)
			check(r, d.s.Discard(ctx, off, int64(n)))
			clear(d.want[off:][:n])
		},
		"zero": func(r *rapid.T) {
			off, n := place(r)
			check(r, d.s.WriteZeroes(ctx, off, int64(n), rapid.Bool().Draw(r, "unmap")))
			clear(d.want[off:][:n])
		},
		"read": func(r *rapid.T) {
			off, n := place(r)
			d.compare(r, d.s, d.want, off, n)
		},
		"snapshot": func(r *rapid.T) {
			if len(d.snaps) == 3 {
				return
			}
			d.n++
			name := fmt.Sprint("s", d.n)
			_, err := d.s.CreateSnapshot(ctx, name)
			if err != nil {
				// It may fail when the answer is lost, and may or may not be there.
				list, err2 := d.s.Snapshots(ctx)
				check(r, err2)
				if !slices.ContainsFunc(list, func(s backing.Snapshot) bool { return s.Name == name }) {
					return
				}
			}
			d.snaps[name] = bytes.Clone(d.want)
		},
		"snapshot of somebody else": func(r *rapid.T) {
			if len(d.snaps) == 3 {
				return
			}
			d.n++
			name := fmt.Sprint("s", d.n)
			d.x.on.Store(false)
			defer d.x.on.Store(true)
			other := d.open(d.l)
			defer other.Close()
			_, err := other.CreateSnapshot(ctx, name)
			check(r, err)
			d.snaps[name] = bytes.Clone(d.want)
		},
		"delete snapshot": func(r *rapid.T) {
			name, ok := d.oldest()
			if !ok {
				return
			}
			if err := d.s.DeleteSnapshot(ctx, name); err != nil && !errors.Is(err, backing.ErrNotExist) {
				// Half deleted, or deleted: nobody may use it any more.
				d.x.on.Store(false)
				defer d.x.on.Store(true)
				if err := d.s.DeleteSnapshot(ctx, name); err != nil && !errors.Is(err, backing.ErrNotExist) {
					r.Fatal(err)
				}
			}
			delete(d.snaps, name)
		},
		"clone": func(r *rapid.T) {
			name, ok := d.oldest()
			if !ok {
				return
			}
			d.n++
			where, err := d.s.Clone(ctx, name, fmt.Sprint(d.l.Name, "clone", d.n))
			if err != nil {
				return // the answer was lost
			}
			l, err := sheepdog.ParseLocation(where)
			check(r, err)
			c := d.open(l)
			defer c.Close()
			want := bytes.Clone(d.snaps[name])
			off, n := place(r)
			p := fill(n, 77)
			check(r, c.WriteAt(ctx, p, off))
			copy(want[off:], p)
			d.compare(r, c, want, 0, diskSize)
		},
		"lose the sheep": func(r *rapid.T) {
			i := rapid.IntRange(0, len(d.r.sheep)-1).Draw(r, "which")
			if rapid.IntRange(0, 3).Draw(r, "rarely") != 0 {
				return
			}
			d.r.sheep[i].Stop()
			off, n := place(r)
			d.compare(r, d.s, d.want, off, n)
			check(r, d.r.sheep[i].Start())
		},
		"": func(r *rapid.T) {
			off, n := place(r)
			d.compare(r, d.s, d.want, off, min(n, 8192))
		},
	}
}

// oldest is one of the snapshots.
func (d *disk) oldest() (name string, ok bool) {
	names := slices.Sorted(maps.Keys(d.snaps))
	if len(names) == 0 {
		return "", false
	}
	return names[0], true
}

func (d *disk) compare(r *rapid.T, s backing.Store, want []byte, off int64, n int) {
	r.Helper()
	got := bytes.Repeat([]byte{0xee}, n)
	if err := s.ReadAt(d.t.Context(), got, off); err != nil {
		r.Fatal(err)
	}
	if i := differ(got, want[off:off+int64(n)]); i >= 0 {
		r.Fatalf("byte %d is %#x, want %#x", off+int64(i), got[i], want[off+int64(i)])
	}
}

const modelTime = 5 * time.Second

// TestModelWithFaults: whatever goes wrong on the way, no call that is meant to
// survive it fails, and the disk, its snapshots and clones hold what they must.
func TestModelWithFaults(t *testing.T) {
	r := newRig(t, 2, sheepfake.Options{Shuffle: true})
	x := &trouble{random: sheepfake.RandomFaults(10, 1)}
	r.SetFault(x.fault)
	begin := time.Now()
	rapid.Check(t, func(rt *rapid.T) {
		if time.Since(begin) > modelTime {
			return // on a slow machine fewer histories have to do
		}
		x.on.Store(false)
		cfg := quick
		cfg.AnswerTimeout, cfg.Backoff = 40*time.Millisecond, 100*time.Microsecond
		d := &disk{
			t: t, r: r, x: x, l: r.location(fmt.Sprint("vdi", names.Add(1)), 0, 1), cfg: cfg,
			want: make([]byte, diskSize), snaps: make(map[string][]byte),
		}
		s, err := sheepdog.OpenAt(t.Context(), d.l, backing.OpenOptions{Create: true, CreateSize: diskSize}, d.cfg)
		if err != nil {
			rt.Fatal(err)
		}
		d.s = s
		x.on.Store(true)
		rt.Repeat(d.actions())
		x.on.Store(false)
		for name, want := range d.snaps {
			l := d.l
			l.Tag = name
			snap := d.open(l)
			d.compare(rt, snap, want, 0, diskSize)
			if err := snap.Close(); err != nil {
				rt.Fatal(err)
			}
		}
		d.compare(rt, s, d.want, 0, diskSize)
		// A change makes the store see the last snapshot of somebody else.
		if err := s.WriteAt(t.Context(), d.want[:1], 0); err != nil {
			rt.Fatal(err)
		}
		if err := s.Close(); err != nil {
			rt.Fatal(err)
		}
		again := d.open(d.l)
		d.compare(rt, again, d.want, 0, diskSize)
		if err := again.Close(); err != nil {
			rt.Fatal(err)
		}
		if err := r.Check(); err != nil {
			rt.Fatal(err)
		}
	})
	t.Logf("%d faults", x.faults.Load())
	if x.faults.Load() == 0 {
		t.Error("nothing went wrong")
	}
}

// TestTimeLimit: with every sheep gone a request is tried for as long as it says,
// and then fails; the store works again when a sheep is back.
func TestTimeLimit(t *testing.T) {
	r := newRig(t, 1, sheepfake.Options{})
	l := r.location("disk", 0)
	l.Timeout = 50 * time.Millisecond
	s := r.open(t, l, backing.OpenOptions{Create: true, CreateSize: mib})
	defer s.Close()
	ok(t, s.WriteAt(t.Context(), fill(4096, 1), 0))
	r.sheep[0].Stop()
	begin := time.Now()
	if err := s.ReadAt(t.Context(), make([]byte, 4096), 0); err == nil {
		t.Error("read without a sheep")
	}
	if d := time.Since(begin); d < l.Timeout {
		t.Errorf("gave up after %v", d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.WriteAt(ctx, make([]byte, 4096), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	ok(t, r.sheep[0].Start())
	expect(t, s, 0, fill(4096, 1))
}

// TestLateAnswer: an answer that is late keeps nothing else on the connection
// waiting, and is taken when it comes.
func TestLateAnswer(t *testing.T) {
	r := newRig(t, 1, sheepfake.Options{})
	cfg := quick
	cfg.Conns, cfg.AnswerTimeout = 1, time.Minute
	s, err := sheepdog.OpenAt(t.Context(), r.location("disk", 0), backing.OpenOptions{Create: true, CreateSize: 2 * mib}, cfg)
	ok(t, err)
	defer s.Close()
	ok(t, s.WriteAt(t.Context(), fill(2*mib, 1), 0))
	release := make(chan struct{})
	r.SetFault(func(q sheepfake.Request) sheepfake.Fault {
		if q.Offset == 8192 && q.OID&1 == 0 {
			return sheepfake.Fault{Kind: sheepfake.Late, Until: release}
		}
		return sheepfake.Fault{}
	})
	late := make(chan error, 1)
	p := make([]byte, 4096)
	go func() { late <- s.ReadAt(t.Context(), p, 8192) }()
	for i := range int64(100) {
		expect(t, s, mib+i*4096, fill(2*mib, 1)[mib+i*4096:][:4096])
	}
	select {
	case err := <-late:
		t.Errorf("answered before its time: %v", err)
	default:
	}
	close(release)
	ok(t, <-late)
	if !bytes.Equal(p, fill(2*mib, 1)[8192:][:4096]) {
		t.Error("wrong data")
	}
}

// TestCloseEndsCalls: closing the store ends calls that wait for a sheep.
func TestCloseEndsCalls(t *testing.T) {
	r := newRig(t, 1, sheepfake.Options{})
	cfg := quick
	cfg.AnswerTimeout, cfg.Settle = time.Hour, time.Hour
	s, err := sheepdog.OpenAt(t.Context(), r.location("disk", 0), backing.OpenOptions{Create: true, CreateSize: mib}, cfg)
	ok(t, err)
	got := make(chan struct{}, 2)
	r.SetFault(func(q sheepfake.Request) sheepfake.Fault {
		got <- struct{}{}
		return sheepfake.Fault{Kind: sheepfake.Swallow}
	})
	done := make(chan error, 2)
	go func() { done <- s.WriteAt(t.Context(), make([]byte, 64<<10), 0) }()
	<-got
	ok(t, s.Close())
	if err := <-done; !errors.Is(err, backing.ErrClosed) {
		t.Errorf("write: %v", err)
	}
}

// TestNoSpace: the cluster has no room, which is not an error of the medium.
func TestNoSpace(t *testing.T) {
	r := newRig(t, 1, sheepfake.Options{Capacity: 256 << 10})
	s := r.create(t, 4*mib)
	var err error
	for i := int64(0); i < 4 && err == nil; i++ {
		err = s.WriteAt(t.Context(), fill(128<<10, 1), i*mib)
	}
	if !errors.Is(err, backing.ErrNoSpace) {
		t.Errorf("error %v", err)
	}
	expect(t, s, 0, fill(128<<10, 1))
}
