package outside

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/sheepdog"
	"blockgate/backing/sheepdog/sheepfake"
	"blockgate/internal/state"
	"blockgate/iscsi/initiator"
)

// paths is a host that reaches one unit by several gateways, and uses one of them
// until it fails or is told to use another: dm-multipath's failover.
type paths struct {
	cfgs    []initiator.Config
	mu      sync.Mutex
	use     int
	logins  [2]*initiator.Session
	disks   [2]*initiator.Disk
	limit   time.Duration // of a command; Linux has 30 s
	fails   atomic.Int64
	changes atomic.Int64
}

// disk is the path in use; it logs in if need be.
func (p *paths) disk(ctx context.Context) (*initiator.Disk, int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := p.disks[p.use]; d != nil {
		return d, p.use, nil
	}
	s, err := initiator.Dial(ctx, p.cfgs[p.use])
	if err != nil {
		p.use = (p.use + 1) % len(p.cfgs)
		return nil, -1, err
	}
	d, err := s.Unit(0).OpenDisk(ctx)
	if err != nil {
		s.Close()
		p.use = (p.use + 1) % len(p.cfgs)
		return nil, -1, err
	}
	p.logins[p.use], p.disks[p.use] = s, d
	return d, p.use, nil
}

// failed gives a path up that a command failed on.
func (p *paths) failed(path int, d *initiator.Disk) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fails.Add(1)
	if p.disks[path] == d {
		p.disks[path] = nil
		p.logins[path].Close()
		p.use = (path + 1) % len(p.cfgs)
	}
}

// turn goes to the next path while the one in use is well.
func (p *paths) turn() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.use = (p.use + 1) % len(p.cfgs)
	p.changes.Add(1)
}

