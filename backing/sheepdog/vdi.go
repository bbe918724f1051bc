package sheepdog

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"blockgate/backing"
	"blockgate/backing/sheepdog/internal/wire"
)

// errStale is of a request that found the VDI to be a snapshot by now: somebody
// else took one, and the working VDI has another id.
var errStale = errors.New("sheepdog: the VDI has become a snapshot")

// volume is a VDI as it was when its inode was read. Only the slots change.
type volume struct {
	wire.Inode
	// slots say which VDI has each data object; 0 is a hole. A slot changes only
	// under the lock of its index, held alone, or with the store's gate held alone.
	slots []atomic.Uint32
	// touched has a bit for each slot that we have changed; see Store.repair.
	touched []atomic.Uint32
}

func newVolume(n wire.Inode) *volume {
	objects := n.Objects()
	return &volume{Inode: n, slots: make([]atomic.Uint32, objects), touched: make([]atomic.Uint32, (objects+31)/32)}
}

// set changes a slot to what the index of the inode says.
func (v *volume) set(idx, vid uint32) {
	v.touched[idx/32].Or(1 << (idx % 32))
	v.slots[idx].Store(vid)
}

func (v *volume) wasTouched(idx uint32) bool {
	return v.touched[idx/32].Load()&(1<<(idx%32)) != 0
}

// lookup asks for the id of a VDI: of the working one without tag and snapid.
func (c *client) lookup(ctx context.Context, name, tag string, snapid uint32) (uint32, error) {
	req := wire.Request{Op: wire.OpGetVDIInfo, Flags: wire.FlagWrite, SnapID: snapid}
	resp, _, err := c.do(ctx, &req, wire.PutNames(name, tag), nil, effort{})
	if err != nil {
		return 0, err
	}
	return resp.VID, nil
}

// readInode reads part of an inode.
func (c *client) readInode(ctx context.Context, vid uint32, p []byte, off uint32) error {
	return c.readObject(ctx, wire.InodeOID(vid), p, off, effort{})
}

// readObject fills p; an answer that is shorter is filled up with zeroes.
func (c *client) readObject(ctx context.Context, oid uint64, p []byte, off uint32, e effort) error {
	_, n, err := c.do(ctx, &wire.Request{Op: wire.OpRead, OID: oid, Offset: off}, nil, p, e)
	if err == nil {
		clear(p[n:])
	}
	return err
}

// writeInode writes what is not the owner's alone: marks and requests. changeInode
// writes all else.
func (c *client) writeInode(ctx context.Context, vid uint32, p []byte, off uint32) error {
	return c.putInode(ctx, vid, p, off, effort{})
}

func (c *client) changeInode(ctx context.Context, vid uint32, p []byte, off uint32) error {
	return c.putInode(ctx, vid, p, off, effort{owned: true})
}

func (c *client) putInode(ctx context.Context, vid uint32, p []byte, off uint32, e effort) error {
	req := wire.Request{Op: wire.OpWrite, Flags: wire.FlagWrite, OID: wire.InodeOID(vid), Offset: off}
	_, _, err := c.do(ctx, &req, p, nil, e)
	return err
}

// header reads and checks what an inode says before its index.
func (c *client) header(ctx context.Context, vid uint32) (wire.Inode, error) {
	b := make([]byte, wire.InodeHeaderSize)
	if err := c.readInode(ctx, vid, b, 0); err != nil {
		return wire.Inode{}, err
	}
	n, err := wire.ParseInode(b)
	switch {
	case err != nil:
		return n, err
	case n.VID != vid:
		return n, fmt.Errorf("%w: that of VDI %#x says it is of %#x", wire.ErrInode, vid, n.VID)
	case n.StorePolicy != 0:
		return n, fmt.Errorf("VDI %s is a hyper volume: %w", n.Name, backing.ErrNotSupported)
	}
	return n, nil
}

// indexPiece is how much of an index is read at once, in bytes.
const indexPiece = 1 << 20

// load reads the inode of a VDI.
func (c *client) load(ctx context.Context, vid uint32) (*volume, error) {
	n, err := c.header(ctx, vid)
	if err != nil {
		return nil, err
	}
	v := newVolume(n)
	buf := make([]byte, min(indexPiece, 4*len(v.slots)))
	for i := 0; i < len(v.slots); {
		p := buf[:min(len(buf), 4*(len(v.slots)-i))]
		if err := c.readInode(ctx, vid, p, wire.IndexOffset(uint32(i))); err != nil {
			return nil, err
		}
		for k := range len(p) / 4 {
			v.slots[i+k].Store(wire.Slot(p, k))
		}
		i += len(p) / 4
	}
	return v, nil
}

// stillWorking returns errStale if the VDI has become a snapshot.
func (c *client) stillWorking(ctx context.Context, vid uint32) error {
	var t [8]byte
	if err := c.readInode(ctx, vid, t[:], wire.OffSnapCtime); err != nil {
		return err
	}
	if t != [8]byte{} {
		return errStale
	}
	return nil
}

// newVDI creates (no base), clones (base) or snapshots (snapshot) and returns the
// id of the new working VDI. It is sent once: a snapshot whose base is not the
// working VDI any more, because the first request came through after all, would
// put the working VDI back to what the base had.
func (c *client) newVDI(ctx context.Context, name string, from *wire.Inode, base uint32, snapshot bool) (uint32, error) {
	req := wire.Request{Op: wire.OpNewVDI, Flags: wire.FlagWrite, VDISize: from.Size, BaseVID: base,
		Copies: from.Copies, CopyPolicy: from.CopyPolicy, BlockShift: from.BlockShift}
	if snapshot {
		req.SnapID = 1
	}
	resp, _, err := c.do(ctx, &req, wire.PutNames(name, "")[:wire.MaxNameLen], nil, effort{patient: true, once: true, owned: snapshot})
	if err != nil {
		return 0, err
	}
	return resp.VID, nil
}

// create makes an empty VDI with the cluster's redundancy and object size.
func (c *client) create(ctx context.Context, name string, size int64) error {
	var n wire.Inode
	req := wire.Request{Op: wire.OpClusterDefault}
	resp, _, err := c.do(ctx, &req, nil, nil, effort{})
	if err != nil {
		return err
	}
	if shift := resp.BlockShift; shift < wire.MinBlockShift || shift > wire.MaxBlockShift || size > wire.MaxObjects<<shift {
		return fmt.Errorf("%d bytes are more than a VDI with objects of 2^%d bytes can have: %w", size, shift, backing.ErrNotSupported)
	}
	n.Size = uint64(size)
	_, err = c.newVDI(ctx, name, &n, 0, false)
	if errors.Is(err, wire.VDIExists) || errors.Is(err, errLost) {
		// Whether it was ours that came through or another's: opening tells.
		return nil
	}
	return err
}

// storeError puts a sheep's result into the words of package backing.
func storeError(err error) error {
	r, ok := errors.AsType[wire.Result](err)
	if !ok {
		return err
	}
	switch r {
	case wire.NoVDI, wire.NoTag:
		return fmt.Errorf("%w: %w", err, backing.ErrNotExist)
	case wire.VDILocked:
		return fmt.Errorf("%w: %w", err, backing.ErrBusy)
	case wire.NoSpace, wire.FullVDI:
		return fmt.Errorf("%w: %w", err, backing.ErrNoSpace)
	case wire.ReadOnly:
		return fmt.Errorf("%w: %w", err, backing.ErrReadOnly)
	case wire.NotSupported, wire.VersionMismatch:
		return fmt.Errorf("%w: %w", err, backing.ErrNotSupported)
	}
	return err
}
