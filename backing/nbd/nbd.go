// Package nbd is a store in an export of an NBD server: another Blockgate, nbdkit
// with its plugins, qemu-nbd with the formats and protocols that QEMU knows, or
// any other. How the server is reached, and what happens when it is lost, is
// package nbd/client's; this package says what the export can do as a store.
package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strconv"
	"time"

	"blockgate/backing"
	"blockgate/nbd"
	"blockgate/nbd/client"
)

// Store is an open export. All methods, Close too, are safe for concurrent use.
//
// When the context of a call ends the call returns, and what it has sent may still
// be carried out; writes that overlap and come later wait for it.
type Store struct {
	cl       *client.Client
	location string
	readOnly bool
	sync     bool // what changes the export is durable when it returns
	fua      bool // the server knows FUA
	caps     backing.Caps
	notes    notes
}

// Schemes are those of Opener.
func Schemes() []string { return []string{"nbd", "nbd+unix", "nbds", "nbds+unix"} }

// Opener opens exports by the URIs of one of Schemes; see client.URI for their
// form. Two parameters are this package's own:
//
//	connections=N    to a server that keeps several coherent; 2 if not given
//	unflushed=SIZE   how much is kept for a server that is lost; none: nothing.
//	                 See client.Config.Unflushed
//
// A server cannot make exports, lock them, or bypass a cache for one client:
// Create finds an export of CreateSize bytes or fails, Exclusive and Direct are
// ignored. Sync has every write made durable before it returns.
func Opener(scheme string) backing.Opener {
	return func(ctx context.Context, rest string, o backing.OpenOptions) (backing.Store, error) {
		uri, err := client.ParseURI(scheme + ":" + rest)
		if err != nil {
			return nil, err
		}
		cfg, err := config(uri)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", uri, err)
		}
		s, err := OpenAt(ctx, cfg, uri.String(), o)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
}

// maxConns bounds the parameter connections.
const maxConns = 64

// config takes the parameters that are the engine's own.
func config(uri *client.URI) (client.Config, error) {
	cfg, err := uri.Config()
	if err != nil {
		return cfg, err
	}
	for name, values := range uri.Params {
		v := values[len(values)-1]
		switch name {
		case "connections":
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 || n > maxConns {
				return cfg, fmt.Errorf("connections=%s: want 1 to %d", v, maxConns)
			}
			cfg.Conns = n
		case "unflushed":
			if v == "none" {
				cfg.Unflushed = -1
				continue
			}
			n, err := backing.ParseSize(v)
			if err != nil || n < 1<<20 {
				return cfg, fmt.Errorf("unflushed=%s: want a size from 1M on, or none", v)
			}
			cfg.Unflushed = n
		default:
			return cfg, fmt.Errorf("unknown parameter %q", name)
		}
	}
	return cfg, nil
}

// OpenAt opens the export of a configuration, whose ReadOnly, Stall and OnChange
// it sets. location is what Info tells of it.
func OpenAt(ctx context.Context, cfg client.Config, location string, o backing.OpenOptions) (*Store, error) {
	s := &Store{location: location}
	cfg.ReadOnly, cfg.Stall, cfg.OnChange = o.ReadOnly, o.Stall, s.notes.tell
	cl, err := client.Open(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", location, storeError(err))
	}
	s.cl = cl
	exp := cl.Export()
	s.readOnly = o.ReadOnly || exp.Can(nbd.ReadOnly)
	s.caps = capabilities(&exp, s.readOnly)
	if err := s.fits(&exp, o); err != nil {
		_ = cl.Close()
		return nil, fmt.Errorf("%s: %w", location, err)
	}
	s.sync, s.fua = o.Sync, exp.Can(nbd.SendFUA)
	return s, nil
}

// fits reports whether the export is what the options ask for.
func (s *Store) fits(exp *client.Export, o backing.OpenOptions) error {
	switch {
	case !o.ReadOnly && s.readOnly && o.Create:
		return backing.ErrReadOnly
	case o.Create && o.CreateSize != 0 && o.CreateSize != exp.Size:
		return fmt.Errorf("%w: it has %d bytes, %d asked for", backing.ErrSizeMismatch, exp.Size, o.CreateSize)
	}
	return nil
}

// capabilities are what the server's flags stand for. Trim alone gives no space
// back here, as what was trimmed may read as anything; with it zeroing does.
func capabilities(exp *client.Export, readOnly bool) backing.Caps {
	c := backing.CapRefresh
	if exp.Allocation {
		c |= backing.CapExtents
	}
	if exp.Can(nbd.SendWriteZeroes) {
		c |= backing.CapWriteZeroes
	}
	if exp.Can(nbd.SendWriteZeroes | nbd.SendTrim) {
		c |= backing.CapDiscard
	}
	if exp.Can(nbd.SendFUA) {
		c |= backing.CapWriteFUA
	}
	if readOnly {
		c &^= backing.CapsModify
	}
	return c
}

// Capabilities are fixed while the store is open: a server that comes back with
// less is not the one that was lost.
func (s *Store) Capabilities() backing.Caps { return s.caps }

