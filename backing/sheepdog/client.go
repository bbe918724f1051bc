package sheepdog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"blockgate/backing"
	"blockgate/backing/internal/vitals"
	"blockgate/backing/sheepdog/internal/wire"
)

// Config is how a store talks to its sheep. The zero Config has the defaults.
type Config struct {
	// Conns is the number of connections to the gateway; 0: 2. More than one
	// keeps a large payload from holding up the small ones behind it.
	Conns int
	// AnswerTimeout is how long a sheep may take for an answer before its
	// connection is given up; 0: 15 s. It is longer than the cluster needs to do
	// without a lost node.
	AnswerTimeout time.Duration
	// Settle is how long what was sent on a lost connection may still be carried
	// out; a write that had to be sent again is not acknowledged before. 0: 1 s.
	Settle time.Duration
	// Backoff is the first pause between attempts; it grows 32-fold. 0: 10 ms.
	Backoff time.Duration
	// Poll is how often an owner looks whether another gateway wants the VDI, and
	// a waiting gateway whether it has it; 0: 500 ms. Shared VDIs only.
	Poll time.Duration
	// Hold is how long an owner keeps a shared VDI at least that it has used; 0: 5 s.
	Hold time.Duration
	// Dial connects to a gateway; nil: a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	if c.Conns == 0 {
		c.Conns = 2
	}
	set(&c.AnswerTimeout, 15*time.Second)
	set(&c.Settle, time.Second)
	set(&c.Backoff, 10*time.Millisecond)
	set(&c.Poll, 500*time.Millisecond)
	set(&c.Hold, 5*time.Second)
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	return c
}

// client is the pool of connections to one of several gateways.
type client struct {
	cfg      Config
	gateways []Gateway
	limit    atomic.Int64 // of a request over all its attempts, nanoseconds
	vitals   vitals.Monitor

	// probe asks the cluster for something; it is what a lost sheep is waited for
	// with if nobody else does.
	probe  func(ctx context.Context) error
	probes struct {
		sync.Mutex
		sync.WaitGroup
		running, over bool
	}

	// attach runs on a new connection before anything else is sent on it: if it is
	// to another gateway than before, or one was lost, as then nobody knows what
	// has become of the sheep. Those that seem to live then may be as dead.
	attach func(ctx context.Context, c *conn) error
	// owns reports whether the VDI is ours as far as attach has found out; nil: it
	// always is.
	owns func() bool

	links   atomic.Uint32 // how often attach was called
	losses  atomic.Uint32 // connections that have ended by themselves
	assured atomic.Uint32 // how many of them the last attach knew of

	conns []atomic.Pointer[conn]
	turn  atomic.Uint32

	dialing  chan struct{} // one element: who dials
	gateway  int           // guarded by dialing, as are these
	attached int           // the gateway that attach has run for; -1: none

	closed chan struct{}
	once   sync.Once
}

func newClient(cfg Config, gateways []Gateway, timeout time.Duration) *client {
	c := &client{
		cfg: cfg, gateways: gateways, conns: make([]atomic.Pointer[conn], cfg.Conns),
		dialing: make(chan struct{}, 1), attached: -1, closed: make(chan struct{}),
	}
	c.limit.Store(int64(timeout))
	return c
}

// timeout is how long a request is tried, over all its attempts.
func (c *client) timeout() time.Duration { return time.Duration(c.limit.Load()) }

// close ends all connections; requests fail with backing.ErrClosed.
func (c *client) close() {
	c.once.Do(func() { close(c.closed) })
	c.dialing <- struct{}{}
	for i := range c.conns {
		if k := c.conns[i].Swap(nil); k != nil {
			k.close()
		}
	}
	<-c.dialing
	c.probes.Lock()
	c.probes.over = true
	c.probes.Unlock()
	c.probes.Wait()
}

// interrupt ends what is under way, and keeps the client's order for close.
func (c *client) interrupt() {
	for i := range c.conns {
		if k := c.conns[i].Load(); k != nil {
			k.fail(net.ErrClosed)
		}
	}
}

func (c *client) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// conn is a connection that was alive a moment ago.
func (c *client) conn(ctx context.Context) (*conn, error) {
	i := int(c.turn.Add(1)) % len(c.conns)
	if k := c.conns[i].Load(); k != nil && k.alive() {
		return k, nil
	}
	select {
	case c.dialing <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-c.closed:
		return nil, backing.ErrClosed
	}
	defer func() { <-c.dialing }()
	if c.isClosed() {
		return nil, backing.ErrClosed
	}
	if k := c.conns[i].Load(); k != nil {
		if k.alive() {
			return k, nil
		}
		k.close()
		c.conns[i].Store(nil)
	}
	k, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	c.conns[i].Store(k)
	return k, nil
}

