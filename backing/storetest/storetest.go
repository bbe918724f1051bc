// Package storetest checks that a store keeps the contract of package backing.
// The tests of every engine and layer run it; it imports testing packages and is
// of no use elsewhere.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"blockgate/backing"
)

// Size is the size a store must have that is given to Run, in bytes. It spans
// several of the mebibytes by which engines like to divide.
const Size = 3 << 20

// Run checks the stores that open makes, which are empty and of Size bytes; Run
// closes them. What a store does not claim (see backing.As) is not checked.
func Run(t *testing.T, open func(t *testing.T) backing.Store) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, backing.Store)
	}{
		{"Basics", basics},
		{"Bounds", bounds},
		{"Buffers", buffers},
		{"Claims", claims},
		{"Canceled", canceled},
		{"Model", model},
		{"Extents", extents},
		{"Neighbours", neighbours},
		{"CompareAndWrite", compareAndWrite},
		{"Resize", resize},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			if s.Size() != Size {
				t.Fatalf("size = %d, want %d", s.Size(), Size)
			}
			defer func() {
				if err := s.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}()
			c.run(t, s)
		})
	}
	t.Run("Closed", func(t *testing.T) { closed(t, open(t)) })
}

func basics(t *testing.T, s backing.Store) {
	ctx := t.Context()
	got := fill(make([]byte, Size), 0xee)
	ok(t, s.ReadAt(ctx, got, 0))
	if i := nonZero(got); i >= 0 {
		t.Fatalf("new store: byte %d is %#x, want 0", i, got[i])
	}
	want := pattern(5000, 1)
	for _, off := range []int64{0, 512, 4096, 1<<20 - 700, Size - 5000} {
		ok(t, s.WriteAt(ctx, want, off))
		got := make([]byte, len(want))
		ok(t, s.ReadAt(ctx, got, off))
		same(t, got, want, off)
	}
	ok(t, s.Flush(ctx))
	ok(t, s.ReadAt(ctx, nil, Size))
	ok(t, s.WriteAt(ctx, nil, Size))
	whole := pattern(Size, 2)
	ok(t, s.WriteAt(ctx, whole, 0))
	ok(t, s.ReadAt(ctx, got, 0))
	same(t, got, whole, 0)
}

func bounds(t *testing.T, s backing.Store) {
	ctx := t.Context()
	p := make([]byte, 1024)
	ok(t, s.WriteAt(ctx, pattern(512, 3), Size-512))
	for _, off := range []int64{-1, -512, Size - 512, Size, Size + 512, 1<<63 - 1, -1 << 63} {
		is(t, s.ReadAt(ctx, p, off), backing.ErrOutOfRange)
		is(t, s.WriteAt(ctx, p, off), backing.ErrOutOfRange)
		if d, has := backing.As[backing.Discarder](s); has {
			is(t, d.Discard(ctx, off, 1024), backing.ErrOutOfRange)
			is(t, d.Discard(ctx, 0, -1), backing.ErrOutOfRange)
			is(t, d.Discard(ctx, 512, 1<<63-1), backing.ErrOutOfRange)
		}
		if z, has := backing.As[backing.ZeroWriter](s); has {
			is(t, z.WriteZeroes(ctx, off, 1024, false), backing.ErrOutOfRange)
		}
		if c, has := backing.As[backing.CopyRanger](s); has {
			is(t, c.CopyRange(ctx, off, 0, 1024), backing.ErrOutOfRange)
			is(t, c.CopyRange(ctx, 0, off, 1024), backing.ErrOutOfRange)
		}
		if r, has := backing.As[backing.TryReader](s); has {
			if done, err := r.TryReadAt(p, off); done && err == nil {
				t.Errorf("TryReadAt at %d: done", off)
			}
		}
	}
	if s.Size() != Size {
		t.Errorf("size = %d after writes out of range, want %d", s.Size(), Size)
	}
	got := make([]byte, 512)
	ok(t, s.ReadAt(ctx, got, Size-512))
	same(t, got, pattern(512, 3), Size-512)
}

