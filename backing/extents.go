package backing

// ExtentJoiner gives an Extenter's fn extents of one state that follow each other
// as one. For one goroutine.
type ExtentJoiner struct {
	fn  func(Extent) bool
	run Extent
}

// JoinExtents begins at off.
func JoinExtents(off int64, fn func(Extent) bool) *ExtentJoiner {
	return &ExtentJoiner{fn: fn, run: Extent{Off: off}}
}

// Add says of the next n bytes whether they are allocated. false: fn wants no more,
// and neither Add nor End may be called again.
func (j *ExtentJoiner) Add(n int64, allocated bool) bool {
	if j.run.Len > 0 && j.run.Allocated != allocated {
		if !j.fn(j.run) {
			return false
		}
		j.run = Extent{Off: j.run.Off + j.run.Len}
	}
	j.run.Allocated = allocated
	j.run.Len += n
	return true
}

// End gives what is left.
func (j *ExtentJoiner) End() {
	if j.run.Len > 0 {
		j.fn(j.run)
	}
}