// errFinal wraps what trying again does not mend.
type errFinal struct{ error }

func (e errFinal) Unwrap() error { return e.error }

// dial connects to the gateway, or to the next one that answers. dialing is held.
func (c *client) dial(ctx context.Context) (*conn, error) {
	var last error
	for range c.gateways {
		g := c.gateways[c.gateway]
		dctx, cancel := context.WithTimeout(ctx, min(c.cfg.AnswerTimeout, 5*time.Second))
		nc, err := c.cfg.Dial(dctx, g.Network, g.Address)
		cancel()
		if err == nil {
			k := newConn(nc, c.gateway, c.cfg.AnswerTimeout, c.lost)
			same := c.attached == c.gateway
			losses := c.losses.Load()
			if same && (c.attach == nil || c.assured.Load() == losses && c.connected()) {
				c.assured.Store(losses)
				return k, nil
			}
			// The others of the pool are on the gateway before: end them, so that
			// all go through one sheep, which is the one that has the lock.
			if !same {
				c.hangUp(k)
			}
			c.links.Add(1) // before attach looks whether the VDI is ours; see owner.taken
			if c.attach != nil {
				err = c.attach(ctx, k)
			}
			if err == nil {
				c.attached = c.gateway
				c.assured.Store(losses)
				return k, nil
			}
			k.close()
			if final := (errFinal{}); errors.As(err, &final) {
				c.hangUp(nil)
				return nil, err
			}
		}
		last = fmt.Errorf("gateway %s: %w", g, err)
		if ctx.Err() != nil {
			break
		}
		c.gateway = (c.gateway + 1) % len(c.gateways)
	}
	return nil, last
}

// doubt reports whether a connection was lost and attach has not run since.
func (c *client) doubt() bool { return c.assured.Load() != c.losses.Load() }

func (c *client) connected() bool {
	for i := range c.conns {
		if k := c.conns[i].Load(); k != nil && k.alive() {
			return true
		}
	}
	return false
}

// hangUp ends every connection but one. dialing is held.
func (c *client) hangUp(but *conn) {
	for i := range c.conns {
		if k := c.conns[i].Load(); k != nil && k != but {
			k.close()
			c.conns[i].Store(nil)
		}
	}
}

// leaveGateway gives up the gateway of a connection, which said that it is of no
// more use, for the next one.
func (c *client) leaveGateway(ctx context.Context, k *conn) {
	select {
	case c.dialing <- struct{}{}:
	case <-ctx.Done():
		return
	}
	if c.gateway == k.gateway && len(c.gateways) > 1 {
		c.gateway = (c.gateway + 1) % len(c.gateways)
		c.hangUp(nil)
	}
	<-c.dialing
}

// effort says how a request is tried.
type effort struct {
	patient bool // the answer may take minutes
	missing bool // that there is no such object is an answer; see missingTime
	owned   bool // sent only while the VDI is ours: it reads or changes data, or the index
	once    bool // never sent twice: a lost connection is errLost, a temporary result an error
}

// missingTime is how long a request is tried again though the sheep say that its
// object does not exist: they do so of objects that exist while a node that came
// back is filled again.
const missingTime = 15 * time.Second

// passing reports whether a result is one of a cluster that is not itself.
func passing(r wire.Result, e effort) bool {
	return r.Temporary() || r == wire.NoObject && !e.missing
}

// do sends a request until it is answered for good. out is the payload to send,
// in takes the one of the answer; n says how much came.
//
// A request that changes something and whose connection was lost is sent again,
// so it must do no harm twice; see Config.Settle for what else is done about it.
// Nothing of out or in is touched after do has returned.
func (c *client) do(ctx context.Context, req *wire.Request, out, in []byte, e effort) (resp wire.Response, n int, err error) {
	x := calls.Get().(*call)
	x.req, x.out, x.in, x.patience = *req, out, in, ticks
	if e.patient {
		x.patience = 40 * ticks
	}
	err = c.attempt(ctx, x, e)
	if err != nil || passing(x.resp.Result, e) {
		err = c.insist(ctx, x, err, e)
	}
	if err == nil && c.vitals.Ill() && !x.resp.Result.Temporary() {
		c.vitals.Set(backing.Healthy, "")
	}
	resp, n = x.resp, x.n
	x.out, x.in, x.err = nil, nil, nil
	calls.Put(x)
	if err == nil && resp.Result != wire.Success {
		err = resp.Result
	}
	return resp, n, err
}

