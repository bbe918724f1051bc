package side

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"

	"blockgate/backing"
	"blockgate/backing/plugin/internal/control"
	"blockgate/nbd/server"
)

// session is one gateway's use of this process.
type session struct {
	engine Engine
	conn   *control.Conn
	data   *net.UnixConn
	ended  chan error // has the outcome of an orderly end

	mu     sync.Mutex
	busy   int // calls under way
	opened bool
	store  backing.Store
	server *server.Server
	stop   func() // ends the notices
}

// handle carries a request out, those that may wait on a goroutine of their own.
func (s *session) handle(ctx context.Context, m control.Message) {
	switch m.Op {
	case control.OpHello:
		s.answer(m, control.HelloAnswer{Protocol: control.Protocol, Name: s.engine.Name, Version: version()}, nil)
		return
	case control.OpPing:
		s.answer(m, nil, nil)
		return
	case control.OpStall:
		s.answer(m, nil, s.setStall(m))
		return
	}
	s.mu.Lock()
	full := s.busy >= control.MaxCalls
	if !full {
		s.busy++
	}
	s.mu.Unlock()
	if full {
		s.answer(m, nil, fmt.Errorf("more than %d requests at once", control.MaxCalls))
		return
	}
	go func() {
		body, err := s.call(ctx, m)
		s.mu.Lock()
		s.busy--
		s.mu.Unlock()
		if m.Op == control.OpClose {
			s.ended <- nil
		}
		s.answer(m, body, err)
		if m.Op == control.OpClose {
			s.conn.Close()
		}
	}()
}

func (s *session) answer(m control.Message, body any, err error) {
	a := control.Message{ID: m.ID, Error: control.ErrorOf(err)}
	if err != nil {
		body = nil
	}
	if err := s.conn.Send(a, body); errors.Is(err, control.ErrTooLong) {
		a.Error = control.ErrorOf(fmt.Errorf("the answer to %s: %w", m.Op, err))
		s.conn.Send(a, nil)
	}
}

// setStall tells the store of a new limit, which does not block.
func (s *session) setStall(m control.Message) error {
	in, err := decode[control.Stall](m)
	if err != nil {
		return err
	}
	s.mu.Lock()
	store := s.store
	s.mu.Unlock()
	if store == nil {
		return errNoStore
	}
	backing.SetStall(store, in.Limit)
	return nil
}

var errNoStore = errors.New("no store is open")

// call carries out what may wait.
func (s *session) call(ctx context.Context, m control.Message) (any, error) {
	switch m.Op {
	case control.OpOpen:
		var in control.Open
		if err := json.Unmarshal(m.Body, &in); err != nil {
			return nil, err
		}
		return s.open(ctx, in)
	case control.OpClose:
		return nil, s.close()
	}
	s.mu.Lock()
	store := s.store
	s.mu.Unlock()
	if store == nil {
		return nil, errNoStore
	}
	return perform(ctx, store, m)
}

func (s *session) open(ctx context.Context, in control.Open) (any, error) {
	s.mu.Lock()
	again := s.opened
	s.opened = true
	s.mu.Unlock()
	if again {
		return nil, errors.New("the store was opened before")
	}
	library := ""
	if s.engine.Load != nil {
		var err error
		if library, err = s.engine.Load(); err != nil {
			return nil, control.Missing(fmt.Sprintf("no engine %q: %v", s.engine.Name, err))
		}
	}
	store, err := s.engine.Open(ctx, in.Location, Options{
		OpenOptions: backing.OpenOptions{
			ReadOnly: in.ReadOnly, Create: in.Create, CreateSize: in.CreateSize, Direct: in.Direct,
			Sync: in.Sync, Exclusive: in.Exclusive, Stall: in.Stall,
		},
		Again: in.Again,
	})
	if err != nil {
		return nil, err
	}
	srv := newServer(store)
	s.mu.Lock()
	s.store, s.server = store, srv
	s.mu.Unlock()
	a := control.OpenAnswer{
		Info: backing.InfoOf(store), Caps: control.CapNames(backing.CapsOf(store)), Library: library, Status: status(store),
	}
	if d, ok := store.(Durable); ok {
		a.Durable = d.Durable()
	}
	s.watch(store)
	go srv.Serve(arrivals{s.data}, server.Access{})
	return a, nil
}

// watch tells the gateway what the store tells.
func (s *session) watch(store backing.Store) {
	tell := func(st control.Status) {
		s.conn.Send(control.Message{Op: control.EventChanged}, st)
	}
	if n, ok := store.(backing.Notifier); ok {
		// fn must not block, and Send may; one at a time, the last state wins.
		kick := make(chan struct{}, 1)
		done := make(chan struct{})
		stop := n.Notify(func(backing.Change) {
			select {
			case kick <- struct{}{}:
			default:
			}
		})
		go func() {
			for {
				select {
				case <-kick:
					tell(status(store))
				case <-done:
					return
				}
			}
		}()
		s.mu.Lock()
		s.stop = func() { stop(); close(done) }
		s.mu.Unlock()
	}
	if r, ok := store.(Restarter); ok {
		r.NotifyRestart(func(reason string) {
			go s.conn.Send(control.Message{Op: control.EventRestart}, control.Restart{Reason: reason})
		})
	}
}

func status(store backing.Store) control.Status {
	st := control.Status{Size: store.Size()}
	if h, ok := store.(backing.Healther); ok {
		health := h.Health()
		st.State, st.Reason = health.State, health.Reason
	}
	return st
}

// close closes the store when no data is served any more. The gateway has closed
// its connections before, after the last answer.
func (s *session) close() error {
	s.mu.Lock()
	store, srv, stop := s.store, s.server, s.stop
	s.store = nil
	s.mu.Unlock()
	if store == nil {
		return nil
	}
	srv.Close()
	if stop != nil {
		stop()
	}
	return store.Close()
}
