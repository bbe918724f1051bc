package null_test

import (
	"errors"
	"testing"

	"blockgate/backing"
	"blockgate/backing/null"
)

func TestNull(t *testing.T) {
	ctx := t.Context()
	s, err := null.Open(ctx, "1T", backing.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if s.Size() != 1<<40 || !backing.IsPrompt(s) || backing.CapsOf(s) != backing.CapsAll&^(backing.CapTryRead|backing.CapTryWrite|backing.CapRefresh|backing.CapCompareAndWrite|backing.CapWriteAtomic|backing.CapUsage|backing.CapSnapshot|backing.CapCopyFrom) {
		t.Errorf("size %d, prompt %v, capabilities %v", s.Size(), backing.IsPrompt(s), backing.CapsOf(s))
	}
	p := []byte{1, 2, 3, 4}
	if err := s.WriteAt(ctx, p, 1<<40-4); err != nil {
		t.Fatal(err)
	}
	if err := s.ReadAt(ctx, p, 1<<40-4); err != nil || p[0]|p[1]|p[2]|p[3] != 0 {
		t.Errorf("read %v, %v; want zeroes", p, err)
	}
	if err := s.ReadAt(ctx, p, 1<<40-3); !errors.Is(err, backing.ErrOutOfRange) {
		t.Errorf("read beyond the end: %v", err)
	}
	var got []backing.Extent
	if err := s.(backing.Extenter).Extents(ctx, 4096, 8192, func(e backing.Extent) bool { got = append(got, e); return true }); err != nil ||
		len(got) != 1 || got[0] != (backing.Extent{Off: 4096, Len: 8192}) {
		t.Errorf("extents = %v, %v; want one hole", got, err)
	}
	if err := s.(backing.Resizer).Resize(ctx, 4096); err != nil || s.Size() != 4096 {
		t.Errorf("resize: size %d, %v", s.Size(), err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Flush(ctx); !errors.Is(err, backing.ErrClosed) {
		t.Errorf("Flush after Close: %v", err)
	}
}

func TestReadOnly(t *testing.T) {
	s, err := null.Open(t.Context(), "1M", backing.OpenOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.WriteAt(t.Context(), []byte{1}, 0); !errors.Is(err, backing.ErrReadOnly) {
		t.Errorf("WriteAt: %v", err)
	}
	if c := backing.CapsOf(s); c != backing.CapExtents {
		t.Errorf("capabilities = %v, want extents", c)
	}
}

func TestOpenErrors(t *testing.T) {
	for _, url := range []string{"", "0", "-1", "many"} {
		if _, err := null.Open(t.Context(), url, backing.OpenOptions{}); err == nil {
			t.Errorf("Open(%q): no error", url)
		}
	}
}
