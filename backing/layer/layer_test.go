package layer_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"blockgate/backing"
	"blockgate/backing/file"
	"blockgate/backing/layer"
	"blockgate/backing/layer/base"
	"blockgate/backing/null"
	"blockgate/backing/ram"
	"blockgate/backing/storetest"
)

type spec struct {
	kind   string
	params map[string]string
}

func wrap(t *testing.T, s backing.Store, specs []spec) backing.Store {
	t.Helper()
	for _, l := range specs {
		w, err := layer.Wrap(s, l.kind, l.params)
		if err != nil {
			t.Fatal(err)
		}
		s = w
	}
	return s
}

// Layers that change nothing keep the contract over every engine, alone and
// stacked.
func TestConformance(t *testing.T) {
	none := spec{kind: "fault"}
	still := spec{kind: "delay"}
	slow := spec{kind: "delay", params: map[string]string{"read": "1us", "write": "1us"}}
	engines := map[string]func(t *testing.T) (backing.Store, error){
		"ram": func(t *testing.T) (backing.Store, error) { return ram.New(storetest.Size) },
		"file": func(t *testing.T) (backing.Store, error) {
			return file.Open(t.Context(), filepath.Join(t.TempDir(), "disk"), backing.OpenOptions{Create: true, CreateSize: storetest.Size})
		},
	}
	for engine, open := range engines {
		stacks := [][]spec{{none}, {still}, {slow, none, still}}
		if engine == "file" {
			stacks = stacks[2:] // each costs seconds, and layers do not know what is below
		}
		for _, stack := range stacks {
			t.Run(fmt.Sprint(engine, "/", len(stack), stack[0].kind), func(t *testing.T) {
				storetest.Run(t, func(t *testing.T) backing.Store {
					s, err := open(t)
					if err != nil {
						t.Fatal(err)
					}
					return wrap(t, s, stack)
				})
			})
		}
	}
}

// bare has only the core.
type bare struct{}

func (bare) ReadAt(context.Context, []byte, int64) error  { return nil }
func (bare) WriteAt(context.Context, []byte, int64) error { return nil }
func (bare) Flush(context.Context) error                  { return nil }
func (bare) Size() int64                                  { return 4096 }
func (bare) Close() error                                 { return nil }

// A layer claims what the store below has: no more, and no less.
func TestCapabilities(t *testing.T) {
	r, err := ram.New(4096)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	n, err := null.Open(t.Context(), "1M", backing.OpenOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []backing.Store{r, n, bare{}} {
		want := backing.CapsOf(s)
		for _, stack := range [][]spec{{{kind: "delay"}}, {{kind: "delay"}, {kind: "delay"}}} {
			if got := backing.CapsOf(wrap(t, s, stack)); got != want {
				t.Errorf("%T under %v has %v, want %v", s, stack, got, want)
			}
		}
		if got := backing.IsPrompt(wrap(t, s, []spec{{kind: "delay"}})); got != backing.IsPrompt(s) {
			t.Errorf("%T under a layer: prompt = %v", s, got)
		}
	}
	b := base.New(bare{}, base.Options{})
	if caps := b.Capabilities(); caps != 0 {
		t.Errorf("a layer over the bare core has %v", caps)
	}
	ctx := t.Context()
	_, refresh := b.Refresh(ctx)
	_, caw := b.CompareAndWrite(ctx, nil, nil, 0)
	for what, err := range map[string]error{
		"Discard":         b.Discard(ctx, 0, 512),
		"WriteZeroes":     b.WriteZeroes(ctx, 0, 512, true),
		"Extents":         b.Extents(ctx, 0, 512, func(backing.Extent) bool { return true }),
		"Resize":          b.Resize(ctx, 8192),
		"Refresh":         refresh,
		"WriteFUA":        b.WriteFUA(ctx, nil, 0),
		"CopyRange":       b.CopyRange(ctx, 0, 0, 0),
		"CompareAndWrite": caw,
	} {
		if !errors.Is(err, backing.ErrNotSupported) {
			t.Errorf("%s over the bare core: %v, want ErrNotSupported", what, err)
		}
	}
	if done, err := b.TryReadAt(nil, 0); done || err != nil {
		t.Errorf("TryReadAt over the bare core = %v, %v", done, err)
	}
	if done, err := b.TryWriteAt(nil, 0); done || err != nil {
		t.Errorf("TryWriteAt over the bare core = %v, %v", done, err)
	}
}

func TestReadOnly(t *testing.T) {
	ctx := t.Context()
	r, err := ram.New(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.WriteAt(ctx, []byte("kept"), 0); err != nil {
		t.Fatal(err)
	}
	s := wrap(t, r, []spec{{kind: "readonly"}, {kind: "delay"}})
	defer s.Close()
	if c := backing.CapsOf(s); c&backing.CapsModify != 0 || c&backing.CapExtents == 0 {
		t.Errorf("capabilities = %v", c)
	}
	if !backing.InfoOf(s).ReadOnly || !backing.IsPrompt(s) {
		t.Errorf("info = %+v, prompt %v", backing.InfoOf(s), backing.IsPrompt(s))
	}
	if done, _ := s.(backing.TryWriter).TryWriteAt([]byte("lost"), 0); done {
		t.Error("TryWriteAt: done")
	}
	// Also who asks the type instead of As gets nothing written.
	s = wrap(t, r, []spec{{kind: "readonly"}})
	_, caw := s.(backing.CompareAndWriter).CompareAndWrite(ctx, []byte("kept"), []byte("lost"), 0)
	for what, err := range map[string]error{
		"WriteAt":         s.WriteAt(ctx, []byte("lost"), 0),
		"WriteFUA":        s.(backing.FUAWriter).WriteFUA(ctx, []byte("lost"), 0),
		"Discard":         s.(backing.Discarder).Discard(ctx, 0, 512),
		"WriteZeroes":     s.(backing.ZeroWriter).WriteZeroes(ctx, 0, 512, true),
		"CopyRange":       s.(backing.CopyRanger).CopyRange(ctx, 0, 512, 512),
		"Resize":          s.(backing.Resizer).Resize(ctx, 2<<20),
		"CompareAndWrite": caw,
	} {
		if !errors.Is(err, backing.ErrReadOnly) {
			t.Errorf("%s: %v, want it refused", what, err)
		}
	}
	if err := s.Flush(ctx); err != nil {
		t.Errorf("Flush: %v", err)
	}
	p := make([]byte, 4)
	if err := s.ReadAt(ctx, p, 0); err != nil || string(p) != "kept" {
		t.Errorf("read %q, %v", p, err)
	}
}

func TestWrapErrors(t *testing.T) {
	for _, c := range []spec{
		{"rewind", nil},
		{"readonly", map[string]string{"very": "yes"}},
		{"delay", map[string]string{"read": "soon"}},
		{"fault", map[string]string{"rule": "op=seek"}},
	} {
		s, err := layer.Wrap(bare{}, c.kind, c.params)
		if err == nil || s != nil || !strings.Contains(err.Error(), c.kind) {
			t.Errorf("Wrap(%q, %v) = %v, %v; want an error that names the kind", c.kind, c.params, s, err)
		}
	}
	if !slices.IsSorted(layer.Kinds()) {
		t.Errorf("Kinds = %v, want them sorted", layer.Kinds())
	}
	for _, kind := range layer.Kinds() {
		if _, err := layer.Wrap(bare{}, kind, nil); err != nil {
			t.Errorf("kind %s without parameters: %v", kind, err)
		}
	}
}
