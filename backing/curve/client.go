package curve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"blockgate/backing"
	"blockgate/backing/curve/internal/brpc"
	"blockgate/backing/curve/internal/nebd"
	"blockgate/backing/internal/vitals"
)

// Config is how a store talks to nebd-server. The zero Config has the defaults.
type Config struct {
	// Heartbeat is how often nebd-server is told that the volume is in use; 0: 5 s.
	// It closes what it hears nothing of for 30 s, and opens it again.
	Heartbeat time.Duration
	// HeartbeatTimeout is how long its answer may take before the connection is
	// given up; 0: 15 s.
	HeartbeatTimeout time.Duration
	// Settle is how long chunk servers may take to carry out what a nebd-server
	// that is gone had sent them; nothing is sent again before. 0: 1 s.
	Settle time.Duration
	// Backoff is the first pause between attempts to connect; it grows 32-fold.
	// 0: 20 ms.
	Backoff time.Duration
	// Drain is how long to wait for requests that were lost, before the connection
	// on which that is done is made anew; 0: 5 minutes.
	Drain time.Duration
	// CloseTimeout is how long Close waits for nebd-server; 0: 5 s.
	CloseTimeout time.Duration
	// Poll is how often the state of a snapshot or clone is asked for; 0: 100 ms.
	Poll time.Duration
	// MaxPause is how long a snapshot may hold up writes; 0: 25 s, less than hosts
	// wait for a command. Curve needs 10 s with its defaults.
	MaxPause time.Duration
	// ClientConf is read in place of DefaultClientConf.
	ClientConf string
	// Dial connects to a unix socket or, by TCP, to the snapshot and clone service;
	// nil: a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// OnStatus, if set, is told when the volume goes out of service (why is not
	// nil) and comes back. It must not block or call the store.
	OnStatus func(why error)
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	set(&c.Heartbeat, 5*time.Second)
	set(&c.HeartbeatTimeout, 15*time.Second)
	set(&c.Settle, time.Second)
	set(&c.Backoff, 20*time.Millisecond)
	set(&c.Drain, 5*time.Minute)
	set(&c.CloseTimeout, 5*time.Second)
	set(&c.Poll, 100*time.Millisecond)
	set(&c.MaxPause, 25*time.Second)
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	return c
}

// ErrUnanswered: nebd-server did not answer a request in time. By default it
// answers none whose I/O failed, and libcurve tries for a day; see docs/curve.md.
var ErrUnanswered error = stalled("nebd-server left a request unanswered")

// ErrSuspended: a write was left unanswered and may still be carried out; until
// that is known to be over the volume takes no requests.
var ErrSuspended error = stalled("the volume is suspended, a write to it is still unanswered (if it does not recover, restart nebd-server)")

// stalled is an error that says so in package backing's words too.
type stalled string

func (e stalled) Error() string { return string(e) }

// Is tells what the error is of.
func (e stalled) Is(target error) bool { return target == backing.ErrStalled }

// session is a connection to nebd-server on which the volume is open.
type session struct {
	conn *brpc.Conn
	fd   atomic.Int32
}

// client keeps a session. While there is none, keep makes one.
type client struct {
	cfg    Config
	loc    *Location
	name   string
	answer time.Duration // how long nebd-server may take for an answer
	limit  atomic.Int64  // of a request over all its attempts, nanoseconds
	vitals vitals.Monitor
	alone  bool // nobody else has the volume open at this nebd-server

	ctx    context.Context
	cancel context.CancelCauseFunc
	done   sync.WaitGroup

	cur     atomic.Pointer[session]
	closing atomic.Bool

	mu        sync.Mutex
	changed   chan struct{} // closed and replaced when a session begins
	why       error         // there is no session
	suspended bool

	reopening sync.Mutex
	// What the volume was when it was opened; guarded by keep.
	first volumeInfo
}

type volumeInfo struct{ size, block int64 }

func newClient(cfg Config, l *Location, alone bool, stall time.Duration) *client {
	c := &client{cfg: cfg, loc: l, name: l.Name(), alone: alone, changed: make(chan struct{})}
	c.setStall(stall)
	c.answer = min(c.timeout(), cmp.Or(l.Timeout, DefaultTimeout))
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	return c
}

// setStall is how long requests wait for nebd-server, unless the location says it.
func (c *client) setStall(stall time.Duration) {
	c.limit.Store(int64(vitals.Limit(c.loc.Timeout, stall, DefaultTimeout)))
}

