// Package nbdfake is a small NBD server in memory for the tests of clients: it
// can be told to misbehave in every way that a client has to survive, and forgets
// on a crash what was not flushed, as real ones do.
package nbdfake

import (
	"errors"
	"net"
	"os"
	"sync"

	"blockgate/nbd"
)

// Options say what the server offers. The zero value is one that can read and
// write without structured replies; see All.
type Options struct {
	Size       int64
	Flags      nbd.TransmissionFlags
	Mode       nbd.Mode
	Allocation bool
	BlockSize  *nbd.BlockSize // nil: not told
	Old        bool           // knows EXPORT_NAME only
	Export     string         // the only name it knows
	// Pieces has a READ answered in chunks of this many bytes, the last one first.
	// 0: in one.
	Pieces int
}

// All is what a modern server offers.
const All = nbd.HasFlags | nbd.SendFlush | nbd.SendFUA | nbd.SendTrim | nbd.SendWriteZeroes | nbd.SendDF |
	nbd.CanMultiConn | nbd.SendCache | nbd.SendFastZero

// Kind is a way to misbehave.
type Kind int

// Ways to misbehave.
const (
	None    Kind = iota
	Drop         // close the connection in place of doing it
	Undone       // do it and close the connection in place of the answer
	Torn         // do it and close the connection in the middle of the answer
	Late         // do it, and answer when Until is closed
	Slow         // do it when Until is closed, even if the connection is gone by then
	Refuse       // answer Errno
	Garbage      // answer with Bytes, and go on
	Stuck        // answer half, and nothing more on this connection
)

// Fault is what becomes of a request.
type Fault struct {
	Kind  Kind
	Until <-chan struct{}
	Errno nbd.Errno
	Bytes func(r nbd.Request) []byte
}

// Server is the server. All methods are safe for concurrent use.
type Server struct {
	mu    sync.Mutex
	opt   Options
	now   []byte // as clients see it
	safe  []byte // as it is after a crash
	hole  []bool // by pages
	fault func(nbd.Request) Fault
	seen  map[nbd.Command]int

	ln      net.Listener
	network string
	address string
	conns   map[net.Conn]bool
	wg      sync.WaitGroup
}

const page = 4096

// New makes a server, which is yet to be started.
func New(o Options) *Server {
	s := &Server{
		opt: o, now: make([]byte, o.Size), safe: make([]byte, o.Size), hole: make([]bool, o.Size/page+1),
		seen: make(map[nbd.Command]int), conns: make(map[net.Conn]bool),
	}
	for i := range s.hole {
		s.hole[i] = true
	}
	return s
}

// Start listens; again too, after Stop or Crash, at the same address.
func (s *Server) Start(network, address string) error {
	if network == "unix" {
		os.Remove(address)
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.ln, s.network, s.address = ln, network, ln.Addr().String()
	s.mu.Unlock()
	s.wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[nc] = true
			s.mu.Unlock()
			s.wg.Go(func() { s.serve(nc) })
		}
	})
	return nil
}

// Addr is where it listens, or did.
func (s *Server) Addr() (network, address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.network, s.address
}

// Stop ends the listener and the connections and waits for what is under way.
func (s *Server) Stop() {
	s.hangUp(true)
	s.wg.Wait()
}

// HangUp ends the connections.
func (s *Server) HangUp() { s.hangUp(false) }

func (s *Server) hangUp(listener bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if listener && s.ln != nil {
		s.ln.Close()
		s.ln = nil
	}
	for nc := range s.conns {
		nc.Close()
	}
}

// Crash is Stop, and forgets what was not flushed. Restart serves again.
func (s *Server) Crash() {
	s.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	copy(s.now, s.safe)
	for i := range s.hole {
		s.hole[i] = false
	}
}

// Restart is Start at the same address.
func (s *Server) Restart() error { return s.Start(s.Addr()) }

// SetFault has fn decide what becomes of each request; nil: all are done.
func (s *Server) SetFault(fn func(nbd.Request) Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = fn
}

// Change changes what new connections are offered.
func (s *Server) Change(fn func(o *Options)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(&s.opt)
	if more := s.opt.Size - int64(len(s.now)); more > 0 {
		s.now, s.safe = append(s.now, make([]byte, more)...), append(s.safe, make([]byte, more)...)
		s.hole = append(s.hole, make([]bool, more/page+1)...)
	}
}

