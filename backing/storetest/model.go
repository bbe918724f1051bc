package storetest

import (
	"bytes"
	"encoding/binary"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"blockgate/backing"
)

// machine is a store beside a slice of bytes that does the same.
type machine struct {
	s    backing.Store
	want []byte
}

// model runs random histories on the store and on a byte slice, and compares.
func model(t *testing.T, s backing.Store) {
	rapid.Check(t, func(r *rapid.T) {
		m := &machine{s: s, want: make([]byte, Size)}
		ok(r, s.WriteAt(t.Context(), m.want, 0))
		r.Repeat(m.actions(t))
	})
}

// place draws a range, often one that begins or ends at a place that matters.
func place(r *rapid.T, limit int) (off int64, n int) {
	n = rapid.OneOf(rapid.IntRange(0, 2000), rapid.SampledFrom([]int{512, 4096, 8192, 1 << 20}), rapid.IntRange(1, limit)).Draw(r, "n")
	n = min(n, limit)
	edge := rapid.SampledFrom([]int{0, 4096, 1 << 20, 2 << 20, Size}).Draw(r, "edge")
	shift := rapid.OneOf(rapid.IntRange(-5000, 5000), rapid.SampledFrom([]int{-n, -512, 0, 512}), rapid.IntRange(-Size, Size)).Draw(r, "shift")
	return int64(max(0, min(edge+shift, Size-n))), n
}

func (m *machine) actions(t *testing.T) map[string]func(*rapid.T) {
	ctx := t.Context()
	a := map[string]func(*rapid.T){
		"write": func(r *rapid.T) {
			off, n := place(r, 300<<10)
			p := pattern(n, rapid.Byte().Draw(r, "seed"))
			ok(r, m.s.WriteAt(ctx, p, off))
			copy(m.want[off:], p)
		},
		"read": func(r *rapid.T) {
			off, n := place(r, Size)
			m.compare(r, t, off, n)
		},
		"flush": func(r *rapid.T) {
			if rapid.IntRange(0, 9).Draw(r, "rarely") == 0 {
				ok(r, m.s.Flush(ctx))
			}
		},
		"": func(r *rapid.T) {
			off, n := place(r, 8192)
			m.compare(r, t, off, n)
		},
	}
	if f, has := backing.As[backing.FUAWriter](m.s); has {
		a["writeFUA"] = func(r *rapid.T) {
			off, n := place(r, 8192)
			p := pattern(n, rapid.Byte().Draw(r, "seed"))
			ok(r, f.WriteFUA(ctx, p, off))
			copy(m.want[off:], p)
		}
	}
	if w, has := backing.As[backing.TryWriter](m.s); has {
		a["tryWrite"] = func(r *rapid.T) {
			off, n := place(r, 16384)
			p := pattern(n, rapid.Byte().Draw(r, "seed"))
			done, err := w.TryWriteAt(p, off)
			ok(r, err)
			if !done {
				ok(r, m.s.WriteAt(ctx, p, off))
			}
			copy(m.want[off:], p)
		}
	}
	if tr, has := backing.As[backing.TryReader](m.s); has {
		a["tryRead"] = func(r *rapid.T) {
			off, n := place(r, 16384)
			got := make([]byte, n)
			done, err := tr.TryReadAt(got, off)
			ok(r, err)
			if done {
				same(r, got, m.want[off:][:n], off)
			}
		}
	}
	if d, has := backing.As[backing.Discarder](m.s); has {
		a["discard"] = func(r *rapid.T) {
			off, n := place(r, Size)
			ok(r, d.Discard(ctx, off, int64(n)))
			clear(m.want[off:][:n])
			m.compare(r, t, off, n)
		}
	}
	if z, has := backing.As[backing.ZeroWriter](m.s); has {
		a["zero"] = func(r *rapid.T) {
			off, n := place(r, Size)
			ok(r, z.WriteZeroes(ctx, off, int64(n), rapid.Bool().Draw(r, "mayUnmap")))
			clear(m.want[off:][:n])
			m.compare(r, t, off, n)
		}
	}
	if c, has := backing.As[backing.CopyRanger](m.s); has {
		a["copy"] = func(r *rapid.T) {
			src, n := place(r, Size)
			dst, _ := place(r, Size)
			n = min(n, Size-int(dst))
			ok(r, c.CopyRange(ctx, dst, src, int64(n)))
			copy(m.want[dst:], m.want[src:][:n])
			m.compare(r, t, dst, n)
		}
	}
	if c, has := backing.As[backing.CompareAndWriter](m.s); has {
		a["compareAndWrite"] = func(r *rapid.T) {
			off, n := place(r, 8192)
			old := bytes.Clone(m.want[off:][:n])
			want := -1
			if n > 0 && rapid.Bool().Draw(r, "differ") {
				want = rapid.IntRange(0, n-1).Draw(r, "at")
				old[want] ^= 0x5a
			}
			p := pattern(n, rapid.Byte().Draw(r, "seed"))
			got, err := c.CompareAndWrite(ctx, old, p, off)
			ok(r, err)
			if got != want {
				r.Fatalf("CompareAndWrite = %d, want %d", got, want)
			}
			if want < 0 {
				copy(m.want[off:], p)
			}
		}
	}
	if e, has := backing.As[backing.Extenter](m.s); has {
		a["extents"] = func(r *rapid.T) {
			off, n := place(r, Size)
			checkExtents(t, r, e, m.want, off, int64(n))
		}
	}
	return a
}

