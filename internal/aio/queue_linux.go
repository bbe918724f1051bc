//go:build linux && (amd64 || arm64 || riscv64 || loong64 || ppc64le)

package aio

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxBatch bounds the requests of one io_submit, and the completions that are
// told at once.
const maxBatch = 64

// Queue begins requests for one file. Safe for concurrent use.
type Queue struct {
	fd     int
	done   func([]*Op)
	faults Faults // none but in tests
	ring   ring
	wake   *os.File // the eventfd, which is never read: Go's poller sees its edges

	mu         sync.Mutex
	head, tail *Op // wait for a slot
	slots      []slot
	free       []uint32
	closed     bool
}

// slot is a place for a request that the kernel has. It keeps what the request
// points to in the sight of the garbage collector.
type slot struct {
	cb iocb
	op *Op
}

// New makes a queue for the open file fd, which must stay open until Close. done
// is given the requests that have ended, in batches; it must not wait, may call
// Submit, and the slice is only valid during the call.
//
// ErrUnavailable: the kernel does not know AIO or has no room for another queue
// (fs.aio-max-nr), or the file is one whose requests would wait.
func New(fd int, done func([]*Op)) (*Queue, error) { return NewFaulty(fd, done, Faults{}) }

// NewFaulty is New for tests of what is to become of a kernel's answers.
func NewFaulty(fd int, done func([]*Op), f Faults) (*Queue, error) {
	q := &Queue{fd: fd, done: done, faults: f, slots: make([]slot, Depth), free: make([]uint32, Depth)}
	if err := q.ring.setup(Depth); err == syscall.EAGAIN {
		return nil, fmt.Errorf("%w: fs.aio-max-nr is used up: %w", ErrUnavailable, err)
	} else if err != nil {
		return nil, fmt.Errorf("%w: io_setup: %w", ErrUnavailable, err)
	}
	raw, err := q.ready()
	if err != nil {
		q.ring.destroy()
		if q.wake != nil {
			q.wake.Close()
		}
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	go q.reap(raw)
	return q, nil
}

// ready makes the eventfd and the slots, and finds out whether the file will do.
func (q *Queue) ready() (syscall.RawConn, error) {
	efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	q.wake = os.NewFile(uintptr(efd), "aio")
	// NewFile does not say whether the poller has taken it (fs.epoll.max_user_watches).
	if err := q.wake.SetReadDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	for i := range q.slots {
		q.free[i] = uint32(i)
		q.slots[i].cb = iocb{data: uint64(i), fd: uint32(q.fd), rwFlags: unix.RWF_NOWAIT, flags: flagResFD, resFD: uint32(efd)}
	}
	// A read of nothing: a file that cannot begin one without waiting refuses it.
	cb := q.slots[0].cb
	cb.data = noSlot
	for {
		_, errno := q.submit([]*iocb{&cb})
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 {
			return nil, fmt.Errorf("io_submit: %w", errno)
		}
		return q.wake.SyscallConn()
	}
}

// noSlot marks the request that asks whether there can be any.
const noSlot = 1<<64 - 1

// Submit begins ops, or has them wait in the queue if there are too many. It does
// not wait for a medium, and comes before Close. The slice is the caller's.
//
// To write to a file it waits while the file system is frozen (fsfreeze(8), a
// snapshot below), RWF_NOWAIT or not; then only calls with writes do, as long as
// no more than Depth requests are under way.
func (q *Queue) Submit(ops []*Op) {
	var cbs [maxBatch]*iocb
	q.mu.Lock()
	for _, op := range ops {
		op.next = nil
		if q.tail != nil {
			q.tail.next = op
		} else {
			q.head = op
		}
		q.tail = op
	}
	// In one step, so that nobody else takes them.
	n := q.takeLocked(cbs[:])
	q.mu.Unlock()
	q.begin(cbs[:], n)
}

// begin gives the kernel n requests that were taken, and what waits, as far as
// there is room.
func (q *Queue) begin(cbs []*iocb, n int) {
	for n > 0 {
		for at := 0; at < n; {
			m, errno := q.submit(cbs[at:n])
			at += m
			if m > 0 || errno == syscall.EINTR {
				continue
			}
			// The kernel has no room, or does not do it: of the medium that says
			// nothing.
			q.refused(cbs[at].data)
			at++
		}
		q.mu.Lock()
		n = q.takeLocked(cbs)
		q.mu.Unlock()
	}
}

// takeLocked moves waiting requests into free slots.
func (q *Queue) takeLocked(cbs []*iocb) (n int) {
	for n < len(cbs) && q.head != nil && len(q.free) > 0 {
		op := q.head
		if q.head = op.next; q.head == nil {
			q.tail = nil
		}
		op.next = nil
		i := q.free[len(q.free)-1]
		q.free = q.free[:len(q.free)-1]
		s := &q.slots[i]
		s.op = op
		s.cb.opcode = opRead
		if op.Write {
			s.cb.opcode = opWrite
		}
		s.cb.buf, s.cb.n, s.cb.off = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(op.Buf)))), uint64(len(op.Buf)), op.Off
		cbs[n] = &s.cb
		n++
	}
	return n
}

