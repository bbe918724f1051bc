package sheepfake

import (
	"net/netip"

	"blockgate/backing/sheepdog/internal/wire"
)

// Request is what a fault is decided by.
type Request struct {
	Op     wire.Op // the operation's number on the wire
	OID    uint64
	Offset uint32
	Length uint32
	Flags  uint16
	Sheep  netip.AddrPort // that received it
}

// Data reports whether the request reads or changes a data object or an inode.
func (r Request) Data() bool { return r.Op >= wire.OpCreateAndWrite && r.Op <= wire.OpDiscard }

// Inode reports whether the object is an inode.
func (r Request) Inode() bool { return r.Op <= wire.OpDiscard && wire.IsInode(r.OID) }

// IndexUpdate reports whether the request writes slots of an inode's index.
func (r Request) IndexUpdate() bool {
	return r.Op == wire.OpWrite && wire.IsInode(r.OID) && r.Offset >= wire.OffIndex
}

// Kind is a kind of fault.
type Kind int

// The faults there are. After those that close, the connection is gone and the
// sheep goes on.
const (
	None        Kind = iota
	CloseBefore      // close without doing anything
	CloseAfter       // do it and close without an answer
	Torn             // do it and close after the first Bytes bytes of the answer
	Swallow          // never answer, do nothing
	Answer           // answer Result, do nothing
	Late             // answer once Until is closed; with Before also do it only then
)

// Fault says what happens to a request.
type Fault struct {
	Kind   Kind
	Bytes  int
	Result uint32
	Until  <-chan struct{}
	Before bool
}
