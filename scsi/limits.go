package scsi

// Limits bound what one command may ask of a unit.
type Limits struct {
	Transfer  int64  // bytes of READ and WRITE
	Unmap     uint64 // blocks of UNMAP; 0: the unit does not have it
	WriteSame uint64 // blocks of WRITE SAME
}

// Limits are what the Block Limits VPD page says (SBC-3 §6.5.3), for fabrics that
// split what their clients ask for.
func (u *Unit) Limits() Limits {
	unmap, _ := u.maxUnmap()
	return Limits{Transfer: u.maxTransfer, Unmap: unmap, WriteSame: u.maxWriteSame()}
}

// PhysicalBlockSize is the physical block length in bytes.
func (u *Unit) PhysicalBlockSize() int { return 1 << (int(u.blockShift) + u.physicalExp) }

// Rotational reports whether the medium is said to spin.
func (u *Unit) Rotational() bool {
	rate := u.cfg.Load().RotationRate
	return rate > 1 || rate == 0 && u.info.Rotational
}
