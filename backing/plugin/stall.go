package plugin

import (
	"context"
	"errors"
	"time"

	"blockgate/backing/plugin/internal/control"
)

// SetStall changes how long calls wait, here, on the data path and in the plugin.
// It does not block: the plugin is told of it a moment later, and one that is
// started again when it is.
func (s *Store) SetStall(limit time.Duration) {
	s.stall.Store(int64(stallOf(limit)))
	s.mu.Lock()
	p, data := s.proc, s.data
	s.mu.Unlock()
	if data != nil {
		data.SetStall(s.limit())
	}
	if p != nil {
		go s.tellStall(p)
	}
}

// limit is how long calls wait now.
func (s *Store) limit() time.Duration { return time.Duration(s.stall.Load()) }

func stallOf(limit time.Duration) time.Duration {
	if limit == 0 {
		return DefaultStall
	}
	return limit
}

// tellStall makes sure that a process knows the limit. What a plugin does that
// cannot change it is safe: if it gives up too early it asks to be replaced, and
// if it does too late the data path has given up before.
func (s *Store) tellStall(p *process) {
	p.stalls.Lock()
	defer p.stalls.Unlock()
	limit := s.limit()
	if limit == p.stall {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*s.cfg.Ping)
	defer cancel()
	switch err := p.client.Call(ctx, control.OpStall, control.Stall{Limit: limit}, nil); {
	case err == nil:
		p.stall = limit
	case errors.Is(err, control.ErrGone), errors.Is(err, context.DeadlineExceeded):
		// The next process is told when it opens the store.
	default:
		s.log.Warn("the plugin did not take the stall limit", "limit", limit, "reason", err)
	}
}
