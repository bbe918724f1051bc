package wire

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

// Places in an inode, in bytes.
const (
	OffName      = 0
	OffTag       = 256
	OffSnapCtime = 520
	OffVDISize   = 536
	OffIndex     = 4664
	OffRefs      = OffIndex + 4*MaxObjects
	// InodeHeaderSize is everything before the index.
	InodeHeaderSize = OffIndex
	// RefreshSize is the header with the whole index. A read of exactly this
	// length makes a shared lock's view valid again.
	RefreshSize = OffRefs
	// InodeSize is the whole object, with the reference counts that belong to
	// the servers alone.
	InodeSize = OffRefs + 8*MaxObjects
)

// Inode is what an inode says before its index.
type Inode struct {
	Name, Tag   string
	CreateTime  uint64 // seconds<<32 | nanoseconds
	SnapCtime   uint64 // not 0: this is a snapshot
	Size        uint64 // bytes
	CopyPolicy  uint8  // 0: replication; else data strips/2 <<4 | parity strips
	StorePolicy uint8  // 0: flat index
	Copies      uint8
	BlockShift  uint8
	SnapID      uint32
	VID, Parent uint32
}

// ErrInode is returned for an inode that cannot be one.
var ErrInode = errors.New("sheepdog: inode makes no sense")

// IndexOffset is where an inode keeps the slot of a data object.
func IndexOffset(idx uint32) uint32 { return OffIndex + 4*idx }

// Objects is how many data objects the VDI has.
func (n *Inode) Objects() uint32 {
	return uint32((n.Size + 1<<n.BlockShift - 1) >> n.BlockShift)
}

// ObjectSize is the size of a data object in bytes.
func (n *Inode) ObjectSize() int64 { return 1 << n.BlockShift }

// Snapshot reports whether the VDI is a snapshot and thus never changes.
func (n *Inode) Snapshot() bool { return n.SnapCtime != 0 }

// ParseInode reads and checks the header of an inode: b has at least
// InodeHeaderSize bytes. An inode without a name is that of a deleted VDI and no
// error.
func ParseInode(b []byte) (Inode, error) {
	if len(b) < InodeHeaderSize {
		return Inode{}, fmt.Errorf("%w: %d bytes", ErrInode, len(b))
	}
	n := Inode{
		Name: cString(b[OffName:OffTag]), Tag: cString(b[OffTag:512]),
		CreateTime: le.Uint64(b[512:]), SnapCtime: le.Uint64(b[520:]), Size: le.Uint64(b[536:]),
		CopyPolicy: b[552], StorePolicy: b[553], Copies: b[554], BlockShift: b[555],
		SnapID: le.Uint32(b[556:]), VID: le.Uint32(b[560:]), Parent: le.Uint32(b[564:]),
	}
	switch {
	case n.BlockShift < MinBlockShift || n.BlockShift > MaxBlockShift:
		return n, fmt.Errorf("%w: data objects of 2^%d bytes", ErrInode, n.BlockShift)
	case n.VID == 0 || n.VID >= MaxVDIs:
		return n, fmt.Errorf("%w: VDI id %#x", ErrInode, n.VID)
	case n.StorePolicy == 0 && n.Size > MaxObjects<<n.BlockShift:
		return n, fmt.Errorf("%w: %d bytes are more than its index can hold", ErrInode, n.Size)
	case n.Size > 1<<62:
		return n, fmt.Errorf("%w: %d bytes", ErrInode, n.Size)
	}
	return n, nil
}

// Put writes the header of an inode: b has InodeHeaderSize bytes.
func (n *Inode) Put(b []byte) {
	clear(b[:InodeHeaderSize])
	copy(b[OffName:OffTag], n.Name)
	copy(b[OffTag:512], n.Tag)
	le.PutUint64(b[512:], n.CreateTime)
	le.PutUint64(b[520:], n.SnapCtime)
	le.PutUint64(b[536:], n.Size)
	b[552], b[553], b[554], b[555] = n.CopyPolicy, n.StorePolicy, n.Copies, n.BlockShift
	le.PutUint32(b[556:], n.SnapID)
	le.PutUint32(b[560:], n.VID)
	le.PutUint32(b[564:], n.Parent)
}

// Time is a time as inodes have it.
func Time(t uint64) time.Time { return time.Unix(int64(t>>32), int64(uint32(t))) }

// PutTime is the time as inodes have it.
func PutTime(t time.Time) uint64 { return uint64(t.Unix())<<32 | uint64(t.Nanosecond()) }

// Slot reads slot i of a piece of an index.
func Slot(index []byte, i int) uint32 { return le.Uint32(index[4*i:]) }

// PutSlot writes slot i of a piece of an index.
func PutSlot(index []byte, i int, vid uint32) { le.PutUint32(index[4*i:], vid) }

// PutNames is the payload of a lookup: name and tag, padded. Both were checked
// by CheckName.
func PutNames(name, tag string) []byte {
	b := make([]byte, MaxNameLen+MaxTagLen)
	copy(b, name)
	copy(b[MaxNameLen:], tag)
	return b
}

// ParseNames reads the payload of a lookup, with or without a tag.
func ParseNames(b []byte) (name, tag string, err error) {
	switch len(b) {
	case MaxNameLen:
	case MaxNameLen + MaxTagLen:
		tag = cString(b[MaxNameLen:])
	default:
		return "", "", fmt.Errorf("sheepdog: names of %d bytes", len(b))
	}
	return cString(b[:MaxNameLen]), tag, nil
}

// CheckName checks a VDI's name or a tag, which are kept with a zero at the end.
func CheckName(s string) error {
	if len(s) >= MaxNameLen || bytes.IndexByte([]byte(s), 0) >= 0 {
		return fmt.Errorf("sheepdog: name %.20q… is longer than %d bytes or has a zero in it", s, MaxNameLen-1)
	}
	return nil
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
