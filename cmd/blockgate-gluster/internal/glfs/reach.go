package glfs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"blockgate/backing"
	"blockgate/cmd/blockgate-gluster/internal/gfapi"
)

// How long to wait before a call is made again.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = time.Second
)

// handle is the file as it was opened once, and who uses it.
type handle struct {
	f     file
	users int  // under Store.mu
	old   bool // replaced: to be closed by its last user
	// suspect: bricks were away, and with them the lock may have gone. forgotten:
	// they do not know the file as opened.
	suspect, forgotten atomic.Bool
}

// reach is what is known of calls under way.
type reach struct {
	begun, ended atomic.Uint64
	repair       chan struct{} // holds a token while a call sees to the file

	mu sync.Mutex
	// lost are calls that modify which were given up and not answered yet.
	lost []<-chan struct{}
	left int // calls of any kind that were given up and not answered yet
}

// final is an error that must not be tried again.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// away tells whether an error says that a brick, or enough of them, could not be
// reached.
func away(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case syscall.ENOTCONN, syscall.ESHUTDOWN, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE,
		syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.ENETDOWN:
		return true
	}
	return forgotten(errno)
}

// forgotten tells whether an error says that the file has to be opened anew.
func forgotten(err error) bool {
	return errors.Is(err, syscall.EBADFD) || errors.Is(err, syscall.EBADF) || errors.Is(err, syscall.ESTALE)
}

// taken tells whether an error says that another client has the lock.
func taken(err error) bool {
	return errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EBUSY)
}

// try calls fn until it succeeds, or fails for another reason than that bricks are
// away, or the stall limit is over, or, between two calls, ctx. A fn that modifies
// runs to its end when ctx ends.
func (s *Store) try(ctx context.Context, modify bool, fn func(context.Context, file) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	base := ctx
	if modify {
		base = context.WithoutCancel(ctx)
	}
	stall := s.limit()
	base, cancel := context.WithTimeout(base, stall)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()

	s.reach.begun.Add(1)
	defer s.reach.ended.Add(1)
	var last error
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := s.once(base, modify, fn)
		var u *gfapi.Unanswered
		var end final
		switch {
		case err == nil:
			s.health.recovered()
			return nil
		case s.life.Err() != nil:
			return backing.ErrClosed
		case errors.As(err, &u), err == errSilent:
			if !modify && ctx.Err() != nil {
				return ctx.Err()
			}
			if last == nil {
				last = errSilent
			}
			return s.tooLate(stall, last)
		case errors.As(err, &end):
			return end.error
		case !s.again(err):
			return err
		}
		last = err
		s.health.set(backing.Stalled, fmt.Sprintf("gluster %s: %v", s.loc.name(), err))
		select {
		case <-time.After(pause):
		case <-base.Done():
		case <-ctx.Done():
		}
		switch {
		case s.life.Err() != nil:
			return backing.ErrClosed
		case ctx.Err() != nil:
			return ctx.Err()
		case base.Err() != nil:
			return s.tooLate(stall, last)
		}
	}
}

func (s *Store) tooLate(stall time.Duration, err error) error {
	s.health.set(backing.Stalled, fmt.Sprintf("gluster %s: %v", s.loc.name(), err))
	return fmt.Errorf("given up after %v: %w", stall, err)
}

// again tells whether a call may be made again after an error.
func (s *Store) again(err error) bool {
	// Bricks that enforce locks refuse who has lost it: to be taken again, if it is
	// not another's.
	return away(err) || s.locks() && taken(err)
}

var errSilent = errors.New("bricks do not answer")

// once makes sure of the file, and calls fn.
func (s *Store) once(ctx context.Context, modify bool, fn func(context.Context, file) error) error {
	if modify {
		if err := s.settle(ctx); err != nil {
			return err
		}
		s.writing.RLock()
		defer s.writing.RUnlock()
	}
	h := s.acquire()
	if h.suspect.Load() {
		h = s.mend(ctx, h)
		if f := s.failed.Load(); modify && f != nil {
			s.release(h)
			return final{f.err}
		}
	}
	if ctx.Err() != nil {
		s.release(h)
		return errSilent
	}
	return s.callOn(ctx, h, modify, fn)
}

// callOn calls fn and releases the handle.
func (s *Store) callOn(ctx context.Context, h *handle, modify bool, fn func(context.Context, file) error) error {
	err := fn(ctx, h.f)
	var u *gfapi.Unanswered
	if errors.As(err, &u) {
		s.leaveBehind(h, u, modify)
		return err
	}
	if err != nil && s.again(err) {
		h.suspect.Store(true)
		if forgotten(err) {
			h.forgotten.Store(true)
		}
	}
	s.release(h)
	return err
}