// buffers: a store neither keeps nor changes what it writes, and fills no more
// than what it was given to read into, however the buffer lies in memory.
func buffers(t *testing.T, s backing.Store) {
	ctx := t.Context()
	for _, shift := range []int{0, 1, 7, 512, 1000} {
		room := fill(make([]byte, 16<<10), 0xaa)
		p := room[shift:][:4096]
		copy(p, pattern(4096, byte(shift)))
		ok(t, s.WriteAt(ctx, p, 8192))
		same(t, p, pattern(4096, byte(shift)), 8192)
		fill(room, 0xbb)
		ok(t, s.ReadAt(ctx, p, 8192))
		same(t, p, pattern(4096, byte(shift)), 8192)
		for i, b := range room {
			if (i < shift || i >= shift+4096) && b != 0xbb {
				t.Fatalf("shift %d: ReadAt changed byte %d outside its buffer", shift, i-shift)
			}
		}
	}
}

// claims: what a store claims it can do, and what it does not claim it refuses.
func claims(t *testing.T, s backing.Store) {
	ctx := t.Context()
	ok(t, s.WriteAt(ctx, pattern(64<<10, 9), 0))
	caps := backing.CapsOf(s)
	check := func(bit backing.Caps, err error) {
		t.Helper()
		switch {
		case caps&bit != 0 && err != nil:
			t.Errorf("claims %s: %v", bit, err)
		case caps&bit == 0 && !errors.Is(err, backing.ErrNotSupported) && !errors.Is(err, backing.ErrReadOnly):
			t.Logf("%s works without being claimed", bit)
		}
	}
	if d, has := s.(backing.Discarder); has {
		check(backing.CapDiscard, d.Discard(ctx, 0, 4096))
	}
	if z, has := s.(backing.ZeroWriter); has {
		check(backing.CapWriteZeroes, z.WriteZeroes(ctx, 0, 4096, false))
	}
	if e, has := s.(backing.Extenter); has {
		check(backing.CapExtents, e.Extents(ctx, 0, 4096, func(backing.Extent) bool { return true }))
	}
	if r, has := s.(backing.Refresher); has {
		n, err := r.Refresh(ctx)
		check(backing.CapRefresh, err)
		if n != Size {
			t.Errorf("Refresh = %d, want %d", n, Size)
		}
	}
	if f, has := s.(backing.FUAWriter); has {
		check(backing.CapWriteFUA, f.WriteFUA(ctx, make([]byte, 512), 0))
	}
	if c, has := s.(backing.CopyRanger); has {
		check(backing.CapCopyRange, c.CopyRange(ctx, 65536, 0, 4096))
	}
	if c, has := s.(backing.CompareAndWriter); has {
		_, err := c.CompareAndWrite(ctx, make([]byte, 512), make([]byte, 512), 0)
		check(backing.CapCompareAndWrite, err)
	}
	if a, has := s.(backing.AtomicWriter); has {
		l := a.AtomicLimits()
		if caps&backing.CapWriteAtomic != 0 && (l.Max <= 0 || l.Granularity <= 0 || l.Alignment <= 0 || l.Max%l.Granularity != 0) {
			t.Errorf("AtomicLimits %+v make no sense", l)
		}
		check(backing.CapWriteAtomic, a.WriteAtomic(ctx, make([]byte, max(l.Granularity, 512)), 0))
		if caps&backing.CapWriteAtomic != 0 {
			is(t, a.WriteAtomic(ctx, make([]byte, l.Max+l.Granularity), 0), backing.ErrNotSupported)
		}
	}
	if u, has := s.(backing.Usager); has {
		usage, err := u.Usage(ctx)
		check(backing.CapUsage, err)
		if usage.Used < 0 || usage.Available < 0 {
			t.Errorf("Usage = %+v", usage)
		}
	}
	info := backing.InfoOf(s)
	if info.Engine == "" {
		t.Error("Info has no engine")
	}
	if b := info.PhysicalBlock; b != 0 && (b < 512 || b&(b-1) != 0) {
		t.Errorf("Info.PhysicalBlock = %d, want a power of two from 512 on", b)
	}
}