func (c *client) timeout() time.Duration { return time.Duration(c.limit.Load()) }

func (c *client) isClosed() bool { return c.closing.Load() }

// open connects for the first time. That nebd-server is not there is an error at
// once; if it goes away meanwhile it is waited for.
func (c *client) open(ctx context.Context) (volumeInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, c.answer)
	defer cancel()
	var (
		s     *session
		info  volumeInfo
		err   error
		pause = c.cfg.Backoff
	)
	for was := false; ; {
		if s, info, err = c.connect(ctx, c.alone, c.answer); err == nil {
			break
		}
		was = was || errors.Is(err, brpc.ErrLost)
		no := refusal{}
		again := was
		if errors.As(err, &no) {
			again = no.temporary()
		}
		if !again || ctx.Err() != nil {
			return volumeInfo{}, err
		}
		c.pause(ctx, pause)
		pause = min(2*pause, 32*c.cfg.Backoff)
	}
	c.first = info
	c.begin(s)
	c.done.Go(func() { c.keep(s) })
	return info, nil
}

func (c *client) begin(s *session) {
	c.mu.Lock()
	c.cur.Store(s)
	was := c.why
	c.why, c.suspended = nil, false
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
	c.vitals.Set(backing.Healthy, "")
	if was != nil && c.cfg.OnStatus != nil {
		c.cfg.OnStatus(nil)
	}
}

// keep sends heartbeats, and makes a new session when one has ended.
func (c *client) keep(s *session) {
	for {
		c.beat(s)
		s.conn.Close()
		if c.isClosed() {
			return
		}
		why := s.conn.Err()
		c.cur.Store(nil)
		lost := time.Now()
		dirty := s.conn.Dirty()
		c.out(why)
		pause := c.cfg.Backoff
		for {
			var err error
			s, err = c.again(dirty, lost)
			if err == nil {
				break
			}
			if c.isClosed() {
				return
			}
			c.out(err)
			c.sleep(pause)
			pause = min(2*pause, 32*c.cfg.Backoff)
		}
		c.begin(s)
	}
}

// again makes a session after one was lost. dirty says that writes were; then
// they are over when it returns.
func (c *client) again(dirty bool, lost time.Time) (*session, error) {
	s, info, err := c.connect(c.ctx, dirty, c.cfg.Drain)
	if err != nil {
		return nil, err
	}
	if info.block != c.first.block || info.size < c.first.size {
		s.conn.Close()
		return nil, fmt.Errorf("it is another volume now: %d bytes in blocks of %d, it had %d in blocks of %d",
			info.size, info.block, c.first.size, c.first.block)
	}
	if dirty {
		c.sleep(time.Until(lost.Add(c.cfg.Settle)))
	}
	return s, nil
}

func (c *client) sleep(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.ctx.Done():
	}
}

// beat sends heartbeats until the connection fails or the client is closed.
func (c *client) beat(s *session) {
	t := time.NewTicker(c.cfg.Heartbeat)
	defer t.Stop()
	x := brpc.Call{Service: nebd.Heartbeat, Method: nebd.KeepAlive}
	for {
		select {
		case <-t.C:
		case <-s.conn.Failed():
			return
		case <-c.ctx.Done():
			return
		}
		x.Msg = nebd.AppendKeepAlive(x.Msg[:0], pid(), version, []nebd.File{{FD: s.fd.Load(), Name: c.name}})
		x.Deadline = time.Now().Add(c.cfg.HeartbeatTimeout)
		s.conn.Do(&x)
		if x.Err != nil {
			s.conn.Fail(fmt.Errorf("no answer to a heartbeat for %v", c.cfg.HeartbeatTimeout))
			return
		}
	}
}

// out says why there is no session.
func (c *client) out(why error) {
	c.mu.Lock()
	c.why = why
	if c.suspended {
		why = fmt.Errorf("%w: %w", ErrSuspended, why)
	}
	c.mu.Unlock()
	if !c.isClosed() {
		c.vitals.Set(backing.Stalled, why.Error())
	}
	if c.cfg.OnStatus != nil {
		c.cfg.OnStatus(why)
	}
}

