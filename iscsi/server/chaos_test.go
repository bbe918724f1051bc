package server_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/layer/delay"
	"blockgate/iscsi/initiator"
)

// TestChaos lets several initiators read, write, abort, reset, lose connections
// and log in over each other, all at once. Whatever happens in between, a read
// after a write that was answered GOOD gives what was written: in particular no
// write of a task that was aborted, or whose session was lost, comes late. At the
// end no memory, session or goroutine is left, which serve and TestMain check.
func TestChaos(t *testing.T) {
	const workers, blocks = 6, 512 // blocks for each worker
	rounds := 60
	if testing.Short() {
		rounds = 20
	}
	slow := func() backing.Store {
		return delay.New(memory(t, 16<<20), delay.Config{Read: 20 * time.Microsecond, Write: 50 * time.Microsecond, Jitter: 300 * time.Microsecond})
	}
	stores := []backing.Store{slow(), memory(t, 16<<20)}
	for range workers { // a unit of its own for each, to reset: others would get no answer
		stores = append(stores, slow())
	}
	r := serve(t, options{stores: stores})
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			c := &chaos{t: t, r: r, rng: rng, w: w}
			defer c.close()
			for i := range rounds {
				c.round(uint64(i), uint64(w)*blocks, blocks)
			}
			t.Logf("worker %d: %d logins, %d checks, %d failed commands", w, c.logins, c.checks, c.failures)
			if c.checks == 0 {
				t.Errorf("worker %d checked nothing", w)
			}
		})
	}
	wg.Wait()
}

type chaos struct {
	t                        *testing.T
	r                        *rig
	rng                      *rand.Rand
	w                        int
	s                        *initiator.Session
	logins, checks, failures int
}

func (c *chaos) close() {
	if c.s != nil {
		c.s.Close()
		c.s = nil
	}
}

func (c *chaos) session() *initiator.Session {
	if c.s != nil {
		return c.s
	}
	cfg := c.r.config(fmt.Sprint("chaos", c.w))
	cfg.ISID = [6]byte{0x80, byte(c.w)} // the next login takes over what is left of this one
	p := initiator.DefaultParams()
	cfg.Params = &p
	cfg.Connections = 1 + c.rng.IntN(3)
	p.MaxConnections = cfg.Connections
	p.ImmediateData, p.InitialR2T = c.rng.IntN(2) == 0, c.rng.IntN(2) == 0
	p.FirstBurst, p.MaxBurst = 8192, 32768
	if c.rng.IntN(3) == 0 {
		cfg.HeaderDigests, cfg.DataDigests = []string{"CRC32C"}, []string{"CRC32C"}
	}
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	s, err := initiator.Dial(ctx, cfg)
	if err != nil {
		c.t.Errorf("worker %d: %v", c.w, err)
		return nil
	}
	c.s = s
	c.logins++
	return s
}

func (c *chaos) round(i, base, blocks uint64) {
	s := c.session()
	if s == nil {
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	act := c.rng.IntN(8)
	lun := uint64(c.rng.IntN(3))
	if lun == 2 || act == 3 {
		lun = 2 + uint64(c.w)
	}
	u := s.Unit(lun)
	n := uint64(1 + c.rng.IntN(200))
	lba := base + c.rng.Uint64N(blocks-n)
	data := pattern(int(n)*512, i<<8|uint64(c.w))

	// Something that goes wrong, in the background: what it writes is not what is
	// checked below.
	var wg sync.WaitGroup
	switch act {
	case 0: // a lost session with commands out
		for range 8 {
			wg.Go(func() { u.WriteBlocks(ctx, pattern(int(n)*512, ^i), lba, uint32(n)) })
		}
		if c.rng.IntN(2) == 0 {
			c.s = nil
			c.session() // which takes the session over
		} else {
			c.r.srv.CloseConnection(c.r.srv.Sessions()[0].ID, 0) // somebody's
		}
		s.Close()
		wg.Wait()
		if c.s == s {
			c.s = nil
		}
		if s = c.session(); s == nil {
			return
		}
		u = s.Unit(lun)
	case 1, 2: // aborted writes to the same place
		short, cut := context.WithCancel(ctx)
		for range 4 {
			wg.Go(func() { u.WriteBlocks(short, pattern(int(n)*512, ^i), lba, uint32(n)) })
		}
		cut()
		wg.Wait()
	case 3:
		for range 4 {
			wg.Go(func() { u.WriteBlocks(ctx, pattern(int(n)*512, ^i), lba, uint32(n)) })
		}
		s.Manage(ctx, initiator.LogicalUnitReset, initiator.LUN(lun), nil)
		wg.Wait()
	case 4:
		for range 4 {
			wg.Go(func() { u.ReadBlocks(ctx, make([]byte, n*512), lba, uint32(n)) })
		}
		s.Manage(ctx, initiator.AbortTaskSet, initiator.LUN(lun), nil)
		wg.Wait()
	}

	// Others close sessions meanwhile, so this may fail.
	if err := retry(func() error { return u.WriteBlocks(ctx, data, lba, uint32(n)) }); err != nil {
		c.failed(ctx)
		return
	}
	got := make([]byte, len(data))
	if err := retry(func() error { return u.ReadBlocks(ctx, got, lba, uint32(n)) }); err != nil {
		c.failed(ctx)
		return
	}
	c.checks++
	if !bytes.Equal(got, data) {
		c.t.Errorf("worker %d, round %d: LUN %d, %d blocks at %d are not read back as written", c.w, i, lun, n, lba)
	}
}

// failed counts a failure, and begins anew. A command must never just hang.
func (c *chaos) failed(ctx context.Context) {
	c.failures++
	if ctx.Err() != nil {
		c.t.Errorf("worker %d: a command hangs", c.w)
	}
	c.close()
}

func retry(f func() error) (err error) {
	for range 4 {
		if err = f(); !initiator.IsUnitAttention(err) {
			return err
		}
	}
	return err
}
