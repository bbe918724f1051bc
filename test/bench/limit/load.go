//go:build linux

package limit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options say what load to put on a server.
type Options struct {
	Write       bool
	Sequential  bool
	BlockSize   int           // bytes a request, up to MaxPayload
	Depth       int           // requests outstanding on a connection, 1 to 4096
	Connections int           // 1 to 256
	Duration    time.Duration // up to a minute
	Size        int64         // bytes of the disk
}

// Result is what was measured. Latencies are microseconds.
type Result struct {
	Seconds float64 `json:"seconds"`
	All     Series  `json:"all"`
}

// Series has the names that "blockgate bench -o json" uses.
type Series struct {
	Count int64   `json:"count"`
	IOPS  float64 `json:"iops"`
	MBps  float64 `json:"mbps"` // 10^6 bytes a second
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
}

func (o *Options) check() error {
	switch {
	case o.BlockSize < 1 || o.BlockSize > MaxPayload || o.Size < int64(o.BlockSize):
		return fmt.Errorf("block size %d: between 1, %d and the size of the disk, %d", o.BlockSize, MaxPayload, o.Size)
	case o.Depth < 1 || o.Depth > 4096 || o.Connections < 1 || o.Connections > 256:
		return errors.New("depth is 1 to 4096, connections 1 to 256")
	case o.Duration <= 0 || o.Duration > time.Minute:
		return errors.New("duration is above zero and at most a minute")
	}
	return nil
}

// Load puts load on the server at addr.
func Load(ctx context.Context, addr netip.AddrPort, o Options) (*Result, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	sa, err := sockaddr(addr)
	if err != nil {
		return nil, err
	}
	streams := make([]*stream, o.Connections)
	defer func() {
		for _, s := range streams {
			if s != nil {
				unix.Close(s.fd)
			}
		}
	}()
	for i := range streams {
		if streams[i], err = dial(sa, o, i); err != nil {
			return nil, fmt.Errorf("connecting to %s: %w", addr, err)
		}
	}
	stop := context.AfterFunc(ctx, func() {
		for _, s := range streams {
			unix.Shutdown(s.fd, unix.SHUT_RDWR)
		}
	})
	begin := time.Now()
	var wg sync.WaitGroup
	for _, s := range streams {
		wg.Go(func() {
			runtime.LockOSThread()
			s.err = s.run(begin.Add(o.Duration))
		})
	}
	wg.Wait()
	stop()
	elapsed := time.Since(begin).Seconds()
	var lat []uint32
	for _, s := range streams {
		if s.err != nil {
			return nil, errors.Join(s.err, context.Cause(ctx))
		}
		lat = append(lat, s.lat...)
	}
	slices.Sort(lat)
	n := len(lat)
	at := func(q float64) float64 { return float64(lat[int(q*float64(n-1))]) / 1e3 }
	return &Result{Seconds: elapsed, All: Series{
		Count: int64(n), IOPS: float64(n) / elapsed, MBps: float64(n) / elapsed * float64(o.BlockSize) / 1e6, P50: at(0.5), P99: at(0.99),
	}}, nil
}

// silence is how long an answer may take.
const silence = 10

func dial(sa unix.Sockaddr, o Options, i int) (*stream, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	tv := unix.Timeval{Sec: silence}
	if err := errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), unix.Connect(fd, sa)); err != nil {
		unix.Close(fd)
		return nil, err
	}
	slots := o.Size / int64(o.BlockSize)
	s := &stream{
		o: o, fd: fd, slots: slots, next: slots * int64(i) / int64(o.Connections), rnd: rand.New(rand.NewPCG(uint64(i), 48)),
		in: make([]byte, 1<<20), headers: make([]byte, o.Depth*headerLen), began: make([]time.Time, o.Depth), lat: make([]uint32, 0, 1<<20),
	}
	if o.Write {
		s.payload = make([]byte, o.BlockSize)
		for i := range s.payload {
			s.payload[i] = byte(s.rnd.Uint32())
		}
	}
	return s, nil
}

// stream is the load on one connection.
type stream struct {
	o       Options
	fd      int
	slots   int64
	next    int64
	rnd     *rand.Rand
	in      []byte
	headers []byte // one for each tag
	payload []byte
	began   []time.Time // by tag
	lat     []uint32    // nanoseconds
	v       vector
	err     error
}

func (s *stream) run(deadline time.Time) error {
	now := time.Now()
	for tag := range s.o.Depth {
		if err := s.ask(uint32(tag), now); err != nil {
			return err
		}
	}
	if err := s.v.send(s.fd); err != nil {
		return err
	}
	out, lo, hi := s.o.Depth, 0, 0
	skip := -1     // what the answer at hand still lacks; below zero: there is none
	var tag uint32 // its tag
	for out > 0 {
		n, err := recv(s.fd, s.in[hi:])
		if n <= 0 {
			return errors.Join(err, fmt.Errorf("%d requests have no answer", out))
		}
		hi += n
		now := time.Now()
		for {
			if skip < 0 {
				if hi-lo < headerLen {
					break
				}
				h, err := parseHeader(s.in[lo:])
				if err != nil || int(h.tag) >= s.o.Depth || s.began[h.tag].IsZero() {
					return errors.Join(err, errors.New("an answer that nothing was asked for"))
				}
				lo, tag, skip = lo+headerLen, h.tag, 0
				if !h.write {
					skip = h.length
				}
			}
			n := min(skip, hi-lo)
			if lo, skip = lo+n, skip-n; skip > 0 {
				break
			}
			skip = -1
			s.lat = append(s.lat, uint32(min(now.Sub(s.began[tag]), 4*time.Second)))
			s.began[tag] = time.Time{}
			out--
			if now.Before(deadline) {
				if err := s.ask(tag, now); err != nil {
					return err
				}
				out++
			}
		}
		hi, lo = copy(s.in, s.in[lo:hi]), 0
		if err := s.v.send(s.fd); err != nil {
			return err
		}
	}
	return nil
}

// ask queues a request.
func (s *stream) ask(tag uint32, now time.Time) error {
	slot := s.next
	if s.o.Sequential {
		s.next = (s.next + 1) % s.slots
	} else {
		slot = s.rnd.Int64N(s.slots)
	}
	p := s.headers[tag*headerLen : (tag+1)*headerLen]
	header{write: s.o.Write, tag: tag, length: s.o.BlockSize, offset: slot * int64(s.o.BlockSize)}.put(p)
	s.began[tag] = now
	if s.v.full() {
		if err := s.v.send(s.fd); err != nil {
			return err
		}
	}
	s.v.add(p)
	s.v.add(s.payload)
	return nil
}
