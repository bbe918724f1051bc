// Package aio is Linux AIO (io_submit(2)) for files opened with O_DIRECT: many
// reads and writes are begun by one system call and waited for by none.
//
// Completions are put into a ring by the interrupt of the medium and found there
// without a system call; an eventfd in Go's poller says when to look. Nothing of
// this is bound to a thread, which is what sets it apart from io_uring
// (docs/adr/0021-linux-aio-and-not-io-uring.md).
//
// Every request is begun with RWF_NOWAIT, so that beginning it never waits
// for the medium: what would have to wait comes back with EAGAIN.
package aio

import (
	"errors"
	"syscall"
)

// ErrUnavailable: this system, or this file, has no AIO that does not wait.
var ErrUnavailable = errors.New("Linux AIO is not available")

// Op is one read or write. It belongs to the queue, with the memory of Buf, from
// Submit until it is given to the queue's function.
type Op struct {
	Buf   []byte // not empty
	Off   int64  // bytes
	Write bool
	Owner any // the caller's

	// Valid when the queue gives the Op back.
	N   int           // bytes moved, perhaps fewer than asked for, if Errno is 0
	Err syscall.Errno // EAGAIN: it would have had to wait, or was not begun

	next *Op
}

// Faults change what the kernel says, where a function is set.
type Faults struct {
	// Submit is asked before n requests are begun: how many of them may be, at
	// least one, or why the first may not.
	Submit func(n int) (int, syscall.Errno)
	// Result is the result of a request that has moved res bytes, or failed with
	// the error -res.
	Result func(op *Op, res int64) int64
}

// Depth bounds how many requests of one queue the kernel has. What does not fit
// waits in the queue.
const Depth = 256
