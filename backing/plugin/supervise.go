package plugin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"blockgate/backing"
	"blockgate/backing/plugin/internal/control"
)

// supervise keeps a process running until the store is closed or has failed.
func (s *Store) supervise(p *process) {
	defer close(s.ended)
	pause := time.Duration(0)
	for p != nil {
		reason := s.watch(p)
		// A request that kills each process that gets it must not have them come
		// and go without end: the engine has work with each of them.
		if time.Since(p.began) < 64*s.cfg.Backoff {
			pause = s.longer(pause)
		} else {
			pause = 0
		}
		s.mu.Lock()
		s.proc = nil
		over := s.closing || s.failed != ""
		s.wake()
		s.mu.Unlock()
		if !over {
			s.setHealth(backing.Stalled, reason)
			s.log.Error("plugin is started again", "reason", reason)
		}
		// Dead before another is started: what it had under way in the library
		// is then in nobody's hands but the engine's.
		p.kill()
		if over {
			return
		}
		p = s.restart(pause)
	}
}

// watch waits until a process is of no use any more, and says why.
func (s *Store) watch(p *process) string {
	ticker := time.NewTicker(s.cfg.Ping)
	defer ticker.Stop()
	pong := make(chan error, 1)
	asked := false
	for {
		select {
		case <-s.stop:
			return "closed"
		case reason := <-p.replace:
			// One that has ended may be missed before its end is known.
			select {
			case <-p.dead:
				return p.obituary(p.cmd.Path).Error()
			case <-time.After(deathTime):
			}
			return reason
		case <-p.dead:
			return p.obituary(p.cmd.Path).Error()
		case <-p.client.Done():
			if err := p.client.Err(); !errors.Is(err, control.ErrGone) {
				return err.Error()
			}
			// A process that ends closes its sockets a moment before.
			select {
			case <-p.dead:
			case <-time.After(killTime):
			}
			return p.obituary(p.cmd.Path).Error()
		case err := <-pong:
			asked = false
			if errors.Is(err, context.DeadlineExceeded) {
				return fmt.Sprintf("the plugin %s does not answer", p.cmd.Path)
			}
		case <-ticker.C:
			if asked {
				continue
			}
			asked = true
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), 4*s.cfg.Ping)
				defer cancel()
				pong <- p.client.Call(ctx, control.OpPing, nil, nil)
			}()
		}
	}
}

// deathTime is how long it may take until a process that has ended is known to.
const deathTime = 50 * time.Millisecond

// longer is the pause after a pause.
func (s *Store) longer(pause time.Duration) time.Duration {
	return min(max(2*pause, s.cfg.Backoff), 32*s.cfg.Backoff)
}

// restart starts processes, the first one after a pause, until one has the store
// open; nil if the store was closed meanwhile or has failed.
func (s *Store) restart(wait time.Duration) *process {
	for {
		select {
		case <-s.stop:
			return nil
		case <-time.After(wait):
		}
		wait = s.longer(wait)
		ctx, cancel := context.WithTimeout(context.Background(), s.cfg.OpenTime)
		unhook := make(chan struct{})
		go func() {
			select {
			case <-s.stop:
				cancel()
			case <-unhook:
			}
		}()
		p, err := s.startProcess(ctx, true)
		close(unhook)
		cancel()
		s.mu.Lock()
		data := s.data
		s.mu.Unlock()
		if err == nil && data != nil && p.latest().Size < data.Size() {
			p.kill()
			s.fail(fmt.Sprintf("the store has %d bytes now, and had %d", p.latest().Size, data.Size()))
			return nil
		}
		if err == nil {
			s.log.Info("plugin started again", "pid", p.cmd.Process.Pid)
			s.publish(p)
			return p
		}
		if errors.Is(err, backing.ErrBusy) || errors.Is(err, backing.ErrNotExist) || errors.Is(err, backing.ErrFailed) {
			// Somebody else has it now, or it is gone: what was not answered
			// must not be sent again.
			s.fail(err.Error())
			return nil
		}
		s.log.Error("plugin could not be started again", "reason", err, "next", wait)
		s.setHealth(backing.Stalled, err.Error())
	}
}

// publish makes a process the one that calls go to.
func (s *Store) publish(p *process) {
	s.mu.Lock()
	s.proc = p
	s.wake()
	s.mu.Unlock()
	s.apply(p)
	go s.tellStall(p) // it may have been changed since the process was told
}

// event takes what a process tells by itself.
func (s *Store) event(p *process, m control.Message) {
	if !p.note(m) {
		return
	}
	s.mu.Lock()
	current := s.proc == p
	s.mu.Unlock()
	if current {
		s.apply(p)
	}
}

// apply takes over the size and the health that a process has told last.
func (s *Store) apply(p *process) {
	st := p.latest()
	select {
	case s.resized <- struct{}{}:
	default:
	}
	if st.State == backing.Failed {
		s.fail(st.Reason)
		return
	}
	s.setHealth(st.State, st.Reason)
}

// follow has the data path take over sizes that processes tell of.
func (s *Store) follow() {
	for {
		select {
		case <-s.ended:
			return
		case <-s.resized:
		}
		s.mu.Lock()
		p := s.proc
		s.mu.Unlock()
		if p == nil || p.latest().Size == s.Size() {
			continue
		}
		if _, err := s.takeSize(context.Background()); err != nil {
			s.log.Error("the new size could not be taken over", "reason", err)
		}
	}
}

// takeSize makes the data path ask for the size, and tells of a change.
func (s *Store) takeSize(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, sizeTime)
	defer cancel()
	s.sizing.Lock()
	defer s.sizing.Unlock()
	was := s.Size()
	s.asking.Store(true)
	size, err := s.data.Refresh(ctx)
	s.asking.Store(false)
	if err == nil && size != was {
		s.notices.tell(backing.SizeChanged)
	}
	return size, err
}

// sizeTime is how long the data path may take to learn a size.
const sizeTime = 30 * time.Second

// fail makes the store fail for good and ends its process.
func (s *Store) fail(reason string) {
	if reason == "" {
		reason = "the plugin says that the store has failed"
	}
	s.mu.Lock()
	first, data := s.failed == "" && !s.closing, s.data
	if first {
		s.failed = reason
		s.wake()
	}
	s.mu.Unlock()
	if !first {
		return
	}
	s.log.Error("store failed", "reason", reason)
	s.setHealth(backing.Failed, reason)
	s.halt()
	if data != nil {
		// What waits for a process is told now; see explain.
		go data.Close()
	}
}

// askRestart has a process replaced.
func (p *process) askRestart(reason string) {
	select {
	case p.replace <- reason:
	default:
	}
}
