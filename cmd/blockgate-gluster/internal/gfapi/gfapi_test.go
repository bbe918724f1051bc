package gfapi

import (
	"context"
	"errors"
	"strings"
	"testing"
	"unsafe"
)

func TestLoadSaysWhatIsMissing(t *testing.T) {
	for name, part := range map[string]string{
		"libgfapi-not-here.so.0": "Debian's package libgfapi0",
		"libc.so.6":              "GlusterFS 6 or later",
	} {
		_, err := load(name)
		if err == nil || !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one line with %q", name, err, part)
		}
	}
}

func TestBuffers(t *testing.T) {
	var b buffers
	b.init()
	for _, n := range []int{1, 16 << 10, 16<<10 + 1, MaxIO} {
		p, err := b.get(t.Context(), n)
		if err != nil || len(p) < n {
			t.Fatalf("%d bytes: %d, %v", n, len(p), err)
		}
		if uintptr(unsafe.Pointer(&p[0]))%4096 != 0 {
			t.Errorf("%d bytes: not at a page", n)
		}
		p[0], p[len(p)-1] = 1, 1
		b.put(p)
	}
	// There are so many and no more; who waits gets what is given back.
	last := classes[len(classes)-1]
	held := make([][]byte, last.limit)
	for i := range held {
		var err error
		if held[i], err = b.get(t.Context(), last.size); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.get(ctx, last.size); !errors.Is(err, context.Canceled) {
		t.Fatalf("one more than there are: %v", err)
	}
	got := make(chan []byte)
	go func() {
		p, err := b.get(t.Context(), last.size)
		if err != nil {
			t.Error(err)
		}
		got <- p
	}()
	b.put(held[0])
	if p := <-got; &p[0] != &held[0][0] {
		t.Error("another buffer than the one given back")
	}
}

// A call is answered once, whatever number comes back.
func TestCallsByNumber(t *testing.T) {
	var c calls
	a, b := &call{}, &call{}
	na, nb := c.add(a), c.add(b)
	if c.take(nb) != b || c.take(nb) != nil || c.take(99) != nil {
		t.Error("taken twice, or what never was")
	}
	if n := c.add(b); n != nb {
		t.Errorf("number %d, want %d again", n, nb)
	}
	if c.take(na) != a {
		t.Error("the wrong call")
	}
}
