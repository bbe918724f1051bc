//go:build linux

package limit

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Ways to reach the disk.
const (
	Memory = "memory" // the file is mapped: payloads leave from the page cache as they are
	File   = "file"   // pread and pwrite
)

// Server answers requests from a file.
type Server struct {
	file *os.File
	size int64
	disk []byte // the mapped file; nil: pread and pwrite
	fd   int    // listens
	addr netip.AddrPort

	mu    sync.Mutex
	conns map[int]struct{}
	done  bool
	wg    sync.WaitGroup
}

// Listen opens the file at path, in the way Memory or File, and listens on an
// IPv4 address; port 0 takes a free one. Close ends it.
func Listen(addr netip.AddrPort, way, path string) (s *Server, err error) {
	if way != Memory && way != File {
		return nil, fmt.Errorf("%q is no way to reach the disk: %s and %s are", way, Memory, File)
	}
	sa, err := sockaddr(addr)
	if err != nil {
		return nil, err
	}
	s = &Server{fd: -1, conns: make(map[int]struct{})}
	defer func() {
		if err != nil {
			s.release()
		}
	}()
	if s.file, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		return nil, err
	}
	fi, err := s.file.Stat()
	if err != nil {
		return nil, err
	}
	s.size = fi.Size()
	if way == Memory {
		s.disk, err = unix.Mmap(int(s.file.Fd()), 0, int(s.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			return nil, fmt.Errorf("mapping %s: %w", path, err)
		}
	}
	if s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, err
	}
	if err = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return nil, err
	}
	if err = unix.Bind(s.fd, sa); err != nil {
		return nil, fmt.Errorf("binding to %s: %w", addr, err)
	}
	if err = unix.Listen(s.fd, 64); err != nil {
		return nil, err
	}
	bound, err := unix.Getsockname(s.fd)
	if err != nil {
		return nil, err
	}
	b, ok := bound.(*unix.SockaddrInet4)
	if !ok {
		return nil, fmt.Errorf("bound to something else than IPv4: %T", bound)
	}
	s.addr = netip.AddrPortFrom(netip.AddrFrom4(b.Addr), uint16(b.Port))
	return s, nil
}

// Addr is where it listens.
func (s *Server) Addr() netip.AddrPort { return s.addr }

// Serve answers connections until ctx ends, and returns when the last has ended.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.shutdown)
	defer stop()
	defer s.release()
	defer s.wg.Wait()
	for {
		fd, _, err := unix.Accept4(s.fd, unix.SOCK_CLOEXEC)
		switch {
		case ctx.Err() != nil:
			if err == nil {
				unix.Close(fd)
			}
			return nil
		case err == unix.EINTR || err == unix.ECONNABORTED:
			continue
		case err != nil:
			s.shutdown()
			return fmt.Errorf("accept: %w", err)
		}
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		if !s.enter(fd) {
			unix.Close(fd)
			return nil
		}
		go func() {
			// The thread blocks in recv: the scheduler has no part in it.
			runtime.LockOSThread()
			defer s.leave(fd)
			c := &conn{s: s, fd: fd, in: make([]byte, 1<<20), out: make([]byte, outSize)}
			c.serve()
		}()
	}
}

func (s *Server) enter(fd int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return false
	}
	s.conns[fd] = struct{}{}
	s.wg.Add(1)
	return true
}

func (s *Server) leave(fd int) {
	s.mu.Lock()
	delete(s.conns, fd)
	unix.Close(fd)
	s.mu.Unlock()
	s.wg.Done()
}

// shutdown wakes everything that blocks: shutdown(2) does what close(2) does not.
func (s *Server) shutdown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = true
	unix.Shutdown(s.fd, unix.SHUT_RDWR)
	for fd := range s.conns {
		unix.Shutdown(fd, unix.SHUT_RDWR)
	}
}

func (s *Server) release() {
	if s.fd >= 0 {
		unix.Close(s.fd)
	}
	if s.disk != nil {
		unix.Munmap(s.disk)
	}
	if s.file != nil {
		s.file.Close()
	}
}

