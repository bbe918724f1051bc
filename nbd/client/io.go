package client

import (
	"context"
	"errors"

	"blockgate/internal/bufpool"
	"blockgate/internal/rangelock"
	"blockgate/nbd"
)

// maxZeroes is how much is trimmed or zeroed by one request, in bytes: a server may
// have to write it, and has only so much time.
const maxZeroes = 128 << 20

// check refuses what needs no server to be refused.
func (c *Client) check(ctx context.Context, off, n int64, needs nbd.TransmissionFlags, modify bool) error {
	switch size := c.size.Load(); {
	case c.ctx.Err() != nil:
		return ErrClosed
	case off < 0 || n < 0 || off > size || n > size-off:
		return ErrRange
	case modify && (c.cfg.ReadOnly || c.exp.Can(nbd.ReadOnly)):
		return ErrReadOnly
	case !c.exp.Can(needs):
		return ErrNotSupported
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	if modify {
		return c.failure()
	}
	return nil
}

func needsFUA(f nbd.CommandFlags) (needs nbd.TransmissionFlags) {
	if f&nbd.FlagFUA != 0 {
		needs = nbd.SendFUA
	}
	return needs
}

func (c *Client) aligned(off, n int64) bool {
	return (off|n)&int64(c.exp.BlockSize.Min-1) == 0
}

// ReadAt fills p from off. What the server has at offsets that are no multiples of
// its blocks is read as well, and left.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := c.check(ctx, off, int64(len(p)), 0, false); err != nil {
		return err
	}
	if c.aligned(off, int64(len(p))) {
		return c.read(ctx, p, off)
	}
	block := int64(c.exp.BlockSize.Min)
	for len(p) > 0 {
		// The parts at the ends through a block of ours, the middle in place.
		skip, n := off%block, int64(len(p))
		if skip == 0 && n >= block {
			n -= n % block
			if err := c.read(ctx, p[:n], off); err != nil {
				return err
			}
		} else {
			n = min(n, block-skip)
			b := bufpool.Get(int(block))
			err := c.read(ctx, b.B, off-skip)
			copy(p[:n], b.B[skip:])
			bufpool.Put(b)
			if err != nil {
				return err
			}
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (c *Client) read(ctx context.Context, p []byte, off int64) error {
	o := c.get()
	defer o.put()
	for len(p) > 0 {
		n := min(len(p), int(c.exp.BlockSize.MaxPayload))
		o.set(nbd.CmdRead, 0, off, int64(n))
		o.in = p[:n]
		if err := c.do(ctx, o); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// WriteAt writes p at off. Of flags FlagFUA has a meaning: it is durable when
// WriteAt returns. A part of a server's block is written by reading the block and
// writing all of it, which is safe against other calls of this Client, and of no
// other.
func (c *Client) WriteAt(ctx context.Context, p []byte, off int64, flags nbd.CommandFlags) error {
	flags &= nbd.FlagFUA
	if err := c.check(ctx, off, int64(len(p)), needsFUA(flags), true); err != nil {
		return err
	}
	if len(p) == 0 {
		return nil
	}
	o, err := c.begin(ctx, off, int64(len(p)))
	if err != nil {
		return err
	}
	defer o.finish()
	if c.aligned(off, int64(len(p))) {
		return c.write(ctx, o, p, off, flags)
	}
	block := int64(c.exp.BlockSize.Min)
	for len(p) > 0 {
		skip, n := off%block, int64(len(p))
		if skip == 0 && n >= block {
			n -= n % block
			err = c.write(ctx, o, p[:n], off, flags)
		} else {
			n = min(n, block-skip)
			err = c.patch(ctx, o, p[:n], off, flags)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (c *Client) write(ctx context.Context, o *op, p []byte, off int64, flags nbd.CommandFlags) error {
	for len(p) > 0 {
		n := min(len(p), int(c.exp.BlockSize.MaxPayload))
		o.set(nbd.CmdWrite, flags, off, int64(n))
		o.out = p[:n]
		err := c.do(ctx, o)
		o.out = nil
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// patch writes a part of one block, whose range is locked.
func (c *Client) patch(ctx context.Context, o *op, p []byte, off int64, flags nbd.CommandFlags) error {
	block := int64(c.exp.BlockSize.Min)
	b := bufpool.Get(int(block))
	defer bufpool.Put(b)
	first := off - off%block
	if err := c.read(ctx, b.B, first); err != nil {
		return err
	}
	copy(b.B[off-first:], p)
	return c.write(ctx, o, b.B, first, flags)
}

// begin waits for room in the journal and for the range, in whole blocks.
func (c *Client) begin(ctx context.Context, off, n int64) (*op, error) {
	if err := c.waitRoom(ctx); err != nil {
		return nil, err
	}
	mask := int64(c.exp.BlockSize.Min) - 1
	o := c.get()
	if err := c.ranges.Lock(ctx, c.ctx.Done(), o.hold, off&^mask, (off+n+mask)&^mask, true); err != nil {
		o.put()
		if errors.Is(err, rangelock.ErrStopped) {
			err = ErrClosed
		}
		return nil, err
	}
	return o, nil
}

func (o *op) finish() {
	o.release()
	o.put()
}

// WriteZeroes makes a range zeroes. Flags: FlagNoHole keeps it allocated, FlagFUA
// makes it durable, and with FlagFastZero the server says ErrNotSupported when it
// would not be faster than a write.
func (c *Client) WriteZeroes(ctx context.Context, off, n int64, flags nbd.CommandFlags) error {
	flags &= nbd.FlagFUA | nbd.FlagNoHole | nbd.FlagFastZero
	needs := nbd.SendWriteZeroes | needsFUA(flags)
	if flags&nbd.FlagFastZero != 0 {
		needs |= nbd.SendFastZero
	}
	if err := c.check(ctx, off, n, needs, true); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	o, err := c.begin(ctx, off, n)
	if err != nil {
		return err
	}
	defer o.finish()
	block := int64(c.exp.BlockSize.Min)
	var zeroes *bufpool.Buf
	if !c.aligned(off, n) {
		zeroes = bufpool.Get(int(block))
		defer bufpool.Put(zeroes)
		clear(zeroes.B)
	}
	for n > 0 {
		skip, k := off%block, n
		if skip == 0 && n >= block {
			k -= k % block
			err = c.effect(ctx, o, nbd.CmdWriteZeroes, off, k, flags)
		} else {
			k = min(n, block-skip)
			err = c.patch(ctx, o, zeroes.B[:k], off, flags&nbd.FlagFUA)
		}
		if err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// Trim tells the server that a range is not needed. Only what are whole blocks of
// the server is trimmed, and nothing is known about its content afterwards.
func (c *Client) Trim(ctx context.Context, off, n int64, flags nbd.CommandFlags) error {
	flags &= nbd.FlagFUA
	if err := c.check(ctx, off, n, nbd.SendTrim|needsFUA(flags), true); err != nil {
		return err
	}
	mask := int64(c.exp.BlockSize.Min) - 1
	end := (off + n) &^ mask
	off = (off + mask) &^ mask
	if off >= end {
		return nil
	}
	o, err := c.begin(ctx, off, end-off)
	if err != nil {
		return err
	}
	defer o.finish()
	return c.effect(ctx, o, nbd.CmdTrim, off, end-off, flags)
}

// effect sends a request without a payload for whole blocks.
func (c *Client) effect(ctx context.Context, o *op, cmd nbd.Command, off, n int64, flags nbd.CommandFlags) error {
	for n > 0 {
		k := min(n, c.zeroMax.Load())
		o.set(cmd, flags, off, k)
		if err := c.do(ctx, o); err != nil {
			// A server need not take more at once than it takes with a payload.
			small := int64(c.exp.BlockSize.MaxPayload)
			if k > small && (errors.Is(err, nbd.EINVAL) || errors.Is(err, nbd.EOVERFLOW)) {
				c.zeroMax.Store(small)
				continue
			}
			if flags&nbd.FlagFastZero != 0 && errors.Is(err, nbd.ENOTSUP) {
				return ErrNotSupported
			}
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// Cache asks the server to have a range at hand for reads to come.
func (c *Client) Cache(ctx context.Context, off, n int64) error {
	if err := c.check(ctx, off, n, nbd.SendCache, false); err != nil {
		return err
	}
	mask := int64(c.exp.BlockSize.Min) - 1
	off, n = off&^mask, ((off+n+mask)&^mask)-off&^mask
	o := c.get()
	defer o.put()
	return c.effect(ctx, o, nbd.CmdCache, off, n, 0)
}

// maxStatus is how much one BLOCK_STATUS is asked for, in bytes.
const maxStatus = 1 << 30

// BlockStatus calls fn with the runs that cover [off, off+n), ascending and
// without gaps, and with the status of each in AllocationContext, until it returns
// false. The server may have cut one run into several.
func (c *Client) BlockStatus(ctx context.Context, off, n int64, fn func(off, n int64, state uint64) bool) error {
	if err := c.check(ctx, off, n, 0, false); err != nil {
		return err
	}
	if !c.exp.Allocation {
		return ErrNotSupported
	}
	mask := int64(c.exp.BlockSize.Min) - 1
	o := c.get()
	defer o.put()
	for end := off + n; off < end; {
		at := off &^ mask
		k := min((end+mask)&^mask-at, maxStatus)
		o.set(nbd.CmdBlockStatus, 0, at, k)
		if err := c.do(ctx, o); err != nil {
			return err
		}
		from := off
		for _, e := range o.ext {
			if off >= end {
				break
			}
			// The last one may end behind what was asked for.
			next := at + int64(min(e.Length, uint64(end-at)))
			if next > off {
				if !fn(off, next-off, e.Flags) {
					return nil
				}
				off = next
			}
			at = next
		}
		if off == from {
			// Less than a block of its own: it would be asked for ever.
			return broken("the answer to BLOCK_STATUS at %d tells nothing about %d", off&^mask, off)
		}
	}
	return nil
}
