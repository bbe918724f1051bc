package outside

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
			// As Linux has it, a command has 30 s.
			cctx, cancel := context.WithTimeout(ctx, 30*time.Second)
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

// Two daemons serve one VDI as one unit. A host writes and reads back over one
// path, over the other, and over what is left when one daemon is killed: nothing
// acknowledged is lost, and no gateway goes by an index that the other has changed.
func TestSheepdogTwoGateways(t *testing.T) {
	f := newFlock(t, 2, sheepfake.Options{Locks: true, Shuffle: true, BlockShift: 20})
	f.vdi(t, "disk", pathBlocks*pathStride)
	unit := state.UnitParams{NAA: "6000000000000000000000000000a11a", Serial: "one-disk"}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()

	host := new(paths)
	daemons := make([]*gatewayd, 2)
	listen := make([]string, 2)
	for i := range daemons {
		d := newDaemon(t)
		listen[i] = "127.0.0.1:" + freePort(t)
		iqn := fmt.Sprintf("iqn.2025-01.io.blockgate.test:gateway%d", i)
		d.start(t, "--listen", listen[i])
		if _, err := d.api.CreateVolume(ctx, state.Volume{Name: "disk", URL: "sheepdog:unix:" + f.sockets[i] + ":disk?shared=yes", Unit: unit}); err != nil {
			t.Fatal(err)
		}
		d.cli(t, "target", "create", iqn, "--volume", "disk", "--allow", "all")
		host.cfgs = append(host.cfgs, initiator.Config{Addrs: []string{listen[i]}, TargetName: iqn, LoginTimeout: 10 * time.Second})
		daemons[i] = d
	}

	var k book
	stop := make(chan struct{})
	var users sync.WaitGroup
	errs := make(chan error, pathUsers)
	for u := range pathUsers {
		rng := rand.New(rand.NewPCG(1, uint64(u)))
		users.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				block := rng.IntN(pathBlocks/pathUsers)*pathUsers + u
				err := k.write(ctx, host, block)
				if err == nil {
					k.writes.Add(1)
					err = k.check(ctx, host, rng.IntN(pathBlocks/pathUsers)*pathUsers+u)
				}
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	owned := func(by int) func() bool {
		return func() bool { owner, held := f.Owner("disk"); return held && owner == f.sheep[by].ID() }
	}
	// settle waits until a gateway has the VDI, and then for some load on it.
	settle := func(by int) {
		t.Helper()
		eventually(t, time.Minute, fmt.Sprintf("gateway %d owns the VDI", by), owned(by))
		more := k.writes.Load() + 500
		eventually(t, time.Minute, "the host writes", func() bool { return k.writes.Load() > more || len(errs) > 0 })
	}
	settle(0)
	host.turn()
	settle(1)
	if v, err := daemons[0].api.Volume(ctx, "disk"); err != nil || v.Status.LockedBy == "this gateway" {
		t.Errorf("the first gateway thinks that the VDI is locked by %q, %v", v.Status.LockedBy, err)
	}
	// A snapshot through the owner, under load.
	daemons[1].cli(t, "snapshot", "create", "disk", "under-load")
	host.turn()
	settle(0)
	// Its daemon is killed: the host finds that out by itself.
	daemons[0].kill()
	settle(1)
	daemons[0].start(t, "--listen", listen[0])
	// And now the other one, which has it.
	daemons[1].kill()
	settle(0)
	close(stop)
	users.Wait()
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}
	for b := range pathBlocks {
		if err := k.check(ctx, host, b); err != nil {
			t.Fatal(err)
		}
	}
	n := k.writes.Load()
	figure(t, "two gateways on one VDI: %d writes verified, %d changes of the path, %d commands repeated", n, host.changes.Load(), host.fails.Load())
	if n < 2500 || host.fails.Load() == 0 {
		t.Errorf("%d writes and %d commands that were repeated are no load", n, host.fails.Load())
	}
}
