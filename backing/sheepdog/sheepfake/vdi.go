package sheepfake

import (
	"net/netip"
	"runtime"
	"slices"

	"blockgate/backing/sheepdog/internal/wire"
)

// inode reads an inode's header and its index.
func (c *Cluster) inode(vid uint32) (n wire.Inode, index func(uint32) uint32) {
	o := c.find(wire.InodeOID(vid))
	if o == nil {
		return n, func(uint32) uint32 { return 0 }
	}
	b := make([]byte, wire.InodeHeaderSize)
	o.read(b, 0)
	n, err := wire.ParseInode(b)
	if err != nil {
		n = wire.Inode{}
	}
	return n, func(i uint32) uint32 {
		var slot [4]byte
		o.read(slot[:], int64(wire.IndexOffset(i)))
		return wire.Slot(slot[:], 0)
	}
}

// lookup finds a VDI: the working one without tag and snapid, else a snapshot.
// mu is held.
func (c *Cluster) lookup(name, tag string, snapid uint32) (uint32, wire.Result) {
	found := wire.NoVDI
	best, bestSnap := uint32(0), uint32(0)
	for vid, v := range c.vdis {
		n, _ := c.inode(vid)
		if n.Name != name || name == "" {
			continue
		}
		found = wire.NoTag
		match := !v.snapshot
		if tag != "" || snapid != 0 {
			match = v.snapshot && (tag != "" && n.Tag == tag || snapid != 0 && n.SnapID == snapid)
		}
		if match && n.SnapID >= bestSnap {
			best, bestSnap = vid, n.SnapID
		}
	}
	if best != 0 {
		return best, wire.Success
	}
	if tag == "" && snapid == 0 {
		return 0, wire.NoVDI
	}
	return 0, found
}

