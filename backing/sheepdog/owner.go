package sheepdog

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"blockgate/backing"
	"blockgate/backing/sheepdog/internal/wire"
)

// errNotOwner is of a gateway that found another one to be the VDI's owner.
var errNotOwner = fmt.Errorf("sheepdog: another gateway owns the VDI: %w", backing.ErrBusy)

// owner is the store's hold on its VDI: one gateway at a time reads and writes it.
// See docs/adr/0009-sheepdog-one-active-owner.md.
//
// The cluster's lock says through which sheep the owner works, and a mark in the
// inode which of the gateways it is. A gateway that waits leaves a request beside
// the mark. The zero owner owns without a lock.
type owner struct {
	s      *Store
	locked bool // the cluster keeps locks and we are to have this one
	holds  atomic.Bool
	used   atomic.Bool            // since it was taken; see Config.Hold
	who    atomic.Pointer[string] // has the VDI in our place, as far as is known
	token  [16]byte
	guard  net.Listener // see guardOf

	turn  chan struct{} // one element: who takes over or lets go
	since time.Time     // guarded by turn
	asked asked         // guarded by turn
	locks bool          // guarded by turn: the cluster has been seen to keep locks

	closing atomic.Bool
	stop    context.CancelFunc
	poller  sync.WaitGroup
}

// asked is since when an owner has been asked to let go.
type asked struct {
	since time.Time
	sheep wire.NodeID
	mark  [16]byte // the owner's
	asker [16]byte // who has asked, perhaps another one that waits
}

// init takes the lock if the VDI is to be had alone.
func (o *owner) init(ctx context.Context, s *Store, opt backing.OpenOptions) error {
	o.s = s
	if !opt.Exclusive || s.readOnly || s.loc.NoLock {
		if s.loc.Shared && !s.readOnly {
			return errors.New("a shared VDI has to be opened exclusively, and with its lock")
		}
		return nil
	}
	o.turn = make(chan struct{}, 1)
	o.turn <- struct{}{}
	defer func() { <-o.turn }()
	if _, err := rand.Read(o.token[:]); err != nil {
		return err
	}
	o.locked = true
	o.guard = guardOf(o.token)
	err := o.take(ctx, false)
	if errors.Is(err, errNoLocks) {
		o.locked = false
		if s.loc.Shared {
			return fmt.Errorf("the cluster keeps no locks (dog cluster format -l): %w", backing.ErrNotSupported)
		}
		err = nil
	}
	if err != nil && !(s.loc.Shared && errors.Is(err, backing.ErrBusy)) {
		o.unguard()
		return err
	}
	s.cl.attach, s.cl.owns = o.attach, o.is
	if s.loc.Shared {
		pctx, stop := context.WithCancel(context.Background())
		o.stop = stop
		o.poller.Go(func() { o.poll(pctx) })
	}
	return nil
}

// is reports whether the VDI is ours, as far as we know.
func (o *owner) is() bool { return !o.locked || o.holds.Load() }

// lose notes that another gateway has the VDI. For one that was to have it alone
// this is the end, unless the other lets go.
func (o *owner) lose() {
	o.holds.Store(false)
	o.saw("another gateway")
	if !o.s.loc.Shared {
		o.s.cl.vitals.Set(backing.Failed, errNotOwner.Error())
	}
}

func (o *owner) saw(who string) { o.who.Store(&who) }

// lockedBy says who has the VDI's lock, as far as is known.
func (o *owner) lockedBy() string {
	switch who := o.who.Load(); {
	case !o.locked:
		return ""
	case o.holds.Load():
		return "this gateway"
	case who != nil:
		return *who
	}
	return ""
}

// enter returns once the VDI is ours.
func (o *owner) enter(ctx context.Context) error {
	if o.is() {
		if !o.used.Load() {
			o.used.Store(true)
		}
		return nil
	}
	select {
	case o.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-o.s.cl.closed:
		return backing.ErrClosed
	}
	defer func() { <-o.turn }()
	o.used.Store(true)
	if o.is() {
		return nil
	}
	return o.take(ctx, o.s.loc.Shared)
}

var errNoLocks = errors.New("the cluster keeps no locks")

