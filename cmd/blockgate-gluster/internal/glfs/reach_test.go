package glfs

import (
	"bytes"
	"context"
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/backing"
)

const testStall = 30 * time.Second

// stalling opens a store of 1 MiB in a bubble.
func stalling(t *testing.T, l Location, fn func(t *testing.T, v *fakeVolume, s *Store)) {
	synctest.Test(t, func(t *testing.T) {
		v := newFake(t)
		s, err := openFake(t, v, l, backing.OpenOptions{Create: true, CreateSize: 1 << 20, Exclusive: true, Stall: testStall})
		if err != nil {
			t.Fatal(err)
		}
		fn(t, v, s)
		synctest.Wait()
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		synctest.Wait()
		if v.detached != 1 {
			t.Error("the volume was not detached")
		}
	})
}

// later does something after a while.
func later(d time.Duration, fn func()) { time.AfterFunc(d, fn) }

func TestBricksComeBack(t *testing.T) {
	for _, c := range []struct {
		name   string
		forget bool
	}{{"the same connection's files", false}, {"files forgotten", true}} {
		t.Run(c.name, func(t *testing.T) {
			stalling(t, Location{}, func(t *testing.T, v *fakeVolume, s *Store) {
				var states []backing.State
				stop := s.Notify(func(backing.Change) { states = append(states, s.Health().State) })
				defer stop()
				p := bytes.Repeat([]byte{9}, 8192)
				v.set(func() { v.down = syscall.ENOTCONN })
				later(20*time.Second, func() {
					v.set(func() {
						v.down = nil
						if c.forget {
							v.epoch++
						}
					})
				})
				begin := time.Now()
				if err := s.WriteAt(t.Context(), p, 4096); err != nil {
					t.Fatal(err)
				}
				if d := time.Since(begin); d < 20*time.Second || d > 22*time.Second {
					t.Errorf("written after %v", d)
				}
				got := make([]byte, len(p))
				if err := s.ReadAt(t.Context(), got, 4096); err != nil || !bytes.Equal(got, p) {
					t.Fatalf("read back: %v", err)
				}
				if err := s.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				if len(states) != 2 || states[0] != backing.Stalled || states[1] != backing.Healthy {
					t.Errorf("states %v, want stalled and healthy", states)
				}
			})
		})
	}
}

func TestStallLimit(t *testing.T) {
	stalling(t, Location{}, func(t *testing.T, v *fakeVolume, s *Store) {
		v.set(func() { v.down = syscall.ENOTCONN })
		begin := time.Now()
		err := s.WriteAt(t.Context(), make([]byte, 512), 0)
		if d := time.Since(begin); !errors.Is(err, syscall.ENOTCONN) || d < testStall || d > testStall+time.Second {
			t.Fatalf("error %v after %v", err, d)
		}
		if h := s.Health(); h.State != backing.Stalled || h.Reason == "" || h.Since.IsZero() {
			t.Errorf("health %+v", h)
		}
		// A call that is cancelled does not wait that long.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.ReadAt(ctx, make([]byte, 512), 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled: %v", err)
		}
		// Nobody calls, and yet it is seen that they are back.
		v.set(func() { v.down = nil })
		time.Sleep(2 * watchTime)
		synctest.Wait()
		if h := s.Health(); h.State != backing.Healthy {
			t.Errorf("health %+v", h)
		}
		if err := s.WriteAt(t.Context(), make([]byte, 512), 0); err != nil {
			t.Errorf("write afterwards: %v", err)
		}
	})
}

// The limit changes while the store is open.
func TestSetStall(t *testing.T) {
	stalling(t, Location{}, func(t *testing.T, v *fakeVolume, s *Store) {
		for _, limit := range []time.Duration{2 * time.Second, time.Hour} {
			backing.SetStall(s, limit)
			v.set(func() { v.down = syscall.ENOTCONN })
			begin := time.Now()
			err := s.WriteAt(t.Context(), make([]byte, 512), 0)
			if d := time.Since(begin); !errors.Is(err, syscall.ENOTCONN) || d < limit || d > limit+time.Second {
				t.Errorf("error %v after %v, limit %v", err, d, limit)
			}
			v.set(func() { v.down = nil })
		}
	})
}

// Bricks that hang: what was given up may still come, so nothing else is written
// before that is known to be past.
func TestLateWrite(t *testing.T) {
	stalling(t, Location{}, func(t *testing.T, v *fakeVolume, s *Store) {
		silent := make(chan struct{})
		v.set(func() { v.silent = silent })
		old, now := bytes.Repeat([]byte{1}, 512), bytes.Repeat([]byte{2}, 512)
		go func() {
			time.Sleep(2 * silentTime)
			if h := s.Health(); h.State != backing.Stalled {
				t.Errorf("nothing is answered, and health is %+v", h)
			}
		}()
		if err := s.WriteAt(t.Context(), old, 0); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("error %v", err)
		}
		copy(old, "the store must not look here any more")
		later(10*time.Second, func() {
			v.set(func() { v.silent = nil })
			close(silent)
		})
		if err := s.WriteAt(t.Context(), now, 0); err != nil {
			t.Fatal(err)
		}
		if got := v.data["/disk"][:512]; !bytes.Equal(got, now) {
			t.Errorf("the disk has %x… in the end", got[:4])
		}
	})
}

