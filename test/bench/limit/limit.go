//go:build linux

// Package limit measures what the machine's loopback can carry at best: requests
// of 48 bytes answered by 48 bytes and a payload, or 48 bytes and a payload
// answered by 48 bytes. That is the size of iSCSI's PDUs without iSCSI: no login,
// no command window, no SCSI. Both sides batch as well as they can (one recv
// takes what has arrived, one writev answers it all), with one thread a
// connection and blocking sockets. The distance of a target from this is the
// price of its protocol and of its way of doing it.
package limit

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// headerLen is the length of a request without its payload, and of an answer
// without its payload: an iSCSI basic header segment is as long.
const headerLen = 48

// MaxPayload is the longest payload in bytes.
const MaxPayload = 16 << 20

// A header is the operation in byte 0, the tag in bytes 4 to 7, the payload's
// length in 8 to 11 and the offset on the disk in 16 to 23, big endian. An
// answer repeats the header of its request.
type header struct {
	write  bool
	tag    uint32
	length int
	offset int64
}

func (h header) put(p []byte) {
	clear(p[:headerLen])
	if h.write {
		p[0] = 1
	}
	binary.BigEndian.PutUint32(p[4:], h.tag)
	binary.BigEndian.PutUint32(p[8:], uint32(h.length))
	binary.BigEndian.PutUint64(p[16:], uint64(h.offset))
}

func parseHeader(p []byte) (header, error) {
	h := header{
		write: p[0] == 1, tag: binary.BigEndian.Uint32(p[4:]),
		length: int(binary.BigEndian.Uint32(p[8:])), offset: int64(binary.BigEndian.Uint64(p[16:])),
	}
	if p[0] > 1 || h.length > MaxPayload || h.offset < 0 {
		return h, fmt.Errorf("a header that no client of this package sends: % x", p[:headerLen])
	}
	return h, nil
}

// sockaddr wants an IPv4 address: the bench talks to 127.0.0.1 only.
func sockaddr(a netip.AddrPort) (*unix.SockaddrInet4, error) {
	if !a.Addr().Is4() {
		return nil, fmt.Errorf("%s is not an IPv4 address", a)
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, nil
}

// vector is a list of memory to send with as few system calls as possible.
type vector struct {
	iov []unix.Iovec
}

// maxVector is the kernel's limit (UIO_MAXIOV).
const maxVector = 1024

func (v *vector) full() bool { return len(v.iov) >= maxVector-2 }

// add appends p, which must stay unchanged and in place until sent. Memory that
// begins where the last piece ends makes that one longer.
func (v *vector) add(p []byte) {
	if len(p) == 0 {
		return
	}
	if n := len(v.iov); n > 0 {
		last := &v.iov[n-1]
		if uintptr(unsafe.Pointer(last.Base))+uintptr(last.Len) == uintptr(unsafe.Pointer(&p[0])) {
			last.SetLen(int(last.Len) + len(p))
			return
		}
	}
	i := unix.Iovec{Base: &p[0]}
	i.SetLen(len(p))
	v.iov = append(v.iov, i)
}

// send writes all of it and empties the vector.
func (v *vector) send(fd int) error {
	for rest := v.iov; len(rest) > 0; {
		r, _, errno := unix.Syscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&rest[0])), uintptr(len(rest)))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return errno
		}
		for n := uint64(r); n > 0; {
			if n < rest[0].Len {
				rest[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(rest[0].Base), n))
				rest[0].SetLen(int(rest[0].Len - n))
				break
			}
			n -= rest[0].Len
			rest = rest[1:]
		}
	}
	v.iov = v.iov[:0]
	return nil
}

func recv(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Read(fd, p)
		if err != unix.EINTR {
			return n, err
		}
	}
}
