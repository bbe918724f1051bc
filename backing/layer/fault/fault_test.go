package fault_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/backing"
	"blockgate/backing/layer/base"
	"blockgate/backing/layer/fault"
	"blockgate/backing/ram"
)

func over(t *testing.T, rules ...fault.Rule) *fault.Store {
	t.Helper()
	r, err := ram.New(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	s := fault.New(r, 1, rules...)
	t.Cleanup(func() { s.Close() })
	return s
}

func TestFail(t *testing.T) {
	ctx := t.Context()
	s := over(t,
		fault.Rule{Op: base.Write, Off: 4096, Len: 4096, Err: backing.ErrNoSpace},
		fault.Rule{Op: base.Read, Nth: 3, Count: 2},
	)
	p := make([]byte, 512)
	for _, c := range []struct {
		off int64
		err error
	}{{0, nil}, {3584, nil}, {3585, backing.ErrNoSpace}, {8191, backing.ErrNoSpace}, {8192, nil}, {1<<20 - 512, nil}} {
		if err := s.WriteAt(ctx, p, c.off); !errors.Is(err, c.err) {
			t.Errorf("write at %d: %v, want %v", c.off, err, c.err)
		}
	}
	for i, want := range []error{nil, nil, syscall.EIO, syscall.EIO, nil, nil} {
		if err := s.ReadAt(ctx, p, 0); !errors.Is(err, want) {
			t.Errorf("read %d: %v, want %v", i+1, err, want)
		}
	}
	s.Clear()
	if err := s.WriteAt(ctx, p, 4096); err != nil {
		t.Errorf("after Clear: %v", err)
	}
}

func TestRemove(t *testing.T) {
	s := over(t)
	id := s.Add(fault.Rule{})
	if err := s.ReadAt(t.Context(), nil, 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("with the rule: %v", err)
	}
	s.Remove(id)
	if err := s.ReadAt(t.Context(), nil, 0); err != nil {
		t.Errorf("without: %v", err)
	}
}

func TestProbability(t *testing.T) {
	run := func(seed uint64) string {
		r, err := ram.New(4096)
		if err != nil {
			t.Fatal(err)
		}
		s := fault.New(r, seed, fault.Rule{Probability: 0.25})
		defer s.Close()
		var b strings.Builder
		for range 400 {
			if s.ReadAt(t.Context(), nil, 0) != nil {
				b.WriteByte('x')
			} else {
				b.WriteByte('.')
			}
		}
		return b.String()
	}
	first := run(7)
	if n := strings.Count(first, "x"); n < 50 || n > 150 {
		t.Errorf("%d of 400 calls failed, want about 100", n)
	}
	if run(7) != first {
		t.Error("the same seed gave another sequence")
	}
	if run(8) == first {
		t.Error("another seed gave the same sequence")
	}
}

func TestTorn(t *testing.T) {
	ctx := t.Context()
	s := over(t, fault.Rule{Op: base.Write, Count: 1, Action: fault.Torn, Torn: 1000})
	if err := s.WriteAt(ctx, bytes.Repeat([]byte{0xff}, 4096), 100); !errors.Is(err, syscall.EIO) {
		t.Errorf("error = %v, want EIO", err)
	}
	got := make([]byte, 4296)
	if err := s.ReadAt(ctx, got, 0); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 4296)
	copy(want[100:], bytes.Repeat([]byte{0xff}, 1000))
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes arrived, want 1000", bytes.Count(got, []byte{0xff}))
	}
}

func TestFlushFailureSticks(t *testing.T) {
	ctx := t.Context()
	for name, call := range map[string]func(s *fault.Store) error{
		"flush": func(s *fault.Store) error { return s.Flush(ctx) },
		"fua":   func(s *fault.Store) error { return s.WriteFUA(ctx, []byte{1}, 0) },
	} {
		s := over(t)
		rule := fault.Rule{Op: base.Flush, Count: 1}
		if name == "fua" {
			rule.Op = base.Write
		}
		s.Add(rule)
		if err := call(s); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v, want EIO", name, err)
		}
		if err := s.WriteAt(ctx, []byte{1}, 0); !errors.Is(err, backing.ErrFailed) {
			t.Errorf("write after a failed %s: %v, want ErrFailed", name, err)
		}
		if err := s.Flush(ctx); !errors.Is(err, backing.ErrFailed) {
			t.Errorf("flush after a failed %s: %v, want ErrFailed", name, err)
		}
		if err := s.ReadAt(ctx, []byte{1}, 0); err != nil {
			t.Errorf("read after a failed %s: %v", name, err)
		}
	}
}

func TestHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := over(t, fault.Rule{Op: base.Read, Action: fault.Hang})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		results := make(chan error, 2)
		go func() { results <- s.ReadAt(ctx, make([]byte, 512), 0) }()
		go func() { results <- s.ReadAt(context.WithoutCancel(ctx), make([]byte, 512), 0) }()
		if err := s.WaitHeld(t.Context(), 2); err != nil || s.Held() != 2 {
			t.Fatalf("held = %d, %v; want 2", s.Held(), err)
		}
		if err := s.WriteAt(ctx, []byte{1}, 0); err != nil {
			t.Errorf("a write while reads hang: %v", err)
		}
		if err := <-results; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the call with a deadline: %v", err)
		}
		s.Release()
		if err := <-results; err != nil {
			t.Errorf("the released call: %v", err)
		}
		if s.Held() != 0 {
			t.Errorf("held = %d after all ended", s.Held())
		}
	})
}

// A stuck call keeps the caller's buffer beyond the end of its ctx, and reads
// into it when released.
func TestStick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := over(t)
		if err := s.WriteAt(t.Context(), []byte{42}, 0); err != nil {
			t.Fatal(err)
		}
		s.Add(fault.Rule{Op: base.Read, Action: fault.Stick})
		ctx, cancel := context.WithCancel(t.Context())
		p, ended := make([]byte, 1), make(chan error, 1)
		go func() { ended <- s.ReadAt(ctx, p, 0) }()
		if err := s.WaitHeld(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		cancel()
		synctest.Wait()
		select {
		case err := <-ended:
			t.Fatalf("the call ended with its ctx: %v", err)
		default:
		}
		s.Release()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("the released call: %v", err)
		}
	})
}

func TestWaitHeldEndsWithContext(t *testing.T) {
	s := over(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.WaitHeld(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want the ctx's", err)
	}
}

func TestNothingPassesTheRules(t *testing.T) {
	s := over(t)
	if backing.IsPrompt(s) {
		t.Error("claims to be prompt")
	}
	if c := backing.CapsOf(s); c&(backing.CapTryRead|backing.CapTryWrite) != 0 {
		t.Errorf("capabilities = %v", c)
	}
}

func TestParseRule(t *testing.T) {
	r, err := fault.ParseRule("op=write+flush,range=1M+64K nth=3 count=2 probability=0.5 action=torn error=ENOSPC torn=512")
	if err != nil {
		t.Fatal(err)
	}
	if !errors.Is(r.Err, backing.ErrNoSpace) || !errors.Is(r.Err, syscall.ENOSPC) {
		t.Errorf("error = %v, want ENOSPC", r.Err)
	}
	r.Err = nil
	want := fault.Rule{Op: base.Write | base.Flush, Off: 1 << 20, Len: 64 << 10, Nth: 3, Count: 2, Probability: 0.5, Action: fault.Torn, Torn: 512}
	if r != want {
		t.Errorf("got %+v, want %+v", r, want)
	}
	for _, s := range []string{"", " , ", "op=seek", "op", "range=1M", "range=0+0", "range=x+1", "nth=0", "nth=-1", "count=x",
		"probability=0", "probability=1.1", "probability=NaN", "action=burn", "error=EOK", "colour=red"} {
		if _, err := fault.ParseRule(s); err == nil {
			t.Errorf("ParseRule(%q): no error", s)
		}
	}
}

func FuzzParseRule(f *testing.F) {
	for _, s := range []string{"op=write,range=1M+64K", "nth=3 count=1 probability=0.01", "action=hang error=EIO torn=512", "op=any"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := fault.ParseRule(s)
		if err == nil && (r.Nth < 0 || r.Count < 0 || r.Off < 0 || r.Len < 0 || !(r.Probability >= 0 && r.Probability <= 1) || r.Action > fault.Torn) {
			t.Errorf("ParseRule(%q) = %+v", s, r)
		}
	})
}

func TestFromParams(t *testing.T) {
	for _, p := range []map[string]string{{"seed": "x"}, {"rule1": "op=seek"}, {"error": "EIO"}} {
		if _, err := fault.FromParams(nil, p); err == nil {
			t.Errorf("%v: no error", p)
		}
	}
	r, err := ram.New(4096)
	if err != nil {
		t.Fatal(err)
	}
	s, err := fault.FromParams(r, map[string]string{"seed": "5", "rule2": "op=read error=ENODEV", "rule1": "op=read count=1 error=ETIMEDOUT"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i, want := range []error{syscall.ETIMEDOUT, syscall.ENODEV, syscall.ENODEV} {
		if err := s.ReadAt(t.Context(), nil, 0); !errors.Is(err, want) {
			t.Errorf("read %d: %v, want %v", i+1, err, want)
		}
	}
}