func TestCloseWhileHanging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newFake(t)
		s, err := openFake(t, v, Location{}, backing.OpenOptions{Create: true, CreateSize: 1 << 20, Stall: -1})
		if err != nil {
			t.Fatal(err)
		}
		silent := make(chan struct{})
		v.set(func() { v.silent = silent })
		failed := make(chan error, 2)
		go func() { failed <- s.WriteAt(t.Context(), make([]byte, 512), 0) }()
		go func() { failed <- s.Flush(t.Context()) }()
		synctest.Wait()
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		for range 2 {
			if err := <-failed; !errors.Is(err, backing.ErrClosed) {
				t.Errorf("a call under way: %v", err)
			}
		}
		if v.detached != 0 {
			t.Error("the volume was detached with a call under way")
		}
		close(silent)
	})
}

func TestFlushFails(t *testing.T) {
	for _, c := range []struct {
		name string
		loc  Location
		fail func(*fakeVolume)
		ok   bool
	}{
		{"the bricks say so", Location{}, func(v *fakeVolume) { v.flushes = []error{syscall.EIO} }, false},
		{"away for a while", Location{}, func(v *fakeVolume) { v.flushes = []error{syscall.ENOTCONN, syscall.ENOTCONN} }, true},
		{"away for too long", Location{}, func(v *fakeVolume) { v.down = syscall.ENOTCONN }, false},
		{"away, and written behind", Location{WriteBehind: Accept}, func(v *fakeVolume) { v.flushes = []error{syscall.ENOTCONN} }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			stalling(t, c.loc, func(t *testing.T, v *fakeVolume, s *Store) {
				if err := s.WriteAt(t.Context(), make([]byte, 512), 0); err != nil {
					t.Fatal(err)
				}
				v.set(func() { c.fail(v) })
				err := s.Flush(t.Context())
				v.set(func() { v.down = nil })
				if c.ok {
					if err != nil {
						t.Error(err)
					}
					return
				}
				if !errors.Is(err, backing.ErrFailed) {
					t.Fatalf("flush: %v", err)
				}
				for name, err := range map[string]error{
					"write": s.WriteAt(t.Context(), make([]byte, 512), 0), "flush": s.Flush(t.Context()),
					"discard": s.Discard(t.Context(), 0, 4096), "resize": s.Resize(t.Context(), 2<<20),
				} {
					if !errors.Is(err, backing.ErrFailed) {
						t.Errorf("%s afterwards: %v", name, err)
					}
				}
				if err := s.ReadAt(t.Context(), make([]byte, 512), 0); err != nil {
					t.Errorf("read afterwards: %v", err)
				}
				if h := s.Health(); h.State != backing.Failed {
					t.Errorf("health %+v", h)
				}
			})
		})
	}
}

// Bricks come back without our lock, to somebody else's or to nobody's.
func TestLockLost(t *testing.T) {
	for _, c := range []struct {
		name  string
		other bool
		idle  bool
	}{{"at a write", false, false}, {"at a write, and taken", true, false}, {"at rest", false, true}, {"at rest, and taken", true, true}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newFake(t)
				v.enforce = true
				s, err := openFake(t, v, Location{Lock: true}, backing.OpenOptions{Create: true, CreateSize: 1 << 20, Stall: testStall})
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				v.set(func() { v.locker, v.other = nil, c.other })
				if c.idle {
					time.Sleep(2 * lockAgainTime)
					synctest.Wait()
					if held := v.locker != nil; held == c.other {
						t.Errorf("the lock is ours: %v", held)
					}
				}
				err = s.WriteAt(t.Context(), make([]byte, 512), 0)
				if c.other != errors.Is(err, backing.ErrFailed) || !c.other && err != nil {
					t.Errorf("write: %v", err)
				}
				if failed := s.Health().State == backing.Failed; failed != c.other {
					t.Errorf("health %+v", s.Health())
				}
				// Not even when the other has gone.
				v.set(func() { v.other = false })
				if err := s.WriteAt(t.Context(), make([]byte, 512), 0); c.other != errors.Is(err, backing.ErrFailed) {
					t.Errorf("write later: %v", err)
				}
			})
		})
	}
}

// Flushes that wait for the same are served by one.
func TestFlushesShare(t *testing.T) {
	stalling(t, Location{}, func(t *testing.T, v *fakeVolume, s *Store) {
		silent := make(chan struct{})
		v.set(func() { v.silent = silent })
		failed := make(chan error, 9)
		for range cap(failed) {
			go func() { failed <- s.Flush(t.Context()) }()
		}
		synctest.Wait()
		v.set(func() { v.silent = nil })
		close(silent)
		for range cap(failed) {
			if err := <-failed; err != nil {
				t.Error(err)
			}
		}
		if v.syncs > 2 {
			t.Errorf("%d syncs for 9 flushes", v.syncs)
		}
	})
}
