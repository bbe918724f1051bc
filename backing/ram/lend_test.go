package ram_test

import (
	"bytes"
	"runtime"
	"sync"
	"testing"

	"blockgate/backing"
	"blockgate/backing/ram"
)

// waits runs call on its own goroutine, with [off, off+n) on loan, and returns
// when it waits for that. The function returned ends the loan and waits for call.
func waits(t *testing.T, s *ram.Store, off, n int64, call func() error) (end func()) {
	t.Helper()
	lent := s.Lend(off, n)
	if lent == nil {
		t.Fatal("nothing is lent")
	}
	var wg sync.WaitGroup
	var err error
	wg.Go(func() { err = call() })
	// A call that waits for its lock keeps further loans away.
	for p := s.Lend(off, n); p != nil; p = s.Lend(off, n) {
		s.Return(p, off)
		runtime.Gosched()
	}
	return func() {
		s.Return(lent, off)
		wg.Wait()
		if err != nil {
			t.Error(err)
		}
	}
}

func TestLend(t *testing.T) {
	ctx := t.Context()
	s, err := ram.New(129 << 20)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("lend"), 1024)
	// Across the border of two chunks of one segment.
	off := int64(2<<20 - 1000)
	for _, at := range []int64{off, 64<<20 - 2048} {
		if err := s.WriteAt(ctx, data, at); err != nil {
			t.Fatal(err)
		}
	}
	a, b := s.Lend(off, 4096), s.Lend(off+4, 100)
	if !bytes.Equal(a, data) || !bytes.Equal(b, data[4:104]) {
		t.Fatal("what is lent is not what was written")
	}
	if cap(a) != len(a) {
		t.Errorf("a loan of %d bytes has capacity %d", len(a), cap(a))
	}
	s.Return(a, off)
	s.Return(b, off+4)
	for what, r := range map[string][2]int64{
		"across segments": {64<<20 - 2048, 4096},
		"behind the end":  {129<<20 - 512, 1024},
		"before the base": {-512, 512},
		"of no length":    {off, 0},
	} {
		if s.Lend(r[0], r[1]) != nil {
			t.Errorf("a range %s was lent", what)
		}
	}

	// What changes the range waits for the end of the loan, and leaves it as it is.
	p := s.Lend(off, 4096)
	end := waits(t, s, off, 4096, func() error { return s.WriteAt(ctx, make([]byte, 512), off) })
	if !bytes.Equal(p, data) {
		t.Error("a write changed what was on loan")
	}
	s.Return(p, off)
	end()
	if p = s.Lend(off, 512); !bytes.Equal(p, make([]byte, 512)) {
		t.Error("the write did not happen")
	}
	s.Return(p, off)

	p = s.Lend(off+512, 512)
	end = waits(t, s, off, 4096, func() error { return s.Discard(ctx, off, 4096) })
	if !bytes.Equal(p, data[512:1024]) {
		t.Error("a discard changed what was on loan")
	}
	s.Return(p, off+512)
	end()

	// A hole is lent as it is, also when somebody fills it meanwhile.
	hole := int64(128 << 20)
	p = s.Lend(hole, 4096)
	if err := s.WriteAt(ctx, data, hole); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, make([]byte, 4096)) {
		t.Error("a hole on loan is not zeroes")
	}
	s.Return(p, hole)
	if p = s.Lend(hole, 4096); !bytes.Equal(p, data) {
		t.Error("what filled the hole is not lent")
	}
	s.Return(p, hole)

	end = waits(t, s, off, 4096, s.Close)
	end()
	if s.Lend(off, 512) != nil {
		t.Error("a closed store lends")
	}
}

func TestLendIsACapability(t *testing.T) {
	s := open(t, "1M", backing.OpenOptions{ReadOnly: true})
	defer s.Close()
	if _, ok := backing.As[backing.Lender](s); !ok {
		t.Error("a RAM store is no Lender")
	}
}
