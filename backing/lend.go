package backing

// Lender is implemented by stores whose content lies in memory, so that it can
// be sent from where it is. It is for a caller that would otherwise copy with
// ReadAt, send the copy and forget it.
//
// A loan is a lock on the range: until it is returned the bytes do not change,
// and whatever would change or unmap them (WriteAt, Discard, CompareAndWrite,
// Close, …) waits. Who holds a loan must therefore not wait for anything that
// such a call might keep busy, above all for no peer and for no other call of
// the same store: before that it copies what it still needs and returns the
// loan.
//
// The layers of this repository do not forward it: each wants to see the reads.
type Lender interface {
	// Lend gives the n bytes at off, exactly as ReadAt would give them now, or
	// nil when they cannot be had at once: somebody writes there, they do not lie
	// in one piece, the range is outside the store, or the store is closed. ReadAt then tells. The bytes must not be modified. Lend never waits, so
	// a caller may hold many loans, of the same bytes too. It does not allocate.
	Lend(off, n int64) []byte
	// Return ends a loan: p is what Lend gave for off. Each loan is returned once,
	// from any goroutine, and its bytes must not be touched afterwards.
	Return(p []byte, off int64)
}
