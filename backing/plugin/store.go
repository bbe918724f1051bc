package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"blockgate/backing"
	"blockgate/backing/nbd"
	"blockgate/backing/plugin/internal/control"
)

// Store is a store that a plugin serves.
type Store struct {
	cfg      Config
	log      *slog.Logger
	location string
	options  backing.OpenOptions
	stall    atomic.Int64 // a time.Duration; negative: for ever

	// From the first process; a later one has the same.
	info    backing.Info
	caps    backing.Caps
	durable bool
	library string
	data    *nbd.Store // nil until Open is done

	calls   chan struct{} // has one for each request under way
	resized chan struct{} // has one while the process tells another size than the data path
	sizing  sync.Mutex    // one at a time asks for the size
	asking  atomic.Bool   // for which connections are made anew
	notices notices
	stop    chan struct{} // closed: no process is to be started any more
	ended   chan struct{} // the supervisor has ended

	mu      sync.Mutex
	proc    *process      // nil while none is ready
	changed chan struct{} // closed, and made anew, when proc or what follows changes
	failed  string        // why no call is served any more
	closing bool
	stopped bool
	health  backing.Health
}

// Open starts the plugin and opens the store in it. ctx bounds that; an error is
// one line that says what to do about a program or library that is not there.
func Open(ctx context.Context, cfg Config, location string, o backing.OpenOptions) (*Store, error) {
	cfg.complete(&o)
	s := &Store{
		cfg: cfg, log: cfg.Logger.With("plugin", cfg.Name, "location", location), location: location, options: o,
		stop: make(chan struct{}), ended: make(chan struct{}), changed: make(chan struct{}), resized: make(chan struct{}, 1),
		calls: make(chan struct{}, control.MaxCalls-1), // one is for the end
	}
	s.stall.Store(int64(stallOf(o.Stall)))
	p, err := s.startProcess(ctx, false)
	if err != nil {
		return nil, err
	}
	s.info, s.caps, s.durable, s.library = plausible(p.answer.Info, cfg.Name), control.CapsOf(p.answer.Caps)&carried, p.answer.Durable, p.answer.Library
	if !s.durable {
		// A write that is repeated after a crash would undo it.
		s.caps &^= backing.CapCompareAndWrite
	}
	s.publish(p)
	go s.supervise(p)
	data, err := s.connect(ctx)
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("the data connection of the plugin %s: %w", p.cmd.Path, err)
	}
	s.mu.Lock()
	s.data = data
	s.mu.Unlock()
	s.caps &= data.Capabilities() | ^byData
	data.Notify(func(c backing.Change) {
		if c&backing.HealthChanged != 0 {
			s.notices.tell(backing.HealthChanged)
		}
	})
	go s.follow()
	s.log.Info("plugin started", "pid", p.cmd.Process.Pid, "library", s.library)
	return s, nil
}

// carried are the capabilities that reach through to a plugin.
const carried = backing.CapDiscard | backing.CapWriteZeroes | backing.CapExtents | backing.CapWriteFUA |
	backing.CapResize | backing.CapRefresh | backing.CapUsage | backing.CapCompareAndWrite | backing.CapSnapshot

// plausible is what of a plugin's words makes sense: they come from another process.
func plausible(i backing.Info, engine string) backing.Info {
	i.Engine = engine
	if b := i.PhysicalBlock; b < 512 || b > 1<<20 || b&(b-1) != 0 {
		i.PhysicalBlock = 0
	}
	for _, n := range []*int{&i.OptimalIO, &i.DiscardGranularity, &i.DiscardAlignment} {
		if *n < 0 || *n > 1<<30 {
			*n = 0
		}
	}
	for _, text := range []*string{&i.Location, &i.LockedBy} {
		*text = (*text)[:min(len(*text), maxLine)]
	}
	return i
}

// byData are the capabilities that NBD has words for.
const byData = backing.CapDiscard | backing.CapWriteZeroes | backing.CapExtents | backing.CapWriteFUA

// Capabilities are those of the store in the plugin, as far as they reach
// through.
func (s *Store) Capabilities() backing.Caps { return s.caps }

// Info is the store's in the plugin.
func (s *Store) Info() backing.Info { return s.info }

// Size is the size that the data path knows of; a change that the plugin tells
// of reaches it a moment later.
func (s *Store) Size() int64 { return s.data.Size() }

// Library is the name and version of the C library in the plugin.
func (s *Store) Library() string { return s.library }

// PID is the number of the process that has the store open, 0 if there is none now.
func (s *Store) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return 0
	}
	return s.proc.cmd.Process.Pid
}

// Close closes the store in the plugin and ends it. A plugin that does not
// answer within Config.Grace is killed.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return backing.ErrClosed
	}
	s.closing = true
	p := s.proc
	s.wake()
	s.mu.Unlock()
	var err error
	if s.data != nil {
		s.data.Close()
	}
	if p != nil {
		ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Grace)
		err = p.client.Call(ctx, control.OpClose, nil, nil)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("the plugin did not close the store within %v and was killed", s.cfg.Grace)
		}
	}
	s.halt()
	<-s.ended
	return err
}

// halt ends the supervisor.
func (s *Store) halt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.stopped = true
		close(s.stop)
	}
}

// wake is called with mu held after a change that somebody may wait for.
func (s *Store) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// ready waits for a process, within the stall limit.
func (s *Store) ready(ctx context.Context) (*process, error) {
	var limit <-chan time.Time
	stall := s.limit()
	if stall >= 0 {
		t := time.NewTimer(stall)
		defer t.Stop()
		limit = t.C
	}
	for {
		s.mu.Lock()
		p, changed, reason, err := s.proc, s.changed, s.health.Reason, s.refusal()
		s.mu.Unlock()
		switch {
		case err != nil:
			return nil, err
		case p != nil:
			return p, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-limit:
			return nil, fmt.Errorf("%w: no plugin for %v: %s", backing.ErrStalled, stall, reason)
		}
	}
}

// refusal is why no call is served; it is called with mu held.
func (s *Store) refusal() error {
	switch {
	case s.closing:
		return backing.ErrClosed
	case s.failed != "":
		return fmt.Errorf("%s: %w", s.failed, backing.ErrFailed)
	}
	return nil
}

// explain makes an error of the data path that of a store that has failed or was
// closed meanwhile.
func (s *Store) explain(err error) error {
	if err == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.refusal(); r != nil {
		return r
	}
	return err
}