// newVDI creates, snapshots and clones.
func (c *Cluster) newVDI(r *wire.Request, p []byte, resp *wire.Response) wire.Result {
	if len(p) != wire.MaxNameLen {
		return wire.InvalidParams
	}
	name, _, _ := wire.ParseNames(p)
	if name == "" {
		return wire.InvalidParams
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := wire.Inode{
		Name: name, Size: r.VDISize, Copies: r.Copies, CopyPolicy: r.CopyPolicy,
		BlockShift: r.BlockShift, SnapID: 1, CreateTime: c.now(), StorePolicy: r.StorePolicy,
	}
	if n.Copies == 0 {
		n.Copies, n.CopyPolicy = c.opt.Copies, c.opt.CopyPolicy
	}
	if n.BlockShift == 0 {
		n.BlockShift = c.opt.BlockShift
	}
	if n.BlockShift < wire.MinBlockShift || n.BlockShift > wire.MaxBlockShift || n.Size > wire.MaxObjects<<n.BlockShift {
		return wire.InvalidParams
	}
	current, res := c.lookup(name, "", 0)
	snapshot := r.SnapID != 0
	switch {
	case snapshot && res != wire.Success:
		return wire.NoVDI
	case !snapshot && res == wire.Success:
		return wire.VDIExists
	}
	if !snapshot {
		// Snapshots of a name may be left though its working VDI was deleted.
		for vid := range c.vdis {
			if old, _ := c.inode(vid); old.Name == name {
				n.SnapID = max(n.SnapID, old.SnapID+1)
			}
		}
	}
	var index []byte
	if base := r.BaseVID; base != 0 {
		v := c.vdis[base]
		if v == nil {
			return wire.NoBaseVDI
		}
		n.Parent = base
		index = make([]byte, 4*n.Objects())
		c.find(wire.InodeOID(base)).read(index, wire.OffIndex)
		if snapshot {
			// It is the working VDI that becomes the snapshot; with another base
			// the new one is put back to that.
			old, _ := c.inode(current)
			n.SnapID = old.SnapID + 1
			c.freeze(current, &old)
		}
	}
	vid := wire.HashVDI(name)
	for vid == 0 || c.vdis[vid] != nil {
		vid = (vid + 1) % wire.MaxVDIs
	}
	n.VID = vid
	head := make([]byte, wire.InodeHeaderSize)
	n.Put(head)
	o := newObject()
	o.write(head, 0)
	for len(index) > 0 {
		// Pieces, so that what is empty takes no memory.
		k := min(len(index), 4096)
		if slices.ContainsFunc(index[:k], func(b byte) bool { return b != 0 }) {
			o.write(index[:k], wire.OffIndex+int64(4*n.Objects())-int64(len(index)))
		}
		index = index[k:]
	}
	c.put(wire.InodeOID(vid), o)
	c.vdis[vid] = &vdi{}
	resp.VID, resp.Copies, resp.BlockShift = vid, n.Copies, n.BlockShift
	return wire.Success
}

// freeze makes a VDI a snapshot. mu is held.
func (c *Cluster) freeze(vid uint32, n *wire.Inode) {
	o := c.find(wire.InodeOID(vid))
	index := make([]byte, 4*n.Objects())
	o.read(index, wire.OffIndex)
	// The daemon writes back all it has read: an update of the index that came
	// between is lost.
	runtime.Gosched()
	var t [8]byte
	now := c.now()
	wire.PutSlot(t[:], 0, uint32(now))
	wire.PutSlot(t[:], 1, uint32(now>>32))
	o.write(index, wire.OffIndex)
	o.write(t[:], wire.OffSnapCtime)
	c.vdis[vid].snapshot = true
}

// info answers lookups, with a lock or without.
func (s *Sheep) info(r *wire.Request, p []byte, resp *wire.Response) wire.Result {
	name, tag, err := wire.ParseNames(p)
	if err != nil {
		return wire.InvalidParams
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	vid, res := c.lookup(name, tag, r.SnapID)
	if res != wire.Success {
		return res
	}
	n, _ := c.inode(vid)
	resp.VID, resp.Copies, resp.BlockShift = vid, n.Copies, n.BlockShift
	if r.Op == wire.OpLockVDI && c.opt.Locks {
		return s.lock(c.vdis[vid], r.LockType)
	}
	return wire.Success
}

func (s *Sheep) lock(v *vdi, kind uint32) wire.Result {
	if kind == wire.LockNormal {
		if v.locked || len(v.shared) > 0 {
			return wire.VDILocked
		}
		v.locked, v.owner = true, s.id
		return wire.Success
	}
	if _, in := v.shared[s.id]; in || v.locked {
		return wire.VDILocked
	}
	if v.shared == nil {
		v.shared = make(map[netip.AddrPort]view)
	}
	state := viewInvalid
	if len(v.shared) == 0 {
		state = viewModified
	}
	v.shared[s.id] = state
	return wire.Success
}

// release does not ask whose lock it is and always succeeds.
func (s *Sheep) release(r *wire.Request) wire.Result {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if v := c.vdis[r.BaseVID]; v != nil {
		if r.LockType == wire.LockShared {
			delete(v.shared, s.id)
		} else {
			v.locked, v.owner = false, netip.AddrPort{}
		}
	}
	return wire.Success
}

// delete empties the name of the inode. What its slots name stays if the client
// did not clear them; and objects that nothing names any more are removed, as
// the reference counts do.
func (c *Cluster) delete(r *wire.Request, p []byte) wire.Result {
	name, tag, err := wire.ParseNames(p)
	if err != nil {
		return wire.InvalidParams
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	vid, res := c.lookup(name, tag, r.SnapID)
	if res != wire.Success {
		return res
	}
	c.find(wire.InodeOID(vid)).write(make([]byte, wire.MaxNameLen), 0)
	c.vdis[vid].locked, c.vdis[vid].shared = false, nil
	c.collect()
	return wire.Success
}

// collect removes data objects that no index names.
func (c *Cluster) collect() {
	named := make(map[uint64]bool)
	for vid := range c.vdis {
		n, index := c.inode(vid)
		for i := range n.Objects() {
			if owner := index(i); owner != 0 {
				named[wire.DataOID(owner, i)] = true
			}
		}
	}
	var dead []uint64
	for i := range c.objects {
		sh := &c.objects[i]
		sh.mu.RLock()
		for oid := range sh.m {
			// Of a VDI that still lives an object may be on its way into the index.
			if v := c.vdis[wire.VID(oid)]; !wire.IsInode(oid) && !named[oid] && (v == nil || v.snapshot) {
				dead = append(dead, oid)
			}
		}
		sh.mu.RUnlock()
	}
	for _, oid := range dead {
		c.remove(oid)
	}
}

// bitmap is the answer to OpReadVDIs.
func (c *Cluster) bitmap() []byte {
	b := make([]byte, wire.VDIBitmapSize)
	c.mu.Lock()
	defer c.mu.Unlock()
	for vid := range c.vdis {
		b[vid/8] |= 1 << (vid % 8)
	}
	return b
}

// members are the sheep that run.
func (c *Cluster) members() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []wire.NodeID
	for _, s := range c.sheep {
		if s.running() {
			ids = append(ids, s.id)
		}
	}
	return wire.PutNodes(ids)
}

func (c *Cluster) states() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []wire.VDIState
	for vid, v := range c.vdis {
		st := wire.VDIState{VID: vid, Snapshot: v.snapshot, LockState: wire.Unlocked}
		if v.locked {
			st.LockState, st.Owner = wire.Locked, v.owner
		} else if len(v.shared) > 0 {
			st.LockState = wire.SharedLock
		}
		list = append(list, st)
	}
	return wire.PutVDIStates(list)
}
