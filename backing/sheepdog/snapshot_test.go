package sheepdog_test

import (
	"bytes"
	"errors"
	"sync"
	"testing"

	"blockgate/backing"
	"blockgate/backing/sheepdog"
	"blockgate/backing/sheepdog/sheepfake"
)

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fill is n bytes that tell their seed. They repeat after a prime number of bytes,
// so that one block is not like another.
func fill(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range min(n, 4099) {
		p[i] = byte(i*13+i>>8) ^ seed | 1
	}
	for done := 4099; done < n; done *= 2 {
		copy(p[done:], p[:done])
	}
	return p
}

func expect(t testing.TB, s backing.Store, off int64, want []byte) {
	t.Helper()
	got := bytes.Repeat([]byte{0xee}, len(want))
	ok(t, s.ReadAt(t.Context(), got, off))
	if i := differ(got, want); i >= 0 {
		t.Fatalf("byte %d is %#x, want %#x", off+int64(i), got[i], want[i])
	}
}

// differ is the first byte in which two slices of one length differ, or -1.
func differ(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	i := 0
	for a[i] == b[i] {
		i++
	}
	return i
}

const mib = 1 << 20

func TestSnapshotAndClone(t *testing.T) {
	for name, o := range map[string]sheepfake.Options{
		"replicated": {Copies: 3}, "erasure coded": {Copies: 3, CopyPolicy: 0x11}, "locks": {Locks: true},
	} {
		t.Run(name, func(t *testing.T) { snapshotAndClone(t, newRig(t, 1, o)) })
	}
}

