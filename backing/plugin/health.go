package plugin

import (
	"encoding/json"
	"sync"
	"time"

	"blockgate/backing"
	"blockgate/backing/plugin/internal/control"
)

// Health is Stalled while no process has the store open or the plugin says so,
// and Failed as soon as no call will be served any more.
func (s *Store) Health() backing.Health {
	s.mu.Lock()
	h, data := s.health, s.data
	s.mu.Unlock()
	if h.State == backing.Healthy && data != nil {
		// Answers that are late, or a flush that has failed.
		if d := data.Health(); d.State != backing.Healthy {
			return d
		}
	}
	return h
}

func (s *Store) setHealth(state backing.State, reason string) {
	if state == backing.Healthy {
		reason = ""
	}
	s.mu.Lock()
	old := s.health
	if s.failed != "" {
		state, reason = backing.Failed, s.failed
	}
	if old.State == state && old.Reason == reason {
		s.mu.Unlock()
		return
	}
	s.health.State, s.health.Reason = state, reason
	if old.State != state {
		s.health.Since = time.Now()
	}
	s.mu.Unlock()
	s.notices.tell(backing.HealthChanged)
}

// Notify tells of changes of the size, and of Health.
func (s *Store) Notify(fn func(backing.Change)) (stop func()) { return s.notices.add(fn) }

// notices are those who want to know.
type notices struct {
	mu  sync.Mutex // held while they are called
	fns map[int]func(backing.Change)
	n   int
}

func (n *notices) add(fn func(backing.Change)) (stop func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fns == nil {
		n.fns = make(map[int]func(backing.Change))
	}
	n.n++
	id := n.n
	n.fns[id] = fn
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.fns, id)
	}
}

func (n *notices) tell(c backing.Change) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, fn := range n.fns {
		fn(c)
	}
}

// note keeps what an event says, and reports whether it said something about the
// store. What makes no sense is of a program that is to be replaced.
func (p *process) note(m control.Message) bool {
	switch m.Op {
	case control.EventChanged:
		var st control.Status
		if err := json.Unmarshal(m.Body, &st); err != nil || st.Size < 0 || st.State > backing.Failed {
			p.askRestart("the plugin sent an event that makes no sense")
			return false
		}
		st.Reason = st.Reason[:min(len(st.Reason), maxLine)]
		p.mu.Lock()
		p.status = &st
		p.mu.Unlock()
		return true
	case control.EventRestart:
		var r control.Restart
		if err := json.Unmarshal(m.Body, &r); err != nil || r.Reason == "" {
			r.Reason = "the plugin asks for it"
		}
		r.Reason = r.Reason[:min(len(r.Reason), maxLine)]
		p.askRestart(r.Reason)
	}
	return false
}

// latest is what the process has told of the store.
func (p *process) latest() control.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status != nil {
		return *p.status
	}
	return p.answer.Status
}
