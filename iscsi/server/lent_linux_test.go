package server_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"blockgate/backing"
	"blockgate/backing/file"
	"blockgate/iscsi/initiator"
)

// cutOff is a file that is cut off by somebody else when something of it is on
// loan for the fifth time.
type cutOff struct {
	*file.Store
	path      string
	lent, cut atomic.Int64
}

func (s *cutOff) LendMapped(off, n int64) []byte {
	p := s.Store.LendMapped(off, n)
	if p != nil && s.lent.Add(1) == 5 {
		s.cut.Store(1)
		if err := os.Truncate(s.path, 1<<20); err != nil {
			panic(err)
		}
	}
	return p
}

// TestFileIsCutOffWhileItIsSent: the connection ends, with a line that names the
// unit, and nothing else does. The initiator, who comes back, is told.
func TestFileIsCutOffWhileItIsSent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	store, err := file.Lending(file.NewWindows(16<<20))(t.Context(), path, backing.OpenOptions{Create: true, CreateSize: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.WriteAt(t.Context(), pattern(8<<20, 1), 0); err != nil {
		t.Fatal(err)
	}
	s := &cutOff{Store: store.(*file.Store), path: path}
	r := serve(t, options{stores: []backing.Store{s}})
	ctx, se := limited(t), r.dial("a", nil)
	u := se.Unit(0)
	u.TestUnitReady(ctx) // takes the unit attention
	p := make([]byte, 512<<10)
	for range 100 {
		if err = u.ReadBlocks(ctx, p, 4<<20/512, uint32(len(p)/512)); err != nil {
			break
		}
		if s.cut.Load() == 0 && !bytes.Equal(p, pattern(8<<20, 1)[4<<20:][:len(p)]) {
			t.Fatal("not what was there")
		}
	}
	if s.lent.Load() == 0 {
		t.Skip("this file system is not lent from")
	}
	if err == nil {
		t.Fatal("what is gone can be read")
	}
	if se, ok := errors.AsType[*initiator.StatusError](err); ok {
		t.Fatalf("a response that was begun ends with %v", se)
	}
	r.logs.wait(t, 1, "level=", "what was lent cannot be read")
	again := r.dial("a", nil).Unit(0)
	again.TestUnitReady(ctx)
	if err := again.ReadBlocks(ctx, p, 4<<20/512, uint32(len(p)/512)); err == nil {
		t.Error("what is gone can be read")
	} else if _, ok := errors.AsType[*initiator.StatusError](err); !ok {
		t.Errorf("the second attempt is told %v, want sense", err)
	}
	if err := again.ReadBlocks(ctx, p, 0, uint32(len(p)/512)); err != nil || !bytes.Equal(p, pattern(8<<20, 1)[:len(p)]) {
		t.Errorf("what is left: %v", err)
	}
}