// outSize bounds what is gathered for one writev. Half a MiB stays in a core's
// second-level cache between pread and send.
const outSize = 512 << 10

// conn is one connection.
type conn struct {
	s      *Server
	fd     int
	in     []byte
	lo, hi int    // what has been received and not yet been handled
	out    []byte // headers, and payloads that were read
	used   int
	v      vector
}

func (c *conn) serve() error {
	for {
		if c.lo > 0 {
			c.hi = copy(c.in, c.in[c.lo:c.hi]) // less than one header
			c.lo = 0
		}
		n, err := recv(c.fd, c.in[c.hi:])
		if n <= 0 {
			return err
		}
		c.hi += n
		for c.hi-c.lo >= headerLen {
			if err := c.answer(); err != nil {
				return err
			}
		}
		if err := c.flush(); err != nil {
			return err
		}
	}
}

func (c *conn) answer() error {
	raw := c.in[c.lo : c.lo+headerLen]
	h, err := parseHeader(raw)
	if err != nil {
		return err
	}
	if h.offset > c.s.size-int64(h.length) {
		return errors.New("a request beyond the end of the disk")
	}
	c.lo += headerLen
	if c.v.full() || c.used+headerLen > len(c.out) {
		if err := c.flush(); err != nil {
			return err
		}
	}
	c.used += copy(c.out[c.used:], raw)
	c.v.add(c.out[c.used-headerLen : c.used])
	if h.write {
		return c.take(h)
	}
	if c.s.disk != nil {
		c.v.add(c.s.disk[h.offset : h.offset+int64(h.length)])
		return nil
	}
	for h.length > 0 {
		if c.used == len(c.out) {
			if err := c.flush(); err != nil {
				return err
			}
		}
		p := c.out[c.used:min(c.used+h.length, len(c.out))]
		if _, err := c.s.file.ReadAt(p, h.offset); err != nil {
			return err
		}
		c.used += len(p)
		c.v.add(p)
		h.length, h.offset = h.length-len(p), h.offset+int64(len(p))
	}
	return nil
}

// take puts the payload of a write where it belongs: first what has arrived with
// the header, then, if the disk is mapped, what the socket has, without a copy.
func (c *conn) take(h header) error {
	for h.length > 0 {
		p := c.in[c.lo:min(c.lo+h.length, c.hi)]
		if len(p) > 0 {
			if err := c.store(p, h.offset); err != nil {
				return err
			}
			c.lo += len(p)
			h.length, h.offset = h.length-len(p), h.offset+int64(len(p))
			continue
		}
		// The sender may be waiting for the answers to what came before.
		if err := c.flushBefore(); err != nil {
			return err
		}
		c.lo, c.hi = 0, 0
		if c.s.disk == nil {
			n, err := recv(c.fd, c.in)
			if n <= 0 {
				return errors.Join(err, errors.New("the connection ended in a payload"))
			}
			c.hi = n
			continue
		}
		n, err := recv(c.fd, c.s.disk[h.offset:h.offset+int64(h.length)])
		if n <= 0 {
			return errors.Join(err, errors.New("the connection ended in a payload"))
		}
		h.length, h.offset = h.length-n, h.offset+int64(n)
	}
	return nil
}

func (c *conn) store(p []byte, off int64) error {
	if c.s.disk != nil {
		copy(c.s.disk[off:], p)
		return nil
	}
	_, err := c.s.file.WriteAt(p, off)
	return err
}

// flushBefore sends all answers but the last, whose request is not complete yet.
func (c *conn) flushBefore() error {
	if c.used == headerLen {
		return nil
	}
	var last [headerLen]byte
	copy(last[:], c.out[c.used-headerLen:c.used])
	end := &c.v.iov[len(c.v.iov)-1]
	if end.SetLen(int(end.Len) - headerLen); end.Len == 0 {
		c.v.iov = c.v.iov[:len(c.v.iov)-1]
	}
	if err := c.flush(); err != nil {
		return err
	}
	c.used = copy(c.out, last[:])
	c.v.add(c.out[:c.used])
	return nil
}

func (c *conn) flush() error {
	err := c.v.send(c.fd)
	c.used = 0
	return err
}