func (m *machine) compare(r *rapid.T, t *testing.T, off int64, n int) {
	got := fill(make([]byte, n), 0xee)
	ok(r, m.s.ReadAt(t.Context(), got, off))
	same(r, got, m.want[off:][:n], off)
}

// checkExtents: the runs cover the range in order, and a hole holds zeroes.
func checkExtents(t *testing.T, r tb, e backing.Extenter, want []byte, off, n int64) {
	at := off
	ok(r, e.Extents(t.Context(), off, n, func(x backing.Extent) bool {
		if x.Off != at || x.Len <= 0 || x.Len > off+n-at {
			r.Fatalf("extents of [%d,+%d): got %+v at %d", off, n, x, at)
		}
		if !x.Allocated {
			if i := nonZero(want[x.Off:][:x.Len]); i >= 0 {
				r.Fatalf("extents: %+v is said to be a hole, byte %d is not zero", x, x.Off+int64(i))
			}
		}
		at += x.Len
		return true
	}))
	if at != off+n {
		r.Fatalf("extents of [%d,+%d) end at %d", off, n, at)
	}
}

func extents(t *testing.T, s backing.Store) {
	ctx := t.Context()
	e, has := backing.As[backing.Extenter](s)
	if !has {
		t.Skip("the store does not claim it")
	}
	want := make([]byte, Size)
	for _, off := range []int64{64 << 10, 1<<20 - 8192, Size - 65536} {
		p := pattern(16<<10, 1)
		ok(t, s.WriteAt(ctx, p, off))
		copy(want[off:], p)
	}
	checkExtents(t, t, e, want, 0, Size)
	checkExtents(t, t, e, want, 64<<10+512, 1<<20)
	checkExtents(t, t, e, want, Size, 0)

	allocated := int64(0)
	ok(t, e.Extents(ctx, 0, Size, func(x backing.Extent) bool {
		if x.Allocated {
			allocated += x.Len
		}
		return true
	}))
	if allocated < 48<<10 {
		t.Errorf("%d bytes allocated after 48 KiB were written", allocated)
	}
	calls := 0
	ok(t, e.Extents(ctx, 0, Size, func(backing.Extent) bool { calls++; return false }))
	if calls != 1 {
		t.Errorf("fn was called %d times after it returned false", calls)
	}
	if d, has := backing.As[backing.Discarder](s); has {
		ok(t, d.Discard(ctx, 0, Size))
		ok(t, e.Extents(ctx, 0, Size, func(x backing.Extent) bool {
			if x.Allocated {
				t.Errorf("%+v is allocated after all was discarded", x)
			}
			return true
		}))
	}
}

// neighbours: calls on ranges that touch but do not overlap do not disturb each
// other, whatever else runs. The ranges are not made of whole blocks.
func neighbours(t *testing.T, s backing.Store) {
	const workers, width, rounds = 6, 1000, 12
	ctx := t.Context()
	// Background calls on the last mebibyte, which no worker owns.
	stop := make(chan struct{})
	var background, wg sync.WaitGroup
	background.Go(func() {
		for i := int64(0); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			off := Size - 1<<20 + i%64*8192
			if err := s.WriteAt(ctx, make([]byte, 8192), off); err != nil {
				t.Error(err)
				return
			}
			if d, has := backing.As[backing.Discarder](s); has {
				if err := d.Discard(ctx, off+100, 6000); err != nil {
					t.Error(err)
					return
				}
			}
			if e, has := backing.As[backing.Extenter](s); has {
				if err := e.Extents(ctx, 0, Size, func(backing.Extent) bool { return true }); err != nil {
					t.Error(err)
					return
				}
			}
			if i%8 == 0 {
				if err := s.Flush(ctx); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for w := range workers {
		wg.Go(func() {
			got := make([]byte, width)
			for round := range rounds {
				p := pattern(width, byte(w*rounds+round))
				for i := w; i < 60; i += workers {
					off := int64(1<<20 - 30*width + i*width)
					if err := s.WriteAt(ctx, p, off); err != nil {
						t.Error(err)
						return
					}
				}
				for i := w; i < 60; i += workers {
					off := int64(1<<20 - 30*width + i*width)
					if err := s.ReadAt(ctx, got, off); err != nil {
						t.Error(err)
						return
					}
					if !bytes.Equal(got, p) {
						t.Errorf("worker %d, round %d: what it wrote at %d was changed by others", w, round, off)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	background.Wait()
}

// compareAndWrite: concurrent increments of a counter that lies across two
// mebibytes are all counted.
func compareAndWrite(t *testing.T, s backing.Store) {
	c, has := backing.As[backing.CompareAndWriter](s)
	if !has {
		t.Skip("the store does not claim it")
	}
	const workers, rounds, off = 4, 200, 1<<20 - 512
	ctx := t.Context()
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			old, next := make([]byte, 1024), make([]byte, 1024)
			for n := 0; n < rounds; {
				if err := s.ReadAt(ctx, old, off); err != nil {
					t.Error(err)
					return
				}
				count := binary.BigEndian.Uint64(old) + 1
				for i := 0; i < len(next); i += 8 {
					binary.BigEndian.PutUint64(next[i:], count)
				}
				at, err := c.CompareAndWrite(ctx, old, next, off)
				if err != nil {
					t.Error(err)
					return
				}
				if at < 0 {
					n++
				}
			}
		})
	}
	wg.Wait()
	got := make([]byte, 1024)
	ok(t, s.ReadAt(ctx, got, off))
	for i := 0; i < len(got); i += 8 {
		if n := binary.BigEndian.Uint64(got[i:]); n != workers*rounds {
			t.Fatalf("counter at %d = %d, want %d", i, n, workers*rounds)
		}
	}
}
