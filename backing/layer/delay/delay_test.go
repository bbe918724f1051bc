package delay_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/backing"
	"blockgate/backing/layer/delay"
	"blockgate/backing/ram"
)

func over(t *testing.T, c delay.Config) backing.Store {
	t.Helper()
	r, err := ram.New(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	return delay.New(r, c)
}

func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		s := over(t, delay.Config{Read: time.Second, Write: 2 * time.Second, Flush: 5 * time.Second})
		defer s.Close()
		p := make([]byte, 512)
		for name, c := range map[string]struct {
			want time.Duration
			call func() error
		}{
			"read":  {time.Second, func() error { return s.ReadAt(ctx, p, 0) }},
			"write": {2 * time.Second, func() error { return s.WriteAt(ctx, p, 0) }},
			"fua":   {7 * time.Second, func() error { return s.(backing.FUAWriter).WriteFUA(ctx, p, 0) }},
			"trim":  {2 * time.Second, func() error { return s.(backing.Discarder).Discard(ctx, 0, 512) }},
			"flush": {5 * time.Second, func() error { return s.Flush(ctx) }},
			"grow":  {0, func() error { return s.(backing.Resizer).Resize(ctx, 1<<20) }},
		} {
			began := time.Now()
			if err := c.call(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if got := time.Since(began); got != c.want {
				t.Errorf("%s took %v, want %v", name, got, c.want)
			}
		}
	})
}

func TestCallsOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := over(t, delay.Config{Read: time.Second})
		defer s.Close()
		began := time.Now()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if err := s.ReadAt(t.Context(), make([]byte, 512), 0); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if got := time.Since(began); got != time.Second {
			t.Errorf("100 reads at once took %v, want 1s", got)
		}
	})
}

func TestAbort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := over(t, delay.Config{Write: time.Hour})
		defer s.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		if err := s.WriteAt(ctx, []byte{1}, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error = %v, want the ctx's", err)
		}
		if got := time.Since(began); got != time.Minute {
			t.Errorf("aborted after %v, want 1m", got)
		}
		p := make([]byte, 1)
		if err := s.ReadAt(t.Context(), p, 0); err != nil || p[0] != 0 {
			t.Errorf("read %v, %v: an aborted write was done", p, err)
		}
	})
}

func TestJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := over(t, delay.Config{Read: time.Second, Jitter: time.Second})
		defer s.Close()
		seen := map[time.Duration]bool{}
		for range 50 {
			began := time.Now()
			if err := s.ReadAt(t.Context(), nil, 0); err != nil {
				t.Fatal(err)
			}
			d := time.Since(began)
			if d < time.Second || d >= 2*time.Second {
				t.Fatalf("took %v, want 1s to 2s", d)
			}
			seen[d] = true
		}
		if len(seen) < 10 {
			t.Errorf("%d different delays of 50", len(seen))
		}
	})
}

// A layer that does not wait leaves a prompt store prompt; one that does, not.
func TestPrompt(t *testing.T) {
	for _, c := range []struct {
		c    delay.Config
		want bool
	}{
		{delay.Config{}, true},
		{delay.Config{Read: 1}, false},
		{delay.Config{Write: 1}, false},
		{delay.Config{Flush: 1}, false},
	} {
		s := over(t, c.c)
		if got := backing.IsPrompt(s); got != c.want {
			t.Errorf("%+v: prompt = %v, want %v", c.c, got, c.want)
		}
		s.Close()
	}
}

func TestFromParams(t *testing.T) {
	c, err := delay.FromParams(map[string]string{"read": "1ms", "write": "2ms", "flush": "1s", "jitter": "5us"})
	want := delay.Config{Read: time.Millisecond, Write: 2 * time.Millisecond, Flush: time.Second, Jitter: 5 * time.Microsecond}
	if err != nil || c != want {
		t.Errorf("got %+v, %v; want %+v", c, err, want)
	}
	for _, p := range []map[string]string{{"read": "fast"}, {"read": "-1s"}, {"seek": "1ms"}, {"jitter": "1ms"}} {
		if _, err := delay.FromParams(p); err == nil {
			t.Errorf("%v: no error", p)
		}
	}
}