// Info describes the store.
func (s *Store) Info() backing.Info {
	exp := s.cl.Export()
	i := backing.Info{
		Engine: "nbd", Location: s.location, ReadOnly: s.readOnly, Rotational: exp.Can(nbd.Rotational),
		Thin: s.caps&backing.CapDiscard != 0,
	}
	// The preferred size is where a server does not have to read before it
	// writes; who tells none has it by default, which means nothing.
	if b := exp.BlockSize; b.Preferred != nbd.DefaultPreferredBlock || b.Min > 1 {
		i.OptimalIO = int(b.Preferred)
		i.PhysicalBlock = max(int(b.Min), 512)
		if b.Preferred <= nbd.MaxMinBlock {
			i.PhysicalBlock = int(b.Preferred)
		}
	}
	if b := i.PhysicalBlock; bits.OnesCount(uint(b)) > 1 || b > 0 && b < 512 {
		i.PhysicalBlock = 0
	}
	return i
}

// Size is the size in bytes as of Open or the last Refresh.
func (s *Store) Size() int64 { return s.cl.Size() }

// ReadAt implements backing.Store.
func (s *Store) ReadAt(ctx context.Context, p []byte, off int64) error {
	return storeError(s.cl.ReadAt(ctx, p, off))
}

// WriteAt implements backing.Store.
func (s *Store) WriteAt(ctx context.Context, p []byte, off int64) error {
	return s.modified(ctx, s.cl.WriteAt(ctx, p, off, s.flags()))
}

// flags are those of what changes the export.
func (s *Store) flags() nbd.CommandFlags {
	if s.sync && s.fua {
		return nbd.FlagFUA
	}
	return 0
}

// modified ends what changed the export, with err.
func (s *Store) modified(ctx context.Context, err error) error {
	if err == nil && s.sync && !s.fua {
		err = s.cl.Flush(ctx)
	}
	return storeError(err)
}

// WriteFUA implements backing.FUAWriter.
func (s *Store) WriteFUA(ctx context.Context, p []byte, off int64) error {
	return storeError(s.cl.WriteAt(ctx, p, off, nbd.FlagFUA))
}

// Flush implements backing.Store. A server that offers no flush is taken for one
// that has nothing to flush.
func (s *Store) Flush(ctx context.Context) error { return storeError(s.cl.Flush(ctx)) }

// Discard implements backing.Discarder: the range becomes zeroes, which a server
// that trims stores without taking space where it can.
func (s *Store) Discard(ctx context.Context, off, n int64) error {
	return s.modified(ctx, s.cl.WriteZeroes(ctx, off, n, s.flags()))
}

// WriteZeroes implements backing.ZeroWriter.
func (s *Store) WriteZeroes(ctx context.Context, off, n int64, mayUnmap bool) error {
	flags := s.flags()
	if !mayUnmap {
		flags |= nbd.FlagNoHole
	}
	return s.modified(ctx, s.cl.WriteZeroes(ctx, off, n, flags))
}

// Extents implements backing.Extenter. A hole of which the server does not say
// that it reads as zeroes counts as allocated.
func (s *Store) Extents(ctx context.Context, off, n int64, fn func(backing.Extent) bool) error {
	runs, more := backing.JoinExtents(off, fn), true
	err := s.cl.BlockStatus(ctx, off, n, func(_, n int64, state uint64) bool {
		more = runs.Add(n, state&(nbd.StateHole|nbd.StateZero) != nbd.StateHole|nbd.StateZero)
		return more
	})
	if err == nil && more {
		runs.End()
	}
	return storeError(err)
}

// Refresh implements backing.Refresher.
func (s *Store) Refresh(ctx context.Context) (int64, error) {
	n, err := s.cl.Refresh(ctx)
	return n, storeError(err)
}

// Close ends the connections. Calls that are under way end with
// backing.ErrClosed.
func (s *Store) Close() error { return storeError(s.cl.Close()) }

// SetStall implements backing.Staller.
func (s *Store) SetStall(limit time.Duration) { s.cl.SetStall(limit) }

// Health implements backing.Healther.
func (s *Store) Health() backing.Health {
	st := s.cl.Status()
	h := backing.Health{Since: st.Since}
	switch st.State {
	case client.Stalled:
		h.State = backing.Stalled
	case client.Failed:
		h.State = backing.Failed
	}
	if h.State != backing.Healthy {
		h.Reason = s.location + ": " + st.Reason
	}
	return h
}

// Notify implements backing.Notifier.
func (s *Store) Notify(fn func(backing.Change)) (stop func()) { return s.notes.add(fn) }

// storeError gives an error of the client the name that stores have for it.
func storeError(err error) error {
	if err == nil {
		return nil
	}
	for _, m := range []struct{ is, as error }{
		{client.ErrTimeout, backing.ErrStalled},
		{client.ErrClosed, backing.ErrClosed},
		{client.ErrFailed, backing.ErrFailed},
		{client.ErrRange, backing.ErrOutOfRange},
		{client.ErrReadOnly, backing.ErrReadOnly},
		{client.ErrNotSupported, backing.ErrNotSupported},
		{client.ErrUnknownExport, backing.ErrNotExist},
		{nbd.EPERM, backing.ErrReadOnly},
		{nbd.ENOSPC, backing.ErrNoSpace},
		{nbd.ENOTSUP, backing.ErrNotSupported},
	} {
		if errors.Is(err, m.is) {
			return &storeErr{m.as, err}
		}
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, err)
	}
	return err
}

// storeErr is a store's error with the client's words.
type storeErr struct{ as, err error }

func (e *storeErr) Error() string   { return e.err.Error() }
func (e *storeErr) Unwrap() []error { return []error{e.as, e.err} }