// do repeats a command until it succeeds on some path, as a host does that queues
// if there is none.
func (p *paths) do(ctx context.Context, f func(ctx context.Context, d *initiator.Disk) error) error {
	for {
		d, path, err := p.disk(ctx)
		if err == nil {
			p.mu.Lock()
			limit := p.limit
			p.mu.Unlock()
			cctx, cancel := context.WithTimeout(ctx, limit)
			err = f(cctx, d)
			cancel()
			if err == nil {
				return nil
			}
			p.failed(path, d)
		}
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

const (
	pathBlock  = 4096
	pathBlocks = 4096
	pathStride = 64 << 10 // several blocks lie in an object, and most objects begin as holes
	pathUsers  = 4
)

// book has the version of each block that was acknowledged last. A user has the
// blocks that are his number modulo pathUsers.
type book struct {
	versions [pathBlocks]uint64
	writes   atomic.Int64
}

func mark(b []byte, block int, version uint64) {
	for at := 0; at < len(b); at += 16 {
		binary.BigEndian.PutUint64(b[at:], uint64(block))
		binary.BigEndian.PutUint64(b[at+8:], version)
	}
}

// write writes a block's next version.
func (k *book) write(ctx context.Context, p *paths, block int) error {
	b := make([]byte, pathBlock)
	mark(b, block, k.versions[block]+1)
	err := p.do(ctx, func(ctx context.Context, d *initiator.Disk) error { return d.WriteAt(ctx, b, int64(block)*pathStride) })
	if err == nil {
		k.versions[block]++
	}
	return err
}

// check reads a block, which has to be exactly what was acknowledged.
func (k *book) check(ctx context.Context, p *paths, block int) error {
	got, want := make([]byte, pathBlock), make([]byte, pathBlock)
	if v := k.versions[block]; v > 0 {
		mark(want, block, v)
	}
	err := p.do(ctx, func(ctx context.Context, d *initiator.Disk) error { return d.ReadAt(ctx, got, int64(block)*pathStride) })
	if err == nil && string(got) != string(want) {
		err = fmt.Errorf("block %d says it is block %d in version %d, want version %d", block,
			binary.BigEndian.Uint64(got), binary.BigEndian.Uint64(got[8:]), k.versions[block])
	}
	return err
}

// pair is two daemons that serve one VDI as one unit, each through a sheep of its
// own, and a host under load.
type pair struct {
	*flock
	daemons [2]*gatewayd
	listen  [2]string
	host    *paths
	book    book
	errs    chan error
	stop    chan struct{}
	users   sync.WaitGroup
}

// newPair has the daemons reach the VDI "disk" by stores, and starts the load.
func newPair(ctx context.Context, t *testing.T, f *flock, stores [2]string) *pair {
	t.Helper()
	p := &pair{flock: f, host: &paths{limit: 30 * time.Second}, errs: make(chan error, pathUsers), stop: make(chan struct{})}
	unit := state.UnitParams{NAA: "6000000000000000000000000000a11a", Serial: "one-disk"}
	for i, store := range stores {
		d := newDaemon(t)
		p.daemons[i], p.listen[i] = d, "127.0.0.1:"+freePort(t)
		iqn := fmt.Sprintf("iqn.2025-01.io.blockgate.test:gateway%d", i)
		d.start(t, "--listen", p.listen[i])
		if _, err := d.api.CreateVolume(ctx, state.Volume{Name: "disk", URL: "sheepdog:" + store, Unit: unit}); err != nil {
			t.Fatal(err)
		}
		d.cli(t, "target", "create", iqn, "--volume", "disk", "--allow", "all")
		p.host.cfgs = append(p.host.cfgs, initiator.Config{Addrs: []string{p.listen[i]}, TargetName: iqn, LoginTimeout: 10 * time.Second, AbortTimeout: time.Second})
	}
	for u := range pathUsers {
		rng := rand.New(rand.NewPCG(1, uint64(u)))
		p.users.Go(func() {
			for {
				select {
				case <-p.stop:
					return
				default:
				}
				block := rng.IntN(pathBlocks/pathUsers)*pathUsers + u
				err := p.book.write(ctx, p.host, block)
				if err == nil {
					p.book.writes.Add(1)
					err = p.book.check(ctx, p.host, rng.IntN(pathBlocks/pathUsers)*pathUsers+u)
				}
				if err != nil {
					p.errs <- err
					return
				}
			}
		})
	}
	return p
}

// settle waits until a gateway has the VDI, and then for some load on it.
func (p *pair) settle(t *testing.T, by int) {
	t.Helper()
	eventually(t, 90*time.Second, fmt.Sprintf("gateway %d owns the VDI", by), func() bool {
		owner, held := p.Owner("disk")
		return held && owner == p.sheep[by].ID() || len(p.errs) > 0
	})
	more := p.book.writes.Load() + 500
	eventually(t, time.Minute, "the host writes", func() bool { return p.book.writes.Load() > more || len(p.errs) > 0 })
	select {
	case err := <-p.errs:
		t.Fatal(err)
	default:
	}
}

// finish ends the load and reads everything.
func (p *pair) finish(ctx context.Context, t *testing.T, least int64) {
	t.Helper()
	close(p.stop)
	p.users.Wait()
	select {
	case err := <-p.errs:
		t.Fatal(err)
	default:
	}
	for b := range pathBlocks {
		if err := p.book.check(ctx, p.host, b); err != nil {
			t.Fatal(err)
		}
	}
	n, fails := p.book.writes.Load(), p.host.fails.Load()
	figure(t, "two gateways on one VDI: %d writes verified, %d changes of the path, %d commands repeated", n, p.host.changes.Load(), fails)
	if n < least || fails == 0 {
		t.Errorf("%d writes and %d commands that were repeated are no load", n, fails)
	}
}

// A host writes and reads back over one path, over the other, and over what is left
// when one daemon is killed: nothing acknowledged is lost, and no gateway goes by an
// index that the other has changed.
func TestSheepdogTwoGateways(t *testing.T) {
	f := newFlock(t, 2, sheepfake.Options{Locks: true, Shuffle: true, BlockShift: 20})
	f.vdi(t, "disk", pathBlocks*pathStride)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	p := newPair(ctx, t, f, [2]string{"unix:" + f.sockets[0] + ":disk?shared=yes", "unix:" + f.sockets[1] + ":disk?shared=yes"})
	p.settle(t, 0)
	p.host.turn()
	p.settle(t, 1)
	if v, err := p.daemons[0].api.Volume(ctx, "disk"); err != nil || v.Status.LockedBy == "this gateway" {
		t.Errorf("the first gateway thinks that the VDI is locked by %q, %v", v.Status.LockedBy, err)
	}
	// A snapshot through the owner, under load.
	p.daemons[1].cli(t, "snapshot", "create", "disk", "under-load")
	p.host.turn()
	p.settle(t, 0)
	// Its daemon is killed: the host finds that out by itself.
	p.daemons[0].kill()
	p.settle(t, 1)
	p.daemons[0].start(t, "--listen", p.listen[0])
	// And now the other one, which has it.
	p.daemons[1].kill()
	p.settle(t, 0)
	p.finish(ctx, t, 2500)
}

// The daemon that owns the VDI stops without ending, in the middle of writes, and goes
// on when the other one has fenced it: what it has left must not come any more.
func TestSheepdogFence(t *testing.T) {
	needsAll(t)
	f := newFlock(t, 0, sheepfake.Options{Locks: true, Shuffle: true, BlockShift: 20})
	var stores [2]string
	for i := range stores {
		s, err := f.Start("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, address := s.Addr()
		f.sheep = append(f.sheep, s)
		stores[i] = "tcp:" + address + ":disk?shared=yes&fence=yes"
	}
	v, err := sheepdog.Open(t.Context(), stores[0][:len(stores[0])-len("?shared=yes&fence=yes")], backing.OpenOptions{Create: true, CreateSize: pathBlocks * pathStride})
	if err != nil {
		t.Fatal(err)
	}
	v.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	p := newPair(ctx, t, f, stores)
	p.settle(t, 0)
	p.host.mu.Lock()
	p.host.limit = 5 * time.Second
	p.host.mu.Unlock()
	if err := syscall.Kill(p.daemons[0].pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	p.settle(t, 1)
	if err := syscall.Kill(p.daemons[0].pid(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.settle(t, 1)
	if _, err := p.daemons[0].api.Volume(ctx, "disk"); err != nil {
		t.Errorf("the daemon that was stopped does not answer: %v", err)
	}
	p.finish(ctx, t, 1000)
}