// leaveBehind keeps track of a call that is not waited for any longer.
func (s *Store) leaveBehind(h *handle, u *gfapi.Unanswered, modify bool) {
	r := &s.reach
	r.mu.Lock()
	r.left++
	if modify {
		r.lost = append(r.lost, u.Done)
	}
	r.mu.Unlock()
	h.suspect.Store(true)
	go func() {
		<-u.Done
		r.mu.Lock()
		r.left--
		r.lost = slices.DeleteFunc(r.lost, func(d <-chan struct{}) bool { return d == u.Done })
		r.mu.Unlock()
		s.release(h)
	}()
}

// settle waits until no call that was given up can change anything any more.
func (s *Store) settle(ctx context.Context) error {
	r := &s.reach
	for {
		r.mu.Lock()
		var d <-chan struct{}
		if len(r.lost) > 0 {
			d = r.lost[0]
		}
		r.mu.Unlock()
		if d == nil {
			return nil
		}
		select {
		case <-d:
			r.mu.Lock()
			r.lost = slices.DeleteFunc(r.lost, func(o <-chan struct{}) bool { return o == d })
			r.mu.Unlock()
		case <-ctx.Done():
			return errSilent
		}
	}
}

// idle tells whether the library is at nothing.
func (r *reach) idle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.left == 0
}

func (s *Store) acquire() *handle {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cur.users++
	return s.cur
}

func (s *Store) release(h *handle) {
	s.mu.Lock()
	h.users--
	last := h.old && h.users == 0
	s.mu.Unlock()
	if last {
		h.f.Close()
	}
}

// locks tells whether the store holds a lock.
func (s *Store) locks() bool { return !s.opt.ReadOnly && (s.opt.Exclusive || s.loc.Lock) }

// mend makes a handle that is suspect good again if bricks are back: the lock is
// taken anew, and the file opened anew if they have forgotten it. It returns the
// handle to use, in place of h.
func (s *Store) mend(ctx context.Context, h *handle) *handle {
	select {
	case s.reach.repair <- struct{}{}:
		defer func() { <-s.reach.repair }()
	case <-ctx.Done():
		return h
	}
	s.mu.Lock()
	if s.cur != h { // somebody else has done it
		cur := s.cur
		cur.users++
		s.mu.Unlock()
		s.release(h)
		return cur
	}
	s.mu.Unlock()
	if !h.suspect.Load() {
		return h
	}
	var now file
	var late atomic.Bool
	err := blocking(ctx, func() error {
		if !h.forgotten.Load() {
			if err := s.takeLock(h.f, false); err == nil || !forgotten(err) {
				return err
			}
		}
		f, err := s.vol.Open(s.loc.Path, s.flags())
		if err != nil {
			return err
		}
		if err := s.takeLock(f, false); err != nil || late.Load() {
			f.Close()
			return err
		}
		now = f
		return nil
	})
	var u *gfapi.Unanswered
	switch {
	case errors.As(err, &u):
		late.Store(true)
		s.mu.Lock()
		h.users++ // for what goes on
		s.mu.Unlock()
		s.leaveBehind(h, u, false)
		return h
	case err != nil && taken(err):
		s.giveUp(errors.New("another client has the lock now"))
		return h
	case err != nil:
		return h // still away
	}
	h.suspect.Store(false)
	if now == nil {
		return h
	}
	n := &handle{f: now, users: 1}
	s.mu.Lock()
	s.cur, h.old = n, true
	s.mu.Unlock()
	s.release(h)
	return n
}

// takeLock takes the lock of a store that has one, anew too; from another client
// only to steal. EAGAIN says that another has it.
func (s *Store) takeLock(f file, steal bool) error {
	if !s.locks() {
		return nil
	}
	if !steal {
		// To take a lock that bricks enforce is to steal it.
		switch locked, err := f.Locked(); {
		case err != nil:
			return err
		case locked:
			return syscall.EAGAIN
		}
	}
	return f.Lock(s.loc.Lock)
}

// blocking calls what knows no context. When ctx ends the error is Unanswered.
func blocking(ctx context.Context, fn func() error) error {
	done := make(chan struct{})
	var err error
	go func() {
		err = fn()
		close(done)
	}()
	select {
	case <-done:
		return err
	case <-ctx.Done():
		return &gfapi.Unanswered{Done: done, Cause: ctx.Err()}
	}
}
