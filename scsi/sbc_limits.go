package scsi

// Limits that the Block Limits VPD page reports and the commands enforce (SBC-3
// §6.5.3). They keep one command to what a store does within an initiator's
// patience; what an initiator wants beyond it splits.
const (
	// maxCompareAndWriteBlocks is all that the CDB's length byte can say.
	maxCompareAndWriteBlocks = 255
	// maxUnmapBlocks bounds UNMAP in blocks: the field takes a limit beyond a
	// million, other than none at all, for nonsense.
	maxUnmapBlocks = 1 << 20
	// maxUnmapDescs is the number of block descriptors in one UNMAP.
	maxUnmapDescs = 256
	// maxDeallocBytes bounds what one command deallocates, or zeroes without a
	// payload.
	maxDeallocBytes = 4 << 30
	// maxWriteSameBlocks bounds WRITE SAME in blocks.
	maxWriteSameBlocks = 32 << 10
	// maxFillBytes bounds what WRITE SAME may come down to writing out.
	maxFillBytes = 64 << 20
)

// maxUnmap gives the MAXIMUM UNMAP LBA COUNT and the MAXIMUM UNMAP BLOCK
// DESCRIPTOR COUNT; zeroes if the unit has no UNMAP.
func (u *Unit) maxUnmap() (nblocks, ndescs uint64) {
	if !u.thin() {
		return 0, 0
	}
	return min(maxDeallocBytes/uint64(u.BlockSize()), maxUnmapBlocks), maxUnmapDescs
}

// maxWriteSame gives the MAXIMUM WRITE SAME LENGTH in blocks. It depends on
// whether the store zeroes without a payload, as almost every WRITE SAME wants.
// It stays below 65536: initiators take a longer one to mean that they can also
// read and write as much at once.
func (u *Unit) maxWriteSame() uint64 {
	n := uint64(maxFillBytes)
	if u.caps.zeroWriter != nil {
		n = maxDeallocBytes
	}
	return min(n/uint64(u.BlockSize()), maxWriteSameBlocks)
}
