package backing

// MappedLender is implemented by stores whose content the kernel can show in
// memory: mapped files. It is Lender, with the same locks and the same duties of
// who has something on loan, but for one thing: the bytes must not be touched.
// They may only be handed to system calls that read them, such as writev. If the
// file was cut off behind the store's back, or its medium fails, to touch them
// ends the process, and a system call fails with EFAULT or does less than it was
// asked for.
//
// TryReadAt of such a store, if it has that, waits for nothing that a loan keeps
// busy, so that one connection may have some reads lent and others copied.
//
// The layers of this repository do not forward it.
type MappedLender interface {
	// LendMapped gives the n bytes at off, as Lender.Lend does, or nil when that is
	// not possible at once or would not pay: they are not in memory, they are too
	// few or too many, somebody writes there. It does not wait for a medium (what
	// it has found in memory the kernel may throw out before it is sent, as
	// ever), does not allocate, and may be called while other loans are out.
	LendMapped(off, n int64) []byte
	// ReturnMapped ends a loan: p is all of what LendMapped gave for off. Each loan
	// is returned once, from any goroutine.
	ReturnMapped(p []byte, off int64)
	// CopyMapped copies from a loan that is still out: dst is filled from off on.
	// It waits for nobody who writes, but perhaps for a medium. After an error
	// the store lends no more, so that who asks again asks the store.
	CopyMapped(dst []byte, off int64) error
	// Distrust tells that a system call did not take what was lent (EFAULT): the
	// store lends no more.
	Distrust()
}