// canceled: with a ctx that has ended a call either fails with its error or has
// done its work; it does not hang and does not report work it left out.
func canceled(t *testing.T, s backing.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	want := pattern(4096, 4)
	err := s.WriteAt(ctx, want, 0)
	if err != nil {
		is(t, err, context.Canceled)
	} else {
		got := make([]byte, 4096)
		ok(t, s.ReadAt(t.Context(), got, 0))
		same(t, got, want, 0)
	}
	if err := s.ReadAt(ctx, make([]byte, 4096), 0); err != nil {
		is(t, err, context.Canceled)
	}
	if err := s.Flush(ctx); err != nil {
		is(t, err, context.Canceled)
	}
}

func resize(t *testing.T, s backing.Store) {
	ctx := t.Context()
	r, has := backing.As[backing.Resizer](s)
	if !has {
		t.Skip("the store does not claim it")
	}
	ok(t, s.WriteAt(ctx, pattern(4096, 5), Size-4096))
	ok(t, r.Resize(ctx, Size))
	const larger = Size + 100<<20
	ok(t, r.Resize(ctx, larger))
	if s.Size() != larger {
		t.Fatalf("size = %d, want %d", s.Size(), larger)
	}
	got := fill(make([]byte, 8192), 0xee)
	ok(t, s.ReadAt(ctx, got, Size-4096))
	same(t, got, append(pattern(4096, 5), make([]byte, 4096)...), Size-4096)
	ok(t, s.WriteAt(ctx, pattern(4096, 6), larger-4096))
	ok(t, s.ReadAt(ctx, got[:4096], larger-4096))
	same(t, got[:4096], pattern(4096, 6), larger-4096)
	is(t, s.ReadAt(ctx, got, larger-4096), backing.ErrOutOfRange)
	is(t, r.Resize(ctx, Size), backing.ErrNotSupported)
	if s.Size() != larger {
		t.Fatalf("size = %d after a refused shrink, want %d", s.Size(), larger)
	}
}

func closed(t *testing.T, s backing.Store) {
	ctx := t.Context()
	ok(t, s.WriteAt(ctx, pattern(4096, 7), 0))
	ok(t, s.Close())
	is(t, s.ReadAt(ctx, make([]byte, 512), 0), backing.ErrClosed)
	is(t, s.WriteAt(ctx, make([]byte, 512), 0), backing.ErrClosed)
	is(t, s.Flush(ctx), backing.ErrClosed)
	is(t, s.Close(), backing.ErrClosed)
	if d, has := backing.As[backing.Discarder](s); has {
		is(t, d.Discard(ctx, 0, 4096), backing.ErrClosed)
	}
	if r, has := backing.As[backing.TryReader](s); has {
		if done, err := r.TryReadAt(make([]byte, 512), 0); done && err == nil {
			t.Error("TryReadAt after Close: done")
		}
	}
}

// tb is what tests and rapid's checks have in common.
type tb interface {
	Helper()
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func ok(t tb, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func is(t tb, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error = %v, want %v", err, want)
	}
}

func same(t tb, got, want []byte, off int64) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("byte %d (at %d of %d) is %#x, want %#x", off+int64(i), i, len(want), got[i], want[i])
		}
	}
}

// pattern is n bytes without zeroes that tell their place and the seed.
func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7+i>>9+int(seed)*31) | 1
	}
	return p
}

func fill(p []byte, b byte) []byte {
	for i := range p {
		p[i] = b
	}
	return p
}

func nonZero(p []byte) int {
	for i, b := range p {
		if b != 0 {
			return i
		}
	}
	return -1
}
