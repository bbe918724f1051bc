//go:build !race

package ram_test

import (
	"errors"
	"testing"

	"blockgate/backing"
)

// The way of a read and of a write allocates nothing.
func TestAllocations(t *testing.T) {
	ctx := t.Context()
	s := open(t, "1M", backing.OpenOptions{})
	defer s.Close()
	p := make([]byte, 4096)
	l := s.(backing.Lender)
	for what, call := range map[string]func() error{
		"ReadAt":   func() error { return s.ReadAt(ctx, p, 8192) },
		"WriteAt":  func() error { return s.WriteAt(ctx, p, 8192) },
		"WriteFUA": func() error { return s.(backing.FUAWriter).WriteFUA(ctx, p, 8192) },
		"Lend": func() error {
			q := l.Lend(8192, 4096)
			if q == nil {
				return errors.New("nothing lent")
			}
			l.Return(q, 8192)
			return nil
		},
		"Discard": func() error { return s.(backing.Discarder).Discard(ctx, 4096, 4096) },
	} {
		if err := call(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if n := testing.AllocsPerRun(20, func() { _ = call() }); n != 0 {
			t.Errorf("%s allocates %v times", what, n)
		}
	}
}