// take becomes the owner. insist asks another gateway to let go, waits for it, and
// fences it if that was asked for. turn is held.
func (o *owner) take(ctx context.Context, insist bool) error {
	s, c := o.s, o.s.cl
	begin := time.Now()
	for broken := false; ; {
		// With a connection at hand none has to be made by lockOnce; should there be
		// none, it says so too.
		_, _ = c.conn(ctx)
		links := c.links.Load()
		vid, err := o.lockOnce(ctx)
		var h holder
		if err == nil {
			locked := vid
			if vid, h, err = o.unaware(ctx, locked); err != nil || vid != 0 {
				err = errors.Join(err, release(c.via(context.WithoutCancel(ctx)), locked))
			} else {
				err = o.taken(ctx, locked, links, broken)
				if !errors.Is(err, errRaced) || time.Since(begin) > o.patience() {
					return err
				}
				if err := o.wait(ctx, c.cfg.Backoff); err != nil {
					return err
				}
				continue
			}
		} else if errors.Is(err, wire.VDILocked) {
			if vid, err = c.lookup(ctx, s.loc.Name, "", 0); err == nil {
				h, err = o.holder(ctx, vid)
			}
		}
		if err != nil {
			return err
		}
		switch {
		case h.gone:
			// Its sheep is no member any more, so nothing of it is carried out; or
			// its process has ended. At once, as others may see the same: the longer
			// ago we looked, the sooner it is the lock of one of them.
			if err := release(c.via(ctx), vid); err != nil {
				return err
			}
			broken = true
			continue
		case h.free && time.Since(begin) < o.patience():
			// Let go between our two looks.
			if err := o.wait(ctx, c.cfg.Backoff); err != nil {
				return err
			}
			continue
		}
		broken = false
		o.saw("sheep " + h.sheep.String())
		if !insist || time.Since(begin) > o.patience() {
			return fmt.Errorf("%w: its sheep is %s", errNotOwner, h.sheep)
		}
		// An owner takes requests away when it becomes it. One that lies there as it did
		// at our last look, be it that of an earlier call, has been there all the time.
		if h.asker == ([16]byte{}) {
			if err := c.writeInode(ctx, vid, record(o.token, hostID()), offRequest); err != nil {
				return err
			}
			h.asker = o.token
			o.asked = asked{}
		}
		if o.asked.mark != h.mark || o.asked.sheep != h.sheep || o.asked.asker != h.asker {
			o.asked = asked{time.Now(), h.sheep, h.mark, h.asker}
		}
		if s.loc.Fence && time.Since(o.asked.since) > c.cfg.Hold+4*c.cfg.Poll+c.cfg.AnswerTimeout {
			// An owner that lives would have let go by now, even if what it has
			// under way took as long as it may.
			if err := c.kill(ctx, h.sheep); err != nil && time.Since(begin) > o.patience() {
				return fmt.Errorf("%w: sheep %s cannot be stopped: %w", errNotOwner, h.sheep, err)
			}
		}
		if err := o.wait(ctx, c.cfg.Poll); err != nil {
			return err
		}
	}
}

// patience is how long another gateway is waited for that has the VDI. It is never
// for ever: one that lives lets go in seconds, and a host that has other paths has
// to be told.
func (o *owner) patience() time.Duration {
	return min(o.s.cl.timeout(), max(o.s.loc.Timeout, DefaultTimeout))
}

// unaware finds an owner that has not noticed yet that somebody else took a
// snapshot: it has the lock of what was the working VDI, its id is returned, and
// reads from it until it learns better. 0: there is none.
func (o *owner) unaware(ctx context.Context, vid uint32) (uint32, holder, error) {
	n, err := o.s.cl.header(ctx, vid)
	if err != nil || n.Parent == 0 {
		return 0, holder{}, err
	}
	p, err := o.s.cl.header(ctx, n.Parent)
	if err != nil || p.Name != n.Name {
		return 0, holder{}, err
	}
	h, err := o.holder(ctx, p.VID)
	if err != nil || h.free {
		return 0, h, err
	}
	return p.VID, h, nil
}

// wait pauses, unless ctx or the store ends.
func (o *owner) wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-o.s.cl.closed:
		return backing.ErrClosed
	}
}

