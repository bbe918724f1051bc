// Package nbdload puts load on an NBD server, with as little work of its own as it
// can, so that what is measured is the server.
package nbdload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"time"

	"blockgate/nbd"
	"blockgate/test/bench/limit"
)

// Load puts load on an export, by simple replies, as the kernel's client does. The
// size in o is taken from the export.
func Load(ctx context.Context, addr, export string, o limit.Options) (*limit.Result, error) {
	if o.Depth < 1 || o.Connections < 1 || o.Duration <= 0 || o.BlockSize < 1 || o.BlockSize > nbd.DefaultMaxPayload {
		return nil, fmt.Errorf("%+v cannot be measured", o)
	}
	streams := make([]*stream, o.Connections)
	defer func() {
		for _, s := range streams {
			if s != nil {
				s.nc.Close()
			}
		}
	}()
	for i := range streams {
		s, err := dial(ctx, addr, export, o, i)
		if err != nil {
			return nil, err
		}
		streams[i] = s
	}
	stop := context.AfterFunc(ctx, func() {
		for _, s := range streams {
			s.nc.Close()
		}
	})
	defer stop()
	begin := time.Now()
	var wg sync.WaitGroup
	for _, s := range streams {
		wg.Go(func() {
			runtime.LockOSThread()
			s.err = s.run(begin.Add(o.Duration))
		})
	}
	wg.Wait()
	elapsed := time.Since(begin).Seconds()
	var lat []time.Duration
	for _, s := range streams {
		if s.err != nil {
			return nil, errors.Join(s.err, context.Cause(ctx))
		}
		lat = append(lat, s.lat...)
	}
	slices.Sort(lat)
	n := len(lat)
	at := func(q float64) float64 { return float64(lat[int(q*float64(n-1))]) / 1e3 }
	return &limit.Result{Seconds: elapsed, All: limit.Series{
		Count: int64(n), IOPS: float64(n) / elapsed, MBps: float64(n) / elapsed * float64(o.BlockSize) / 1e6, P50: at(0.5), P99: at(0.99),
	}}, nil
}

// stream is the load on one connection.
type stream struct {
	o       limit.Options
	nc      net.Conn
	slots   int64
	next    int64
	rnd     *rand.Rand
	in, out []byte
	payload []byte
	began   []time.Time // by cookie
	lat     []time.Duration
	err     error
}

func dial(ctx context.Context, addr, export string, o limit.Options, i int) (*stream, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	nc.SetDeadline(time.Now().Add(o.Duration + 20*time.Second))
	size, err := enter(nc, export)
	if err == nil && size < int64(o.BlockSize) {
		err = fmt.Errorf("the export has %d bytes", size)
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	slots := size / int64(o.BlockSize)
	s := &stream{
		o: o, nc: nc, slots: slots, next: slots * int64(i) / int64(o.Connections), rnd: rand.New(rand.NewPCG(uint64(i), 48)),
		in: make([]byte, 1<<20), began: make([]time.Time, o.Depth), lat: make([]time.Duration, 0, 1<<20),
	}
	if o.Write {
		s.payload = bytes.Repeat([]byte{byte(i), 1, 2, 3}, (o.BlockSize+3)/4)[:o.BlockSize]
	}
	return s, nil
}

// enter goes to the transmission phase.
func enter(nc net.Conn, export string) (size int64, err error) {
	var head [nbd.OptionReplyHeaderLen]byte
	if _, err := io.ReadFull(nc, head[:nbd.GreetingLen]); err != nil {
		return 0, err
	}
	if _, err := nbd.DecodeGreeting(head[:]); err != nil {
		return 0, err
	}
	b := nbd.AppendClientFlags(nil, nbd.ClientFixedNewstyle|nbd.ClientNoZeroes)
	if _, err := nc.Write(nbd.AppendOption(b, nbd.OptGo, nbd.InfoRequest{Name: export}.Append(nil))); err != nil {
		return 0, err
	}
	for {
		if _, err := io.ReadFull(nc, head[:]); err != nil {
			return 0, err
		}
		h, err := nbd.DecodeOptionReplyHeader(head[:])
		if err != nil || h.Length > nbd.MaxOptionData {
			return 0, errors.Join(err, errors.New("not a reply"))
		}
		data := make([]byte, h.Length)
		if _, err := io.ReadFull(nc, data); err != nil {
			return 0, err
		}
		switch {
		case h.Type == nbd.RepAck:
			return size, nil
		case h.Type.IsError():
			return 0, fmt.Errorf("export %q: %v: %s", export, h.Type, data)
		}
		if i, err := nbd.DecodeInfo(data); err == nil && i.Type == nbd.InfoExport {
			size = int64(i.Size)
		}
	}
}

// ask queues the next request under a cookie.
func (s *stream) ask(cookie int, now time.Time) {
	slot := s.next
	if s.o.Sequential {
		s.next = (s.next + 1) % s.slots
	} else {
		slot = s.rnd.Int64N(s.slots)
	}
	r := nbd.Request{Type: nbd.CmdRead, Cookie: uint64(cookie), Offset: uint64(slot) * uint64(s.o.BlockSize), Length: uint64(s.o.BlockSize)}
	if s.o.Write {
		r.Type = nbd.CmdWrite
	}
	s.out = append(r.Append(s.out, nbd.Simple), s.payload...)
	s.began[cookie] = now
}

// flush sends what is queued, all that one read has made room for at once.
func (s *stream) flush() error {
	if len(s.out) == 0 {
		return nil
	}
	_, err := s.nc.Write(s.out)
	s.out = s.out[:0]
	return err
}

func (s *stream) run(deadline time.Time) error {
	for cookie := range s.o.Depth {
		s.ask(cookie, time.Now())
	}
	if err := s.flush(); err != nil {
		return err
	}
	skip, cookie := -1, 0 // what the reply at hand still lacks; below zero: there is none
	for out, lo, hi := s.o.Depth, 0, 0; out > 0; {
		n, err := s.nc.Read(s.in[hi:])
		if n == 0 {
			return errors.Join(err, fmt.Errorf("%d requests have no reply", out))
		}
		hi += n
		now := time.Now()
		for {
			if skip < 0 {
				var r nbd.Reply
				if hi-lo < nbd.SimpleReplyLen {
					break
				}
				if !nbd.DecodeReply(s.in[lo:], nbd.Simple, &r) || r.Cookie >= uint64(s.o.Depth) || s.began[r.Cookie].IsZero() {
					return errors.New("a reply that nothing was asked for")
				}
				if r.Error != nbd.None {
					return r.Error
				}
				lo, cookie, skip = lo+nbd.SimpleReplyLen, int(r.Cookie), 0
				if !s.o.Write {
					skip = s.o.BlockSize
				}
			}
			n := min(skip, hi-lo)
			if lo, skip = lo+n, skip-n; skip > 0 {
				break
			}
			skip = -1
			s.lat = append(s.lat, now.Sub(s.began[cookie]))
			s.began[cookie] = time.Time{}
			out--
			if now.Before(deadline) {
				s.ask(cookie, now)
				out++
			}
		}
		if lo == hi {
			lo, hi = 0, 0
		} else if len(s.in)-hi < nbd.SimpleReplyLen {
			lo, hi = 0, copy(s.in, s.in[lo:hi])
		}
		if err := s.flush(); err != nil {
			return err
		}
	}
	return nil
}