// Seen is how many requests of a kind there were.
func (s *Server) Seen(c nbd.Command) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[c]
}

// Conns is how many connections there are.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Content copies what clients see at off to p.
func (s *Server) Content(p []byte, off int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	copy(p, s.now[off:])
}

// Durable copies what is left after a crash at off to p.
func (s *Server) Durable(p []byte, off int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	copy(p, s.safe[off:])
}

var errEnd = errors.New("nbdfake: connection ends")

func (s *Server) serve(nc net.Conn) {
	defer func() {
		nc.Close()
		s.mu.Lock()
		delete(s.conns, nc)
		s.mu.Unlock()
	}()
	s.mu.Lock()
	opt := s.opt
	s.mu.Unlock()
	c := &conn{s: s, nc: nc, opt: opt}
	if c.handshake() != nil {
		return
	}
	for {
		if c.request() != nil {
			break
		}
	}
	nc.Close()
}

func (s *Server) decide(r nbd.Request) Fault {
	s.mu.Lock()
	s.seen[r.Type]++
	fn := s.fault
	s.mu.Unlock()
	if fn == nil {
		return Fault{}
	}
	return fn(r)
}

// do carries a request out.
func (s *Server) do(r nbd.Request, p []byte, opt *Options) (data []byte, ext []nbd.Extent, e nbd.Errno) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Type == nbd.CmdFlush {
		copy(s.safe, s.now)
		return nil, nil, nbd.None
	}
	min := uint64(1)
	if opt.BlockSize != nil {
		min = uint64(opt.BlockSize.Min)
	}
	if (r.Offset|r.Length)%min != 0 || r.Length == 0 {
		return nil, nil, nbd.EINVAL
	}
	if r.Offset > uint64(opt.Size) || r.Length > uint64(opt.Size)-r.Offset {
		if r.Type == nbd.CmdWrite || r.Type == nbd.CmdWriteZeroes {
			return nil, nil, nbd.ENOSPC
		}
		return nil, nil, nbd.EINVAL
	}
	b := s.now[r.Offset:][:r.Length]
	pages := s.hole[r.Offset/page : (r.Offset+r.Length-1)/page+1]
	switch r.Type {
	case nbd.CmdRead:
		return append([]byte(nil), b...), nil, nbd.None
	case nbd.CmdWrite:
		copy(b, p)
		set(pages, false)
	case nbd.CmdWriteZeroes:
		clear(b)
		if r.Flags&nbd.FlagNoHole != 0 {
			set(pages, false)
		} else if from, to := (r.Offset+page-1)/page, (r.Offset+r.Length)/page; from < to {
			set(s.hole[from:to], true)
		}
	case nbd.CmdTrim:
		for i := range b {
			b[i] = 0xdd // nobody may rely on zeroes
		}
		set(pages, false)
	case nbd.CmdCache:
	case nbd.CmdBlockStatus:
		ext = status(pages, r)
	default:
		return nil, nil, nbd.EINVAL
	}
	if r.Flags&nbd.FlagFUA != 0 {
		copy(s.safe[r.Offset:][:r.Length], b)
	}
	return nil, ext, nbd.None
}

func set(pages []bool, hole bool) {
	for i := range pages {
		pages[i] = hole
	}
}

// status describes at most three runs, the last of which may end behind the
// request, as real servers do.
func status(pages []bool, r nbd.Request) (l []nbd.Extent) {
	at := r.Offset
	for i, hole := range pages {
		end := (r.Offset/page + uint64(i) + 1) * page
		f := uint64(0)
		if hole {
			f = nbd.StateHole | nbd.StateZero
		}
		if n := len(l); n > 0 && l[n-1].Flags == f {
			l[n-1].Length += end - at
		} else if n == 3 {
			return l
		} else {
			l = append(l, nbd.Extent{Length: end - at, Flags: f})
		}
		at = end
	}
	if over := at - (r.Offset + r.Length); len(l) > 1 || over >= l[0].Length {
		l[len(l)-1].Length -= over
	}
	return l
}