// unsent wraps the reason why a request was not sent.
type unsent struct{ error }

func (e unsent) Unwrap() error { return e.error }

func (c *client) attempt(ctx context.Context, x *call, e effort) error {
	if err := ctx.Err(); err != nil {
		return unsent{context.Cause(ctx)}
	}
	k, err := c.conn(ctx)
	if err != nil {
		return unsent{err}
	}
	// With the connection at hand: should the VDI be lost while this was waited for,
	// or tried again, the connection is one that attach has seen.
	if e.owned && c.owns != nil && !c.owns() {
		return unsent{errFinal{errNotOwner}}
	}
	if err := k.do(x); err != nil {
		return err
	}
	if r := x.resp.Result; r == wire.Killed || r == wire.Shutdown {
		c.leaveGateway(ctx, k)
	}
	return nil
}

// insist is do after the first attempt did not succeed.
func (c *client) insist(ctx context.Context, x *call, err error, e effort) error {
	changes := x.req.Flags&wire.FlagWrite != 0 || x.req.Op == wire.OpDiscard || x.req.Op == wire.OpReleaseVDI
	begin := time.Now()
	var lost time.Time
	pause := c.cfg.Backoff
	for {
		if err != nil {
			if _, no := errors.AsType[unsent](err); !no {
				lost = time.Now()
			}
		}
		if e.once && (err == nil || !lost.IsZero()) {
			if err != nil {
				c.settle(lost)
			}
			return err
		}
		switch final := (errFinal{}); {
		case err == nil && (!passing(x.resp.Result, e) || x.resp.Result == wire.NoObject && time.Since(begin) >= missingTime):
			if changes && !lost.IsZero() {
				c.settle(lost)
			}
			return nil
		case c.isClosed():
			err = backing.ErrClosed
		case ctx.Err() != nil:
			err = context.Cause(ctx)
		case errors.As(err, &final):
			err = final.error
		case time.Since(begin) >= c.timeout():
			if err == nil {
				err = x.resp.Result
			}
			err = fmt.Errorf("sheepdog: %w: no success within %v: %w", backing.ErrStalled, time.Since(begin).Round(time.Millisecond), err)
		default:
			t := time.NewTimer(pause)
			select {
			case <-t.C:
			case <-ctx.Done():
			case <-c.closed:
			}
			t.Stop()
			pause = min(2*pause, 32*c.cfg.Backoff)
			err = c.attempt(ctx, x, e)
			c.stalled(ctx, x, err, e)
			continue
		}
		if changes && !lost.IsZero() {
			c.settle(lost)
		}
		return err
	}
}

// stalled notes that an attempt which was not the first one has failed.
func (c *client) stalled(ctx context.Context, x *call, err error, e effort) {
	if err == nil && passing(x.resp.Result, e) && x.resp.Result != wire.NoObject {
		err = x.resp.Result
	}
	if err == nil || ctx.Err() != nil || c.isClosed() || errors.As(err, new(errFinal)) {
		return
	}
	c.vitals.Set(backing.Stalled, err.Error())
}

// watch has lost connections made anew also while nobody asks for anything.
func (c *client) watch(probe func(ctx context.Context) error) {
	c.probes.Lock()
	defer c.probes.Unlock()
	c.probe = probe
}

// lost is told that a connection has ended by itself, before anybody else can see
// it: who makes the next one has to know. Should nobody ask for anything, the sheep
// is waited for all the same, so that Health is true.
func (c *client) lost() {
	c.losses.Add(1)
	c.probes.Lock()
	defer c.probes.Unlock()
	if c.probe == nil || c.probes.over || c.probes.running {
		return
	}
	c.probes.running = true
	c.probes.Go(func() {
		for errors.Is(c.probe(context.Background()), backing.ErrStalled) {
			// Once more; it has waited.
		}
		c.probes.Lock()
		c.probes.running = false
		c.probes.Unlock()
	})
}

// settle waits until what was sent before lost has been carried out or never will
// be. It does not end early: its caller has the range to itself until then.
func (c *client) settle(lost time.Time) {
	if d := time.Until(lost.Add(c.cfg.Settle)); d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.closed:
		}
	}
}