// lockOnce is lock for one who does not have the lock: should the answer to a
// request be lost, the lock may be ours all the same.
func (o *owner) lockOnce(ctx context.Context) (vid uint32, err error) {
	c := o.s.cl
	lost := false
	pause := c.cfg.Backoff
	for begin := time.Now(); ; {
		vid, err = o.lock(func(req *wire.Request, out, in []byte) (wire.Response, int, error) {
			return c.do(ctx, req, out, in, effort{once: true})
		})
		r, _ := errors.AsType[wire.Result](err)
		wasLost := errors.Is(err, errLost)
		lost = lost || wasLost
		if !wasLost && !r.Temporary() || time.Since(begin) > c.timeout() {
			break
		}
		if err := o.wait(ctx, pause); err != nil {
			return 0, err
		}
		pause = min(2*pause, 32*c.cfg.Backoff)
	}
	if !lost || !errors.Is(err, wire.VDILocked) {
		return vid, err
	}
	// Another gateway that has it puts its mark there at once.
	c.settle(time.Now())
	vid, err2 := c.lookup(ctx, o.s.loc.Name, "", 0)
	if err2 != nil {
		return 0, err2
	}
	if m, err2 := readMark(c.via(ctx), vid); err2 != nil || m.valid && m.token != o.token {
		return 0, errors.Join(err, err2)
	}
	return vid, nil
}

// lock asks for the lock of the working VDI.
func (o *owner) lock(do via) (uint32, error) {
	req := wire.Request{Op: wire.OpLockVDI, Flags: wire.FlagWrite, LockType: wire.LockNormal}
	resp, _, err := do(&req, wire.PutNames(o.s.loc.Name, ""), nil)
	return resp.VID, err
}

// errRaced is of a gateway that had the lock and may not have it any more.
var errRaced = fmt.Errorf("sheepdog: the lock was taken away again: %w", errNotOwner)

// taken makes the locked VDI ours: the mark first, and then the index anew, which
// the owner before us may have changed. links is of before the lock was taken;
// broken says that we have released that of an owner who is gone.
//
// An owner that did not let go in order has left its mark. What it had under way has
// to settle then; and others may have seen that it is gone, and release the lock that
// is ours by now, as the cluster asks nobody. Who has written the mark last owns the
// VDI: the others find that out while it waits.
func (o *owner) taken(ctx context.Context, vid, links uint32, broken bool) error {
	s, c := o.s, o.s.cl
	st, found, err := vdiState(c.via(ctx), vid)
	if err != nil {
		return err
	}
	switch {
	case found && st.LockState == wire.Locked:
		o.locks = true
	case o.locks:
		return errRaced
	default:
		return errNoLocks
	}
	before, err := readMark(c.via(ctx), vid)
	if err != nil {
		return errors.Join(err, release(c.via(context.WithoutCancel(ctx)), vid))
	}
	mark := append(record(o.token, hostID()), make([]byte, recordSize)...)
	if err = c.writeInode(ctx, vid, mark, offMark); err == nil && (broken || before.valid) {
		c.settle(time.Now())
		if err := o.again(ctx, vid); err != nil {
			return err
		}
	}
	if err == nil {
		var v *volume
		if v, err = c.load(ctx, vid); err == nil {
			if err = s.gate.lock(ctx); err == nil {
				s.vol.Store(v)
				s.resized(int64(v.Size))
				o.holds.Store(true)
				o.since = time.Now()
				// attach has moved the lock to the sheep that we work through by now,
				// if it has seen that we own the VDI.
				raced := c.links.Load() != links
				if raced {
					o.holds.Store(false)
				}
				s.gate.unlock()
				if raced {
					return errRaced
				}
				if s.cl.vitals.Health().State == backing.Failed {
					s.cl.vitals.Recover()
				}
				return nil
			}
		}
	}
	return errors.Join(err, release(c.via(context.WithoutCancel(ctx)), vid))
}

