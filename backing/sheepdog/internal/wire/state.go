package wire

import (
	"fmt"
	"net/netip"
)

// Sizes of the records in the answers to OpNodeList and OpVDIStates.
const (
	NodeSize     = 80
	VDIStateSize = 1428
	MaxNodes     = 6144
	nodeIDSize   = 40
)

// NodeID names a sheep by its address.
type NodeID = netip.AddrPort

// A node id is the address with 16 bytes, of which IPv4 takes the last four, and
// the port in the order of the machine.
func parseNodeID(b []byte) NodeID {
	ip := netip.AddrFrom16([16]byte(b))
	if [12]byte(b) == [12]byte{} && b[12] != 0 {
		ip = netip.AddrFrom4([4]byte(b[12:]))
	}
	return netip.AddrPortFrom(ip.Unmap(), le.Uint16(b[16:]))
}

func putNodeID(b []byte, n NodeID) {
	clear(b[:nodeIDSize])
	if !n.IsValid() {
		return
	}
	if n.Addr().Is4() {
		a := n.Addr().As4()
		copy(b[12:], a[:])
	} else {
		a := n.Addr().As16()
		copy(b, a[:])
	}
	le.PutUint16(b[16:], n.Port())
}

// ParseNodes reads the answer to OpNodeList: the sheep that are members of the
// cluster.
func ParseNodes(b []byte) ([]NodeID, error) {
	if len(b)%NodeSize != 0 || len(b) > MaxNodes*NodeSize {
		return nil, fmt.Errorf("sheepdog: list of nodes of %d bytes", len(b))
	}
	list := make([]NodeID, 0, len(b)/NodeSize)
	for ; len(b) > 0; b = b[NodeSize:] {
		list = append(list, parseNodeID(b[24:]))
	}
	return list, nil
}

// PutNodes writes the answer to OpNodeList.
func PutNodes(nodes []NodeID) []byte {
	b := make([]byte, len(nodes)*NodeSize)
	for i, n := range nodes {
		putNodeID(b[i*NodeSize+24:], n)
	}
	return b
}

// States of a VDI's lock.
const (
	Unlocked   uint32 = 1
	Locked     uint32 = 2
	SharedLock uint32 = 3
)

// VDIState is what the cluster knows about a VDI beside its inode.
type VDIState struct {
	VID       uint32
	Snapshot  bool
	LockState uint32
	Owner     NodeID // the sheep through which a normal lock was taken
}

// FindVDIState looks a VDI up in the answer to OpVDIStates.
func FindVDIState(b []byte, vid uint32) (VDIState, bool, error) {
	if len(b)%VDIStateSize != 0 {
		return VDIState{}, false, fmt.Errorf("sheepdog: VDI states of %d bytes", len(b))
	}
	for ; len(b) > 0; b = b[VDIStateSize:] {
		if le.Uint32(b) != vid {
			continue
		}
		s := VDIState{VID: vid, Snapshot: b[5] != 0, LockState: le.Uint32(b[16:])}
		if s.LockState == Locked {
			s.Owner = parseNodeID(b[20:])
		}
		return s, true, nil
	}
	return VDIState{}, false, nil
}

// PutVDIStates writes the answer to OpVDIStates.
func PutVDIStates(states []VDIState) []byte {
	b := make([]byte, len(states)*VDIStateSize)
	for i, s := range states {
		p := b[i*VDIStateSize:]
		le.PutUint32(p, s.VID)
		if s.Snapshot {
			p[5] = 1
		}
		le.PutUint32(p[16:], s.LockState)
		putNodeID(p[20:], s.Owner)
	}
	return b
}
