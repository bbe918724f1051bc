package scsi

import (
	"encoding/binary"
	"errors"
	"math"

	"blockgate/backing"
)

// Lengths in bytes of the GET LBA STATUS parameter data's header and of one
// descriptor (SBC-3 §5.4.2), and the most descriptors one command gives.
const (
	lbaStatusHeaderLen = 8
	lbaStatusDescLen   = 16
	lbaStatusMaxDescs  = 4096
)

// Provisioning states of a descriptor.
const (
	lbaMapped      = 0
	lbaDeallocated = 1
)

// lbaStatusRow is the row of GET LBA STATUS.
func lbaStatusRow() Command {
	return Command{
		Name: "GET LBA STATUS(16)", Op: 0x9e, SA: 0x12,
		Usage: []byte{0x9e, 0x1f, useBytes, useBytes, useBytes, useBytes, useBytes, useBytes, useBytes, useBytes,
			useBytes, useBytes, useBytes, useBytes, 0, 0},
		Types: TypeDisk, Dir: DirIn, Access: AccessRead, Reserve: ResRead,
		Medium: true, Run: getLBAStatus, Supported: (*Unit).TellsMapped,
	}
}

// TellsMapped reports whether the unit has GET LBA STATUS, since it has a true
// answer. Of a medium whose blocks may be deallocated, and whose store does not tell
// which are, it would say that what was just unmapped or erased is mapped.
func (u *Unit) TellsMapped() bool { return u.caps.extenter != nil || !u.thin() }

// getLBAStatus is GET LBA STATUS (SBC-3 §5.4). Where nothing can be deallocated, or
// the place of the file does not tell after all, every block is mapped.
func getLBAStatus(t *Task) {
	u := t.unit
	lba := binary.BigEndian.Uint64(t.CDB[2:])
	alloc := int64(binary.BigEndian.Uint32(t.CDB[10:]))
	if s := checkRange(u, lba, 1); s != nil {
		t.Fail(*s)
		return
	}
	list := lbaStatusList{
		next: lba, bs: int64(u.BlockSize()),
		limit: min(lbaStatusMaxDescs, max(1, int((alloc-lbaStatusHeaderLen)/lbaStatusDescLen))),
	}
	off, n := byteOffset(u, lba), int64(u.Blocks()-lba)*list.bs
	err := error(backing.ErrNotSupported)
	if u.caps.extenter != nil {
		err = u.caps.extenter.Extents(t.Context(), off, n, list.extent)
	}
	if errors.Is(err, backing.ErrNotSupported) {
		list.descs, list.next, list.run = list.descs[:0], lba, backing.Extent{}
		list.extent(backing.Extent{Off: off, Len: n, Allocated: true})
	} else if !storeOK(t, err, AccessRead, off) {
		return
	}
	list.flush()

	p := make([]byte, lbaStatusHeaderLen, lbaStatusHeaderLen+len(list.descs)*lbaStatusDescLen)
	for _, d := range list.descs {
		p = binary.BigEndian.AppendUint64(p, d.lba)
		p = binary.BigEndian.AppendUint32(p, d.nblocks)
		p = append(p, d.state, 0, 0, 0)
	}
	binary.BigEndian.PutUint32(p, uint32(len(p)-4))
	t.Respond(p, alloc)
}

// lbaStatusDesc is one run of blocks with the same provisioning state.
type lbaStatusDesc struct {
	lba     uint64
	nblocks uint32
	state   byte
}

// lbaStatusList makes descriptors of whole blocks from extents of bytes. A block
// of which any byte is allocated is mapped.
type lbaStatusList struct {
	bs    int64
	limit int            // descriptors wanted
	run   backing.Extent // adjacent extents of one state, not yet in descs
	next  uint64         // first block that descs does not cover
	descs []lbaStatusDesc
}

// extent takes the next extent; false means that no more are wanted.
func (l *lbaStatusList) extent(e backing.Extent) bool {
	if l.run.Len > 0 && e.Allocated == l.run.Allocated {
		l.run.Len += e.Len
		return true
	}
	l.flush()
	l.run = e
	return len(l.descs) < l.limit
}

// flush turns the run into descriptors. What is left of a block at the end of a
// hole goes to the allocated run that follows.
func (l *lbaStatusList) flush() {
	end := l.run.Off + l.run.Len
	state := byte(lbaDeallocated)
	if l.run.Allocated {
		end += l.bs - 1
		state = lbaMapped
	}
	last := uint64(end / l.bs)
	l.run = backing.Extent{}
	for l.next < last && len(l.descs) < l.limit {
		first := l.next
		// A hole of less than a block between two allocated runs is no run.
		if n := len(l.descs); n > 0 && l.descs[n-1].state == state {
			d := &l.descs[n-1]
			k := min(last-first, uint64(math.MaxUint32-d.nblocks))
			d.nblocks += uint32(k)
			first += k
			l.next = first
			if k > 0 {
				continue
			}
		}
		k := min(last-first, math.MaxUint32)
		l.descs = append(l.descs, lbaStatusDesc{first, uint32(k), state})
		l.next = first + k
	}
}