// refused ends a request that could not be begun.
func (q *Queue) refused(i uint64) {
	q.mu.Lock()
	op := q.releaseLocked(i, -int64(syscall.EAGAIN))
	q.mu.Unlock()
	q.done([]*Op{op})
}

// releaseLocked frees a slot and notes how its request ended.
func (q *Queue) releaseLocked(i uint64, res int64) *Op {
	op := q.slots[i].op
	q.slots[i].op = nil
	q.free = append(q.free, uint32(i))
	if q.faults.Result != nil {
		res = q.faults.Result(op, res)
	}
	op.N, op.Err = int(res), 0
	if res < 0 {
		op.N, op.Err = 0, syscall.Errno(-res)
	}
	return op
}

// reap tells the ends of requests until the queue is closed, and then gives the
// ring back.
func (q *Queue) reap(raw syscall.RawConn) {
	var events [maxBatch]event
	var ops [maxBatch]*Op
	var cbs [maxBatch]*iocb
	n := 0
	look := func(uintptr) bool {
		n = q.ring.take(events[:])
		return n > 0
	}
	for raw.Read(look) == nil {
		ended := ops[:0]
		q.mu.Lock()
		for _, e := range events[:n] {
			if e.data != noSlot {
				ended = append(ended, q.releaseLocked(e.data, e.res))
			}
		}
		k := q.takeLocked(cbs[:])
		q.mu.Unlock()
		q.begin(cbs[:], k)
		if len(ended) > 0 {
			q.done(ended)
		}
		clear(ended)
	}
	q.ring.destroy()
}

// Close gives the queue up. It must be idle: all requests have been given back.
// Its goroutine and its memory go soon after.
func (q *Queue) Close() {
	q.mu.Lock()
	idle := !q.closed && q.head == nil && len(q.free) == len(q.slots)
	again := q.closed
	q.closed = true
	q.mu.Unlock()
	if again {
		return
	}
	if !idle {
		panic("aio: a queue was closed with requests in it")
	}
	q.wake.Close()
}

// iocb is struct iocb of linux/aio_abi.h, little endian.
type iocb struct {
	data    uint64
	_       uint32 // aio_key
	rwFlags uint32
	opcode  uint16
	_       int16 // aio_reqprio
	fd      uint32
	buf     uint64
	n       uint64
	off     int64
	_       uint64
	flags   uint32
	resFD   uint32
}

const (
	opRead    = 0 // IOCB_CMD_PREAD
	opWrite   = 1 // IOCB_CMD_PWRITE
	flagResFD = 1 // IOCB_FLAG_RESFD
)

// event is struct io_event.
type event struct {
	data, _ uint64
	res, _  int64
}

// ring is the kernel's ring of completions, whose address is the context's name.
// One goroutine takes from it.
type ring struct {
	ctx  uintptr
	head *ringHead
	ev   []event
}

// ringHead is struct aio_ring, which is no part of the documented interface, and
// which has not changed since it was given this magic number. libaio reads it.
type ringHead struct {
	id, nr, head, tail uint32
	magic              uint32
	compat, incompat   uint32
	length             uint32
}

const ringMagic = 0xa10a10a1

var errUnknownRing = errors.New("a ring of another layout")

func (r *ring) setup(depth int) error {
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, uintptr(depth), uintptr(unsafe.Pointer(&r.ctx)), 0); errno != 0 {
		return errno
	}
	r.head = *(**ringHead)(unsafe.Pointer(&r.ctx))
	if r.head.magic != ringMagic || r.head.incompat != 0 || uintptr(r.head.length) < unsafe.Sizeof(ringHead{}) {
		r.destroy()
		return errUnknownRing
	}
	r.ev = unsafe.Slice((*event)(unsafe.Add(unsafe.Pointer(r.head), r.head.length)), r.head.nr)
	return nil
}

// take moves completions out of the ring.
func (r *ring) take(to []event) (n int) {
	h := r.head.head
	for t := atomic.LoadUint32(&r.head.tail); h != t && n < len(to); n++ {
		to[n] = r.ev[h]
		if h++; h == uint32(len(r.ev)) {
			h = 0
		}
	}
	if n > 0 {
		atomic.StoreUint32(&r.head.head, h)
	}
	return n
}

// destroy ends the context. It waits for what is in it: nothing. The addresses are
// forgotten first, since they may be the garbage collector's the next moment.
func (r *ring) destroy() {
	r.head, r.ev = nil, nil
	unix.Syscall(unix.SYS_IO_DESTROY, r.ctx, 0, 0)
}

// submit is io_submit: it returns how many of the requests were begun, at least
// one, or why the first was not.
func (q *Queue) submit(cbs []*iocb) (int, syscall.Errno) {
	if q.faults.Submit != nil {
		n, errno := q.faults.Submit(len(cbs))
		if errno != 0 {
			return 0, errno
		}
		cbs = cbs[:n]
	}
	n, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, q.ring.ctx, uintptr(len(cbs)), uintptr(unsafe.Pointer(unsafe.SliceData(cbs))))
	switch {
	case errno != 0:
		return 0, errno
	case n == 0:
		return 0, syscall.EAGAIN
	}
	return int(n), 0
}
