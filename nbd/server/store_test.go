package server

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"blockgate/backing"
	"blockgate/backing/file"
	"blockgate/nbd"
)

func TestStore(t *testing.T) {
	for _, name := range []string{"ram", "file"} {
		t.Run(name, func(t *testing.T) {
			eachMode(t, func(t *testing.T, m nbd.Mode) {
				store := openRAM(t, 64<<20)
				if name == "file" {
					var err error
					store, err = file.Open(t.Context(), t.TempDir()+"/img", backing.OpenOptions{Create: true, CreateSize: 64 << 20})
					if err != nil {
						t.Fatal(err)
					}
				}
				t.Cleanup(func() { store.Close() })
				_, dial := start(t, Config{Directory: Single(ForStore(store, StoreOptions{Name: "disk"}))}, Access{}, "unix")
				p := dial()
				p.enter("disk", m)
				everything(t, p, m)
				// Any bytes, not only blocks.
				p.write(12345, pattern(1, 777)).wants(t, "unaligned write", nbd.None)
				wantData(t, "unaligned read", p.read(12345, 777), pattern(1, 777))
			})
		})
	}
}

// broken fails as its fields say.
type broken struct {
	backing.Store
	with atomic.Pointer[error]
}

func (b *broken) fail(err error) { b.with.Store(&err) }
func (b *broken) err() error     { return *b.with.Load() }

func (b *broken) ReadAt(context.Context, []byte, int64) error  { return b.err() }
func (b *broken) WriteAt(context.Context, []byte, int64) error { return b.err() }
func (b *broken) Flush(context.Context) error                  { return b.err() }

func TestStoreErrors(t *testing.T) {
	b := &broken{Store: openRAM(t, 1<<20)}
	told := make(chan string, 16)
	for i, fail := range []func(*nbd.Request, error) (nbd.Errno, string){nil, func(r *nbd.Request, err error) (nbd.Errno, string) {
		told <- fmt.Sprint(r.Type, " ", err)
		return nbd.ENOMEM, "as chosen"
	}} {
		_, dial := start(t, Config{Directory: Single(ForStore(b, StoreOptions{Fail: fail}))}, Access{}, "tcp")
		p := dial()
		p.enter("", nbd.Structured)
		for _, c := range []struct {
			err  error
			want nbd.Errno
		}{
			{backing.ErrNoSpace, nbd.ENOSPC}, {backing.ErrReadOnly, nbd.EPERM}, {backing.ErrOutOfRange, nbd.EINVAL},
			{backing.ErrClosed, nbd.ESHUTDOWN}, {errors.New("?"), nbd.EIO}, {nbd.EPERM, nbd.EPERM},
		} {
			b.fail(fmt.Errorf("wrapped: %w", c.err))
			want := c.want
			if i == 1 {
				want = nbd.ENOMEM
			}
			g := p.write(0, make([]byte, 512))
			g.wants(t, fmt.Sprint("write ", c.err), want)
			if i == 1 && (g.message != "as chosen" || <-told != "WRITE "+b.err().Error()) {
				t.Errorf("the client is told %q", g.message)
			}
		}
		p.do(nbd.CmdFlush, 0, 0, 0, nil)
		b.fail(nil)
		p.read(0, 512).wants(t, "read after errors", nbd.None)
	}
}

// What a store cannot do is not offered, and zeroes get there all the same.
func TestPlainStore(t *testing.T) {
	plain := struct{ backing.Store }{openRAM(t, 4<<20)} // its methods and no more
	_, dial := start(t, Config{Directory: Single(ForStore(plain, StoreOptions{BlockSize: 512}))}, Access{}, "tcp")
	p := dial()
	i := p.enter("", nbd.Structured)
	if i.Flags&nbd.SendTrim != 0 {
		t.Error("TRIM is offered")
	}
	p.do(nbd.CmdTrim, 0, 0, 512, nil).wants(t, "trim", nbd.EINVAL)
	p.write(0, pattern(1, 3<<20)).wants(t, "write", nbd.None)
	p.do(nbd.CmdWriteZeroes, nbd.FlagFastZero, 0, 3<<20, nil).wants(t, "fast zeroes", nbd.ENOTSUP)
	wantData(t, "untouched", p.read(0, 3<<20), pattern(1, 3<<20))
	p.do(nbd.CmdWriteZeroes, 0, 512, 3<<20-512, nil).wants(t, "zeroes", nbd.None)
	want := make([]byte, 3<<20)
	copy(want, pattern(1, 512))
	wantData(t, "zeroes", p.read(0, 3<<20), want)
	g := p.do(nbd.CmdBlockStatus, 0, 0, 1<<20, nil)
	if len(g.extents) != 1 || g.extents[0] != (nbd.Extent{Length: 1 << 20}) {
		t.Errorf("status %+v", g.extents)
	}
	p.read(0, 100).wants(t, "not aligned", nbd.EINVAL)

	_, dial = start(t, Config{Directory: Single(ForStore(openRAM(t, 1<<20), StoreOptions{ReadOnly: true}))}, Access{}, "tcp")
	p = dial()
	if i := p.enter("", nbd.Simple); i.Flags&(nbd.ReadOnly|nbd.SendWriteZeroes|nbd.SendTrim) != nbd.ReadOnly {
		t.Errorf("flags %x", i.Flags)
	}
	p.write(0, make([]byte, 512)).wants(t, "write", nbd.EPERM)
	p.do(nbd.CmdTrim, 0, 0, 512, nil).wants(t, "trim", nbd.EPERM)
}
