package conndrive

import (
	"sync"
	"syscall"
	"unsafe"
)

// canWritev says that writev below works: a connection's reader can then send
// without waiting, and take loans.
const canWritev = true

// maxVectors is the kernel's UIO_MAXIOV.
const maxVectors = 1024

// vectors is the system's form of what is to be sent.
type vectors [maxVectors]syscall.Iovec

// vectorPool is shared by all connections: one that sends nothing holds none.
var vectorPool = sync.Pool{New: func() any { return new(vectors) }}

// writev writes the front of bufs to a socket as far as it takes it at once.
func (v *vectors) writev(fd uintptr, bufs [][]byte) (int, error) {
	k := 0
	for _, b := range bufs {
		if k == maxVectors {
			break
		}
		if len(b) > 0 {
			v[k].Base = &b[0]
			v[k].SetLen(len(b))
			k++
		}
	}
	if k == 0 {
		return 0, nil
	}
	n, _, errno := syscall.Syscall(syscall.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&v[0])), uintptr(k))
	clear(v[:k])
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// canReadv says that readv below works.
const canReadv = true

// pair is the system's form of two buffers to be read into.
type pair [2]syscall.Iovec

// readv reads what there is into a, and what is behind it into b. Neither is
// empty.
func (v *pair) readv(fd uintptr, a, b []byte) (int, error) {
	v[0].Base, v[1].Base = &a[0], &b[0]
	v[0].SetLen(len(a))
	v[1].SetLen(len(b))
	n, _, errno := syscall.Syscall(syscall.SYS_READV, fd, uintptr(unsafe.Pointer(&v[0])), 2)
	*v = pair{}
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
