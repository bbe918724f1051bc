// Package sheepfake is a Sheepdog cluster in memory that speaks the protocol on
// real sockets, for tests. It behaves as the daemon does where that matters to a
// client: creation replaces what there was, copy-on-write merges, objects of a
// snapshot refuse writes but its inode does not, locks belong to the sheep and
// not to the client, and answers may come in any order. Faults can be injected
// into every request.
//
// It keeps no replicas: the objects are the cluster's and survive every sheep.
package sheepfake

import (
	"fmt"
	"math/bits"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"blockgate/backing/sheepdog/internal/wire"
)

// Options describe a cluster; the zero Options make one sheep's worth of defaults.
type Options struct {
	Copies      uint8 // of new VDIs; 0: 2
	CopyPolicy  uint8 // of new VDIs; 0: replication
	BlockShift  uint8 // of new VDIs: objects of 2^shift bytes; 0: 22
	Locks       bool  // format -l: VDI locks are kept
	ShuffleSeed uint64
	// Shuffle answers requests that arrived together in a random order.
	Shuffle bool
	// Capacity bounds the memory of all data objects, in bytes; more is answered
	// NoSpace. 0: no bound.
	Capacity int64
}

// Cluster is what all sheep share. It is safe for concurrent use.
type Cluster struct {
	opt   Options
	fault atomic.Pointer[func(Request) Fault]
	epoch atomic.Uint32
	used  atomic.Int64

	mu    sync.Mutex // orders VDI operations and membership
	vdis  map[uint32]*vdi
	sheep []*Sheep
	clock uint64

	// objects is striped by oid, as each object has its own order of requests.
	objects [64]shard
}

type shard struct {
	mu sync.RWMutex
	m  map[uint64]*object
}

// vdi is what the cluster knows of a VDI beside its inode object.
type vdi struct {
	snapshot bool
	locked   bool
	owner    netip.AddrPort
	shared   map[netip.AddrPort]view // participants of a shared lock
}

// view is whether a participant's idea of the inode is what is there.
type view int

const (
	viewModified view = iota
	viewShared
	viewInvalid
)

// New makes a cluster without sheep.
func New(o Options) *Cluster {
	if o.Copies == 0 {
		o.Copies = 2
	}
	if o.BlockShift == 0 {
		o.BlockShift = 22
	}
	c := &Cluster{opt: o, vdis: make(map[uint32]*vdi)}
	for i := range c.objects {
		c.objects[i].m = make(map[uint64]*object)
	}
	c.epoch.Store(1)
	return c
}

// SetFault makes fn decide what happens to each request from now on; nil makes
// all go well. fn runs concurrently.
func (c *Cluster) SetFault(fn func(Request) Fault) {
	if fn == nil {
		c.fault.Store(nil)
		return
	}
	c.fault.Store(&fn)
}

// Start adds a sheep that listens on a network ("unix", "tcp") and address and
// serves until it is stopped.
func (c *Cluster) Start(network, address string) (*Sheep, error) {
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	s := &Sheep{c: c, network: network, address: l.Addr().String(), conns: make(map[net.Conn]struct{})}
	c.mu.Lock()
	// A sheep on a unix socket has a node address nevertheless, as in life.
	s.id = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(7000+len(c.sheep)))
	if a, ok := l.Addr().(*net.TCPAddr); ok {
		s.id = a.AddrPort()
	}
	c.sheep = append(c.sheep, s)
	c.mu.Unlock()
	s.serve(l)
	return s, nil
}

// Close stops every sheep.
func (c *Cluster) Close() {
	c.mu.Lock()
	sheep := c.sheep
	c.mu.Unlock()
	for _, s := range sheep {
		s.Stop()
	}
}

// Restart loses what a full restart of the cluster loses: every lock.
func (c *Cluster) Restart() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range c.vdis {
		v.locked, v.owner, v.shared = false, netip.AddrPort{}, nil
	}
}

// Used is how many bytes of data objects there are.
func (c *Cluster) Used() int64 { return c.used.Load() }

// Owner is the sheep that holds the lock of the working VDI of this name.
func (c *Cluster) Owner(name string) (netip.AddrPort, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	vid, res := c.lookup(name, "", 0)
	if res != wire.Success || !c.vdis[vid].locked {
		return netip.AddrPort{}, false
	}
	return c.vdis[vid].owner, true
}

// Lock takes the lock of the working VDI of this name through a sheep, as a client
// without marks does.
func (c *Cluster) Lock(name string, s *Sheep) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	vid, res := c.lookup(name, "", 0)
	return res == wire.Success && s.lock(c.vdis[vid], wire.LockNormal) == wire.Success
}

// Unlock gives the lock of the working VDI of this name away, whoever has it, as
// dog vdi lock unlock does.
func (c *Cluster) Unlock(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if vid, res := c.lookup(name, "", 0); res == wire.Success {
		c.vdis[vid].locked = false
	}
}

// Check compares each VDI's index with the objects there are, as dog vdi check
// does, and reports the first slot that names an object which does not exist.
func (c *Cluster) Check() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for vid := range c.vdis {
		n, index := c.inode(vid)
		if n.Name == "" {
			continue
		}
		for i := range n.Objects() {
			owner := index(i)
			if owner != 0 && c.find(wire.DataOID(owner, i)) == nil {
				return fmt.Errorf("%s (%#x): object %d of VDI %#x is missing", n.Name, vid, i, owner)
			}
		}
	}
	return nil
}

func (c *Cluster) now() uint64 {
	c.clock = max(c.clock+1, wire.PutTime(time.Now()))
	return c.clock
}

func (c *Cluster) shard(oid uint64) *shard {
	return &c.objects[(oid*0x9e3779b97f4a7c15)>>(64-uint(bits.Len(uint(len(c.objects)-1))))]
}

func (c *Cluster) find(oid uint64) *object {
	sh := c.shard(oid)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	return sh.m[oid]
}