// again takes the lock once more, which is another's if that one was as quick, when
// the mark says that the VDI is ours. The lock names a sheep, and we do not know
// the name of the one we work through.
func (o *owner) again(ctx context.Context, vid uint32) error {
	do := o.s.cl.via(ctx)
	marked := func() error {
		if m, err := readMark(do, vid); err != nil || m.token == o.token {
			return err
		}
		return errRaced
	}
	if err := marked(); err != nil {
		return err
	}
	if err := release(do, vid); err != nil {
		return err
	}
	got, err := o.lockOnce(ctx)
	switch {
	case errors.Is(err, wire.VDILocked):
		return errRaced
	case err != nil:
		return err
	case got != vid:
		return errors.Join(errRaced, release(do, got))
	}
	return marked()
}

// moved follows the VDI to the id it has after a snapshot. The gate is held alone.
func (o *owner) moved(ctx context.Context, from, to uint32) error {
	if !o.locked {
		return nil
	}
	do := o.s.cl.via(ctx)
	vid, err := o.lockOnce(ctx)
	switch {
	case errors.Is(err, wire.VDILocked):
		if m, err2 := readMark(do, to); err2 != nil || m.token != o.token {
			o.lose()
			return errNotOwner
		}
	case err != nil:
		return err
	case vid != to:
		// One more snapshot; we come here again.
		return release(do, vid)
	}
	if err := o.s.cl.writeInode(ctx, to, record(o.token, hostID()), offMark); err != nil {
		return err
	}
	return release(do, from)
}

// attach checks on a new connection that the VDI is still ours, and moves the lock
// to the sheep at its other end: the sheep that is stopped to stop us must be the
// one we work through.
func (o *owner) attach(_ context.Context, k *conn) error {
	if !o.locked || !o.holds.Load() {
		return nil
	}
	vid := o.s.vol.Load().VID
	do := k.via()
	moving := o.s.cl.attached != k.gateway
	check := func() error {
		b := make([]byte, 2*recordSize)
		if _, _, err := do(&wire.Request{Op: wire.OpRead, OID: wire.InodeOID(vid), Offset: offMark}, nil, b); err != nil {
			return err
		}
		mark, _ := parseRecord(b)
		// Our sheep is gone and somebody waits: he stopped it, or may have it.
		asker, asked := parseRecord(b[recordSize:])
		if mark.token != o.token || moving && asked && asker.token != o.token {
			o.lose()
			return errFinal{errNotOwner}
		}
		return nil
	}
	if err := check(); err != nil || !moving {
		return err
	}
	if err := release(do, vid); err != nil {
		return err
	}
	if _, err := o.lock(do); errors.Is(err, wire.VDILocked) {
		o.lose()
		return errFinal{errNotOwner}
	} else if err != nil {
		return err
	}
	if err := check(); err != nil {
		return errors.Join(err, release(do, vid))
	}
	return nil
}

// holder is who has the lock.
type holder struct {
	sheep wire.NodeID
	free  bool // nobody
	gone  bool // somebody who cannot use it any more
	mark  [16]byte
	asker [16]byte // whose request lies beside the mark; zero: nobody's
}

// holder finds out about the owner of a VDI that is locked. turn is held.
func (o *owner) holder(ctx context.Context, vid uint32) (holder, error) {
	do := o.s.cl.via(ctx)
	st, found, err := vdiState(do, vid)
	if err != nil || !found || st.LockState == wire.Unlocked {
		return holder{free: err == nil}, err
	}
	h := holder{sheep: st.Owner}
	if st.LockState != wire.Locked {
		return h, nil
	}
	members, err := nodes(do)
	if err != nil {
		return h, err
	}
	o.locks = true
	if !slices.Contains(members, st.Owner) {
		h.gone = true
		return h, nil
	}
	// The sheep lives. If the gateway was one of this host, its process may not.
	b := make([]byte, 2*recordSize)
	if _, _, err := do(&wire.Request{Op: wire.OpRead, OID: wire.InodeOID(vid), Offset: offMark}, nil, b); err != nil {
		return h, err
	}
	m, _ := parseRecord(b)
	h.mark = m.token
	if request, ok := parseRecord(b[recordSize:]); ok && request.token != m.token {
		h.asker = request.token
	}
	h.gone = m.valid && (m.token == o.token || m.host == hostID() && ended(m.token))
	return h, nil
}
