package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"blockgate/backing"
	"blockgate/backing/nbd"
	"blockgate/backing/plugin/internal/control"
	"blockgate/nbd/client"
)

// connect makes the data path. What the plugin calls durable is written through
// by FUA, so that the client has nothing to keep for a process that is lost; of
// others it keeps what has not been flushed and writes it again.
func (s *Store) connect(ctx context.Context) (*nbd.Store, error) {
	return nbd.OpenAt(ctx, client.Config{Dial: s.dial, Conns: conns}, s.cfg.Name+":"+s.info.Location, backing.OpenOptions{
		ReadOnly: s.info.ReadOnly, Sync: s.durable, Stall: s.limit(),
	})
}

// conns is how many connections carry the data. All lead to one process, and a
// copy of the payload is all that is done for them.
const conns = 2

// dial makes a connection to the process that has the store open, waiting for one.
// A process whose connections were lost, or given up, is not connected to again: it
// may still be doing what came over them, which then would be done twice and in any
// order.
func (s *Store) dial(ctx context.Context) (net.Conn, error) {
	for {
		p, err := s.ready(ctx)
		if err != nil {
			return nil, err
		}
		if p.given.Add(1) > conns && !s.asking.Load() {
			p.askRestart("its data connections were given up")
			s.await(ctx, p)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			continue
		}
		ours, theirs, err := pair("data")
		if err != nil {
			return nil, err
		}
		err = p.give(theirs)
		theirs.Close()
		if err == nil {
			return ours, nil
		}
		ours.Close()
		// It has ended, or will be found to have.
		p.askRestart("the plugin takes no data connections: " + err.Error())
		s.await(ctx, p)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// give hands a descriptor to the process.
func (p *process) give(f *os.File) error {
	c, ok := p.data.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("%T cannot carry descriptors", p.data)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _, err := c.WriteMsgUnix([]byte{0}, syscall.UnixRights(int(f.Fd())), nil)
	return err
}

// outcome is what every call of the data path ends with. A call that was given up
// leaves something in the process that may still be done: no other process gets
// to do it again before this one is dead.
func (s *Store) outcome(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, client.ErrTimeout) {
		s.mu.Lock()
		p := s.proc
		s.mu.Unlock()
		if p != nil {
			p.askRestart(err.Error())
		}
	}
	if errors.Is(err, control.ErrnoFailed) {
		// The plugin finds out why, and says so; who is told first is told that.
		s.awaitFailure()
		err = fmt.Errorf("the plugin: %w", backing.ErrFailed)
	}
	return s.explain(err)
}

// failureTime is how long a plugin may take to say why its store has failed.
const failureTime = 10 * time.Second

// awaitFailure waits until the store is out of use, or its process is.
func (s *Store) awaitFailure() {
	t := time.NewTimer(failureTime)
	defer t.Stop()
	s.mu.Lock()
	p := s.proc
	s.mu.Unlock()
	for {
		s.mu.Lock()
		over, changed := s.refusal() != nil || s.proc != p, s.changed
		s.mu.Unlock()
		if over {
			return
		}
		select {
		case <-changed:
		case <-t.C:
			return
		}
	}
}

// ReadAt implements backing.Store.
func (s *Store) ReadAt(ctx context.Context, p []byte, off int64) error {
	return s.outcome(s.data.ReadAt(ctx, p, off))
}

// WriteAt implements backing.Store.
func (s *Store) WriteAt(ctx context.Context, p []byte, off int64) error {
	return s.outcome(s.data.WriteAt(ctx, p, off))
}

// WriteFUA implements backing.FUAWriter.
func (s *Store) WriteFUA(ctx context.Context, p []byte, off int64) error {
	return s.outcome(s.data.WriteFUA(ctx, p, off))
}

// Flush implements backing.Store.
func (s *Store) Flush(ctx context.Context) error { return s.outcome(s.data.Flush(ctx)) }

// Discard implements backing.Discarder.
func (s *Store) Discard(ctx context.Context, off, n int64) error {
	return s.outcome(s.data.Discard(ctx, off, n))
}

// WriteZeroes implements backing.ZeroWriter.
func (s *Store) WriteZeroes(ctx context.Context, off, n int64, mayUnmap bool) error {
	return s.outcome(s.data.WriteZeroes(ctx, off, n, mayUnmap))
}

// Extents implements backing.Extenter.
func (s *Store) Extents(ctx context.Context, off, n int64, fn func(backing.Extent) bool) error {
	// NBD has an answer for stores that know nothing of holes.
	if s.caps&backing.CapExtents == 0 {
		return s.explain(backing.ErrNotSupported)
	}
	return s.outcome(s.data.Extents(ctx, off, n, fn))
}
