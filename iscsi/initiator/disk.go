package initiator

import (
	"context"
	"fmt"
)

// maxPiece is the longest transfer of a Disk's single command, in bytes.
const maxPiece = 1 << 20

// Disk reads and writes a unit by byte offsets, which must be multiples of the
// block size. Its methods have the shape and the promises of backing.Store.
type Disk struct {
	*Unit
	Capacity Capacity
	Limits   Limits
	piece    int // bytes a command
}

// OpenDisk asks the unit for its capacity and limits.
func (u *Unit) OpenDisk(ctx context.Context) (*Disk, error) {
	d := &Disk{Unit: u}
	var err error
	if d.Capacity, err = u.ReadCapacity(ctx); err != nil {
		return nil, err
	}
	if d.Limits, err = u.Limits(ctx); err != nil {
		return nil, err
	}
	bs := d.Capacity.BlockSize
	d.piece = max(maxPiece/bs, 1)
	if m := d.Limits.MaxTransfer; m > 0 {
		d.piece = min(d.piece, int(m))
	}
	d.piece *= bs
	return d, nil
}

// Size is the capacity in bytes.
func (d *Disk) Size() int64 { return d.Capacity.Bytes() }

// ReadAt fills p from off.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.pieces(p, off, func(p []byte, lba uint64, n uint32) error {
		return d.ReadBlocks(ctx, p, lba, n)
	})
}

// WriteAt writes p at off.
func (d *Disk) WriteAt(ctx context.Context, p []byte, off int64) error {
	return d.pieces(p, off, func(p []byte, lba uint64, n uint32) error {
		return d.WriteBlocks(ctx, p, lba, n)
	})
}

// Flush makes what was written durable.
func (d *Disk) Flush(ctx context.Context) error { return d.SynchronizeCache(ctx) }

func (d *Disk) pieces(p []byte, off int64, do func(p []byte, lba uint64, n uint32) error) error {
	bs := d.Capacity.BlockSize
	if off < 0 || off%int64(bs) != 0 || len(p)%bs != 0 || off > d.Size()-int64(len(p)) {
		return fmt.Errorf("%w: %d bytes at %d of a disk of %d blocks of %d bytes", ErrCommand, len(p), off, d.Capacity.Blocks, bs)
	}
	for len(p) > 0 {
		n := min(len(p), d.piece)
		if err := do(p[:n], uint64(off)/uint64(bs), uint32(n/bs)); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}
