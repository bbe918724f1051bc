// Package wire is Sheepdog's protocol: headers, inodes and the tables that a
// sheep gives out. Everything is little endian, as on the machines that run it.
// It has no connection and keeps no state; nothing here allocates more than
// what it was given.
package wire

// HeaderSize is the size of every request's and every response's header.
const HeaderSize = 48

// Protocol versions: of the operations below 0x80, and of the others, which the
// sheep and its administration tool use among themselves.
const (
	Version         = 2
	VersionInternal = 0x0a
)

// Op is an operation.
type Op uint8

// The operations that are used here.
const (
	OpCreateAndWrite Op = 0x01
	OpRead           Op = 0x02
	OpWrite          Op = 0x03
	OpRemove         Op = 0x04
	OpDiscard        Op = 0x05
	OpNewVDI         Op = 0x11
	OpLockVDI        Op = 0x12
	OpReleaseVDI     Op = 0x13
	OpGetVDIInfo     Op = 0x14
	OpReadVDIs       Op = 0x15
	OpFlushVDI       Op = 0x16
	OpDelVDI         Op = 0x17
	OpClusterDefault Op = 0x18
	OpNodeList       Op = 0x82
	OpKillNode       Op = 0x9a
	OpVDIStates      Op = 0xab
)

// Version is the protocol version that the operation is sent with.
func (op Op) Version() uint8 {
	if op >= 0x80 {
		return VersionInternal
	}
	return Version
}

// Flags of a request.
const (
	FlagWrite uint16 = 0x01 // a payload follows
	FlagCOW   uint16 = 0x02 // start from the object COWOID
	FlagTGT   uint16 = 0x20 // refuse if this sheep's shared view of the inode is old
)

// Limits of the format.
const (
	MaxNameLen = 256
	MaxTagLen  = 256
	// MaxObjects is how many data objects the flat index of an inode has.
	MaxObjects = 1 << 20
	// MinBlockShift and MaxBlockShift bound the size of a data object.
	MinBlockShift = 20
	MaxBlockShift = 31
	// MaxVDIs is the number of VDI ids; 0 is none.
	MaxVDIs = 1 << 24
	// VDIBitmapSize is the size of the answer to OpReadVDIs.
	VDIBitmapSize = MaxVDIs / 8
)

// InodeOID is the id of the inode object of a VDI.
func InodeOID(vid uint32) uint64 { return 1<<63 | uint64(vid)<<32 }

// DataOID is the id of a data object of a VDI.
func DataOID(vid, idx uint32) uint64 { return uint64(vid)<<32 | uint64(idx) }

// IsInode reports whether an object is an inode.
func IsInode(oid uint64) bool { return oid>>63 != 0 }

// VID is the VDI that an object belongs to.
func VID(oid uint64) uint32 { return uint32(oid>>32) & (MaxVDIs - 1) }

// Index is the number of a data object in its VDI.
func Index(oid uint64) uint32 { return uint32(oid) }

// HashVDI is where the search for a free VDI id begins: FNV-1a over the name, cut
// to 24 bits. Clients never need it, the server answers with the id.
func HashVDI(name string) uint32 {
	h := uint64(0xcbf29ce484222325)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 0x100000001b3
	}
	return uint32(h) & (MaxVDIs - 1)
}