func snapshotAndClone(t *testing.T, r *rig) {
	ctx := t.Context()
	l := r.location("disk", 0)
	s := r.open(t, l, backing.OpenOptions{Create: true, CreateSize: 4 * mib, Exclusive: true})
	defer s.Close()
	first := fill(2*mib, 1)
	ok(t, s.WriteAt(ctx, first, mib/2))
	snap, err := s.CreateSnapshot(ctx, "monday")
	ok(t, err)
	if snap.Name != "monday" || snap.ID != "1" || snap.Size != 4*mib || snap.Created.IsZero() || snap.Pause <= 0 {
		t.Errorf("snapshot %+v", snap)
	}
	if _, err := s.CreateSnapshot(ctx, "monday"); !errors.Is(err, backing.ErrExist) {
		t.Errorf("again: %v", err)
	}
	for _, bad := range []string{"", "12", string(make([]byte, 300))} {
		if _, err := s.CreateSnapshot(ctx, bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	// Part of an object (copied), a whole one (not), and one that was a hole.
	second := bytes.Clone(first)
	copy(second[100:], fill(1000, 2))
	ok(t, s.WriteAt(ctx, fill(1000, 2), mib/2+100))
	copy(second[mib/2:], fill(mib, 3))
	ok(t, s.WriteAt(ctx, fill(mib, 3), mib))
	ok(t, s.WriteAt(ctx, fill(512, 4), 3*mib))
	ok(t, s.Discard(ctx, 2*mib, mib))
	clear(second[mib+mib/2:])
	expect(t, s, mib/2, second)

	tagged := l
	tagged.Tag = "monday"
	numbered := l
	numbered.SnapID = 1
	for _, l := range []sheepdog.Location{tagged, numbered} {
		old := r.open(t, l, backing.OpenOptions{})
		expect(t, old, mib/2, first)
		expect(t, old, 3*mib, make([]byte, 512))
		if !old.Info().ReadOnly {
			t.Error("a snapshot is not read-only")
		}
		if err := old.WriteAt(ctx, fill(512, 0), 0); !errors.Is(err, backing.ErrReadOnly) {
			t.Errorf("write to a snapshot: %v", err)
		}
		if c := backing.CapsOf(old); c&(backing.CapsModify|backing.CapSnapshot) != 0 {
			t.Errorf("a snapshot claims %v", c)
		}
		ok(t, old.Close())
	}

	where, err := s.Clone(ctx, "monday", "copy")
	ok(t, err)
	if _, err := s.Clone(ctx, "monday", "copy"); !errors.Is(err, backing.ErrExist) {
		t.Errorf("clone again: %v", err)
	}
	if _, err := s.Clone(ctx, "tuesday", "copy2"); !errors.Is(err, backing.ErrNotExist) {
		t.Errorf("clone of nothing: %v", err)
	}
	if _, err := s.Clone(ctx, "monday", "a:b"); err == nil {
		t.Error("a clone with a colon")
	}
	clone, err := sheepdog.Open(ctx, where, backing.OpenOptions{Exclusive: true})
	ok(t, err)
	defer clone.Close()
	expect(t, clone, mib/2, first)
	ok(t, clone.WriteAt(ctx, fill(512, 9), mib))
	third := bytes.Clone(first)
	copy(third[mib/2:], fill(512, 9))
	expect(t, clone, mib/2, third)
	expect(t, s, mib/2, second)

	if _, err := s.CreateSnapshot(ctx, "tuesday"); err != nil {
		t.Fatal(err)
	}
	list, err := s.Snapshots(ctx)
	ok(t, err)
	if len(list) != 2 || list[0].Name != "monday" || list[1].Name != "tuesday" || list[1].ID != "2" || list[1].Created.Before(list[0].Created) {
		t.Errorf("snapshots %+v", list)
	}
	ok(t, s.DeleteSnapshot(ctx, "monday"))
	if err := s.DeleteSnapshot(ctx, "monday"); !errors.Is(err, backing.ErrNotExist) {
		t.Errorf("delete again: %v", err)
	}
	if list, err := s.Snapshots(ctx); err != nil || len(list) != 1 {
		t.Errorf("snapshots %+v, %v", list, err)
	}
	expect(t, clone, mib/2, third)
	expect(t, s, mib/2, second)
	ok(t, s.DeleteSnapshot(ctx, "2"))
	expect(t, s, mib/2, second)
	ok(t, r.Check())
}

// TestIndexUpdateMeetsSnapshot: an update of the index that arrives when the VDI has
// just become a snapshot is taken there, and would be missing in the working VDI.
func TestIndexUpdateMeetsSnapshot(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, 1, sheepfake.Options{})
	s := r.open(t, r.location("disk", 0), backing.OpenOptions{Create: true, CreateSize: 4 * mib})
	defer s.Close()
	other := r.open(t, r.location("disk", 0), backing.OpenOptions{})
	defer other.Close()
	ok(t, s.WriteAt(ctx, fill(4096, 5), mib))

	held, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.SetFault(func(q sheepfake.Request) (f sheepfake.Fault) {
		if q.IndexUpdate() {
			once.Do(func() {
				close(held)
				f = sheepfake.Fault{Kind: sheepfake.Late, Before: true, Until: release}
			})
		}
		return f
	})
	done := make(chan error, 1)
	go func() { done <- s.WriteAt(ctx, fill(4096, 6), 0) }()
	<-held
	_, err := other.CreateSnapshot(ctx, "now")
	ok(t, err)
	close(release)
	ok(t, <-done)
	fresh := r.open(t, r.location("disk", 0), backing.OpenOptions{})
	defer fresh.Close()
	expect(t, fresh, 0, fill(4096, 6))
	expect(t, fresh, mib, fill(4096, 5))
	ok(t, r.Check())
}

// TestForeignSnapshot: somebody else takes snapshots while we write; nothing that
// was acknowledged is lost, and the snapshots keep what they have.
func TestForeignSnapshot(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, 1, sheepfake.Options{})
	s := r.open(t, r.location("disk", 0), backing.OpenOptions{Create: true, CreateSize: 16 * mib})
	defer s.Close()
	other := r.open(t, r.location("disk", 0), backing.OpenOptions{})
	defer other.Close()

	ok(t, s.WriteAt(ctx, fill(4096, 1), 0))
	_, err := other.CreateSnapshot(ctx, "one")
	ok(t, err)
	ok(t, s.WriteAt(ctx, fill(4096, 2), 4096))
	ok(t, s.WriteAt(ctx, fill(4096, 3), 5*mib))
	expect(t, s, 0, append(fill(4096, 1), fill(4096, 2)...))
	_, err = other.CreateSnapshot(ctx, "two")
	ok(t, err)
	ok(t, s.Discard(ctx, 5*mib, mib))
	expect(t, s, 5*mib, make([]byte, 4096))
	two := r.location("disk", 0)
	two.Tag = "two"
	old := r.open(t, two, backing.OpenOptions{})
	defer old.Close()
	expect(t, old, 5*mib, fill(4096, 3))

	// Now both at once: each writer fills objects of its own while snapshots are
	// taken as fast as they go.
	stop := make(chan struct{})
	var snaps, writers sync.WaitGroup
	snaps.Go(func() {
		for i := range 50 {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := other.CreateSnapshot(ctx, "s"+string(rune('A'+i))); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for w := range 4 {
		writers.Go(func() {
			for i := range 3 {
				off := int64((w*4 + i) * mib)
				for k := range int64(8) {
					if err := s.WriteAt(ctx, fill(4096, byte(w*16+i)), off+k*8192); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	snaps.Wait()
	check := func(s backing.Store) {
		for w := range 4 {
			for i := range 3 {
				for k := range int64(8) {
					expect(t, s, int64((w*4+i)*mib)+k*8192, fill(4096, byte(w*16+i)))
				}
			}
		}
	}
	check(s)
	// A last write makes the store see the last snapshot, and mend its index.
	ok(t, s.WriteAt(ctx, fill(512, 1), 15*mib))
	fresh := r.open(t, r.location("disk", 0), backing.OpenOptions{})
	defer fresh.Close()
	check(fresh)
	ok(t, r.Check())
}
