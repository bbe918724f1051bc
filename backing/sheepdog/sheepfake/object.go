package sheepfake

import (
	"blockgate/backing/sheepdog/internal/wire"
	"sync"
)

// chunkSize is how objects are kept: what was never written takes no memory.
const chunkSize = 64 << 10

type object struct {
	mu     sync.RWMutex
	chunks map[uint32][]byte
}

func newObject() *object { return &object{chunks: make(map[uint32][]byte)} }

// read fills p from off; what was never written is zero.
func (o *object) read(p []byte, off int64) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	for len(p) > 0 {
		c, at := uint32(off/chunkSize), off%chunkSize
		n := min(int64(len(p)), chunkSize-at)
		if b := o.chunks[c]; b != nil {
			copy(p[:n], b[at:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
}

// write returns by how much the object grew.
func (o *object) write(p []byte, off int64) (grown int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(p) > 0 {
		c, at := uint32(off/chunkSize), off%chunkSize
		n := min(int64(len(p)), chunkSize-at)
		b := o.chunks[c]
		if b == nil {
			b = make([]byte, chunkSize)
			o.chunks[c] = b
			grown += chunkSize
		}
		copy(b[at:], p[:n])
		p, off = p[n:], off+n
	}
	return grown
}

func (o *object) size() int64 {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return int64(len(o.chunks)) * chunkSize
}

func (o *object) clone() *object {
	o.mu.RLock()
	defer o.mu.RUnlock()
	n := newObject()
	for i, b := range o.chunks {
		n.chunks[i] = append([]byte(nil), b...)
	}
	return n
}

// put makes o the object of this id, whatever there was.
func (c *Cluster) put(oid uint64, o *object) {
	sh := c.shard(oid)
	sh.mu.Lock()
	old := sh.m[oid]
	sh.m[oid] = o
	sh.mu.Unlock()
	if wire.IsInode(oid) {
		return
	}
	if old != nil {
		c.used.Add(-old.size())
	}
	c.used.Add(o.size())
}

func (c *Cluster) remove(oid uint64) {
	sh := c.shard(oid)
	sh.mu.Lock()
	old := sh.m[oid]
	delete(sh.m, oid)
	sh.mu.Unlock()
	if old != nil && !wire.IsInode(oid) {
		c.used.Add(-old.size())
	}
}

// objectOp runs one of the operations on objects. A read fills p.
func (s *Sheep) objectOp(r *wire.Request, p []byte) wire.Result {
	c, vid := s.c, wire.VID(r.OID)
	inode := wire.IsInode(r.OID)
	if res := s.view(r, vid, inode); res != wire.Success {
		return res
	}
	if r.Op == wire.OpRead {
		o := c.find(r.OID)
		if o == nil {
			return wire.NoObject
		}
		o.read(p, int64(r.Offset))
		return wire.Success
	}
	if r.Op == wire.OpDiscard {
		return c.discard(vid, wire.Index(r.OID))
	}
	if !inode && c.isSnapshot(vid) {
		return wire.ReadOnly
	}
	if !inode && c.opt.Capacity > 0 && c.used.Load()+chunkSize > c.opt.Capacity {
		return wire.NoSpace
	}
	switch r.Op {
	case wire.OpCreateAndWrite:
		o := newObject()
		if r.Flags&wire.FlagCOW != 0 {
			base := c.find(r.COWOID)
			if base == nil {
				return wire.NoObject
			}
			o = base.clone()
		}
		o.write(p, int64(r.Offset))
		c.put(r.OID, o)
	case wire.OpWrite:
		o := c.find(r.OID)
		if o == nil {
			return wire.NoObject
		}
		grown := o.write(p, int64(r.Offset))
		if inode {
			s.indexChanged(r, vid)
		} else {
			c.used.Add(grown)
		}
	case wire.OpRemove:
		if c.find(r.OID) == nil {
			return wire.NoObject
		}
		c.remove(r.OID)
	default:
		return wire.InvalidParams
	}
	return wire.Success
}

// discard clears the slot of the inode, a snapshot's as well, and then removes
// the object if there is one.
func (c *Cluster) discard(vid, idx uint32) wire.Result {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.find(wire.InodeOID(vid))
	if o == nil {
		return wire.NoObject
	}
	var slot [4]byte
	o.read(slot[:], int64(wire.IndexOffset(idx)))
	if wire.Slot(slot[:], 0) == 0 {
		return wire.Success
	}
	o.write(make([]byte, 4), int64(wire.IndexOffset(idx)))
	if v := c.vdis[vid]; v == nil || !v.snapshot {
		c.remove(wire.DataOID(vid, idx))
	}
	return wire.Success
}

func (c *Cluster) isSnapshot(vid uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.vdis[vid]
	return v != nil && v.snapshot
}

// view checks a request that wants this sheep's view of a shared inode to be
// right; the read of all of it makes it so.
func (s *Sheep) view(r *wire.Request, vid uint32, inode bool) wire.Result {
	if r.Flags&wire.FlagTGT == 0 && !(inode && r.Op == wire.OpRead && r.Length == wire.RefreshSize) {
		return wire.Success
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	v := s.c.vdis[vid]
	if v == nil {
		return wire.Success
	}
	state, in := v.shared[s.id]
	if !in {
		return wire.Success
	}
	if inode && r.Op == wire.OpRead && r.Offset == 0 && r.Length == wire.RefreshSize {
		if state == viewInvalid {
			for id, other := range v.shared {
				if other == viewModified {
					v.shared[id] = viewShared
				}
			}
			v.shared[s.id] = viewShared
		}
		return wire.Success
	}
	if r.Flags&wire.FlagTGT != 0 && state == viewInvalid {
		return wire.InodeInvalidated
	}
	return wire.Success
}

// indexChanged invalidates the view of the other participants.
func (s *Sheep) indexChanged(r *wire.Request, vid uint32) {
	if int64(r.Offset)+int64(r.Length) <= wire.OffIndex || r.Offset >= wire.OffRefs {
		return
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	v := s.c.vdis[vid]
	if v == nil {
		return
	}
	if _, in := v.shared[s.id]; !in {
		return
	}
	for id := range v.shared {
		v.shared[id] = viewInvalid
	}
	v.shared[s.id] = viewModified
}
