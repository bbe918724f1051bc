// Package nebdfake is a nebd-server with its volumes in memory, for tests. It
// behaves as the real one does where that matters to a client: answers out of
// order, one descriptor for a volume however often it is opened, descriptors that
// outlive the server, files closed for lack of heartbeats and opened again by the
// next request, requests that are never answered and keep their file from being
// closed. What a request asks that would make the real one crash is counted.
package nebdfake

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
)

// Options are what servers differ in.
type Options struct {
	Shuffle     bool // answers that are ready together leave in any order
	Seed        uint64
	DropOnError bool  // returnRpcWhenIoError=false, nebd's default
	SegmentSize int64 // what a volume grows by; 0: 1 GiB
}

// Server is a nebd-server and the cluster behind it. Its methods are safe for
// concurrent use, Start and Stop excepted.
type Server struct {
	opt   Options
	fault atomic.Pointer[func(Request) Fault]

	mu      sync.Mutex
	volumes map[string]*volume // by what is between the driver and the last colon
	files   map[int32]*file
	nextFD  int32
	faults  []string
	beats   int
	life    *life
}

// life is a server between Start and Stop.
type life struct {
	l     net.Listener
	over  chan struct{}
	conns map[net.Conn]struct{}
	wg    sync.WaitGroup
}

// New makes a cluster without volumes; Start serves it.
func New(o Options) *Server {
	if o.SegmentSize == 0 {
		o.SegmentSize = 1 << 30
	}
	return &Server{opt: o, volumes: make(map[string]*volume), files: make(map[int32]*file), nextFD: 1}
}

// Create makes a volume. The name is the whole one, "cbd:pool//vol_user_".
func (s *Server) Create(name string, size int64, blockSize int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.volumes[name] = &volume{blockSize: uint32(blockSize), size: size, pages: make(map[int64][]byte)}
}

// Content reads a volume behind the server's back.
func (s *Server) Content(name string, p []byte, off int64) {
	s.mu.Lock()
	v := s.volumes[name]
	s.mu.Unlock()
	v.read(p, off)
}

// SetFault sets the function that decides what happens to each request; nil:
// nothing does.
func (s *Server) SetFault(fn func(Request) Fault) {
	if fn == nil {
		s.fault.Store(nil)
		return
	}
	s.fault.Store(&fn)
}

// Check is an error if a request was one that a server does not survive, or never
// answers.
func (s *Server) Check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.faults) > 0 {
		return errors.New(s.faults[0])
	}
	return nil
}

func (s *Server) accuse(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, fmt.Sprintf(format, args...))
}

// Heartbeats is how many heartbeats named a file that is open.
func (s *Server) Heartbeats() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.beats
}

// Open lists the volumes that are open.
func (s *Server) Open() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, f := range s.files {
		f.mu.Lock()
		if f.open {
			names = append(names, f.name)
		}
		f.mu.Unlock()
	}
	slices.Sort(names)
	return names
}

// Expire closes every file as if no heartbeat had come for long enough.
func (s *Server) Expire() {
	s.mu.Lock()
	files := make([]*file, 0, len(s.files))
	for _, f := range s.files {
		files = append(files, f)
	}
	s.mu.Unlock()
	for _, f := range files {
		f.close(false)
	}
}

// Forget loses the table of open files.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.files {
		f.mu.Lock()
		f.gone, f.open = true, false
		f.mu.Unlock()
	}
	clear(s.files)
}

// Start serves on a unix socket, in place of what is there.
func (s *Server) Start(path string) error {
	_ = os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	x := &life{l: l, over: make(chan struct{}), conns: make(map[net.Conn]struct{})}
	s.mu.Lock()
	s.life = x
	// A new process knows its files from its table, without who held them.
	for fd, f := range s.files {
		s.files[fd] = newFile(fd, f.name, f.flags, f.vol)
	}
	s.mu.Unlock()
	x.wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			select {
			case <-x.over:
				nc.Close()
			default:
				x.conns[nc] = struct{}{}
				x.wg.Go(func() { s.serve(x, nc) })
			}
			s.mu.Unlock()
		}
	})
	return nil
}

// Stop ends the server as kill -9 does and waits until it is gone. What it had
// not done yet is not done. The table of open files stays.
func (s *Server) Stop() {
	s.mu.Lock()
	x := s.life
	s.life = nil
	if x != nil {
		close(x.over)
		for nc := range x.conns {
			nc.Close()
		}
		for _, f := range s.files {
			f.die()
		}
	}
	s.mu.Unlock()
	if x != nil {
		x.l.Close()
		x.wg.Wait()
	}
}

// Drop tears every connection. What was asked on them goes on.
func (s *Server) Drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life != nil {
		for nc := range s.life.conns {
			nc.Close()
		}
	}
}