// suspend makes calls fail at once until the next session begins. The connection
// that is given up has failed already.
func (c *client) suspend(s *session) {
	c.mu.Lock()
	is := c.cur.CompareAndSwap(s, nil) || c.cur.Load() == nil
	if is {
		c.suspended = true
		if c.why == nil {
			c.why = ErrUnanswered
		}
	}
	c.mu.Unlock()
	if is {
		c.vitals.Set(backing.Stalled, ErrSuspended.Error())
	}
}

func (c *client) status() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.suspended {
		return fmt.Errorf("%w: %w", ErrSuspended, c.why)
	}
	return c.why
}

// connect makes a session. drain says that requests which were lost may be under
// way still: the volume is closed, which waits for them, and opened again.
func (c *client) connect(ctx context.Context, drain bool, patience time.Duration) (*session, volumeInfo, error) {
	dctx, cancel := context.WithTimeout(ctx, min(c.answer, 5*time.Second))
	nc, err := c.cfg.Dial(dctx, "unix", c.loc.Socket)
	cancel()
	if err != nil {
		return nil, volumeInfo{}, fmt.Errorf("nebd-server: %w", err)
	}
	s := &session{conn: brpc.NewConn(nc, c.tick())}
	stop := context.AfterFunc(ctx, func() { s.conn.Fail(context.Cause(ctx)) })
	info, err := c.attach(s, drain, patience)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		s.conn.Close()
		if ctx.Err() != nil {
			err = errors.Join(context.Cause(ctx), err)
		}
		return nil, volumeInfo{}, err
	}
	return s, info, nil
}

// tick is how finely deadlines are kept.
func (c *client) tick() time.Duration {
	return max(min(c.answer, c.cfg.HeartbeatTimeout, c.cfg.CloseTimeout)/8, time.Millisecond)
}

func (c *client) attach(s *session, drain bool, patience time.Duration) (volumeInfo, error) {
	fd, err := c.openFile(s)
	if err != nil {
		return volumeInfo{}, err
	}
	s.fd.Store(fd)
	if drain {
		x := brpc.Call{Service: nebd.Service, Method: nebd.CloseFile, Msg: nebd.AppendFD(nil, fd), Deadline: time.Now().Add(patience)}
		// Any answer of nebd-server's own is enough: what was under way is over,
		// or the file was not open.
		no := refusal{}
		if _, err := ask(s, &x); err != nil && !(errors.As(err, &no) && no.code == 0) {
			return volumeInfo{}, fmt.Errorf("waiting for requests that were lost: %w", err)
		}
		if fd, err = c.openFile(s); err != nil {
			return volumeInfo{}, err
		}
		s.fd.Store(fd)
	}
	x := brpc.Call{Service: nebd.Service, Method: nebd.GetInfo, Msg: nebd.AppendFD(nil, fd), Deadline: time.Now().Add(c.answer)}
	r, err := ask(s, &x)
	if err != nil {
		return volumeInfo{}, err
	}
	return infoOf(&r)
}

func (c *client) openFile(s *session) (int32, error) {
	x := brpc.Call{Service: nebd.Service, Method: nebd.OpenFile, Msg: nebd.AppendOpen(nil, c.name), Deadline: time.Now().Add(c.answer)}
	r, err := ask(s, &x)
	if err == nil && r.FD <= 0 {
		err = fmt.Errorf("nebd-server gave descriptor %d", r.FD)
	}
	return r.FD, err
}

func infoOf(r *nebd.Response) (volumeInfo, error) {
	i := volumeInfo{size: int64(r.Info.Size), block: int64(r.Info.BlockSize)}
	if i.block == 0 {
		i.block = nebd.DefaultBlockSize
	}
	if i.block < 512 || i.block > 1<<20 || i.block&(i.block-1) != 0 || i.size <= 0 || i.size%i.block != 0 {
		return volumeInfo{}, fmt.Errorf("a volume of %d bytes in blocks of %d makes no sense", i.size, i.block)
	}
	return i, nil
}

// close closes the volume, if it is ours alone, and ends everything. New calls
// fail from its beginning.
func (c *client) close() {
	c.closing.Store(true)
	if s := c.cur.Load(); s != nil && c.alone {
		x := brpc.Call{Service: nebd.Service, Method: nebd.CloseFile, Msg: nebd.AppendFD(nil, s.fd.Load()), Deadline: time.Now().Add(c.cfg.CloseTimeout)}
		s.conn.Do(&x)
	}
	c.cancel(backing.ErrClosed)
	if s := c.cur.Load(); s != nil {
		s.conn.Fail(backing.ErrClosed)
	}
	c.done.Wait()
}
