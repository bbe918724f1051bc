package ceph

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/ebitengine/purego"
	"golang.org/x/sys/unix"
)

// eventFD is EVENT_TYPE_EVENTFD of librbd.h.
const eventFD = 2

// StartPolling has the ends of the image's operations told by an eventfd. It goes
// before the first of them, and stop before the image is closed, when there is none
// any more. Callbacks would cost some ten system calls each, as
// they come from threads that are not Go's, and the library makes them one after
// the other.
func (l *Lib) StartPolling(image uintptr) (stop func(), err error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	events := os.NewFile(uintptr(fd), "eventfd")
	if err := Errno(l.SetNotification(image, int32(fd), eventFD)); err != nil {
		events.Close()
		return nil, fmt.Errorf("rbd_set_image_notification: %w", err)
	}
	polled := make(chan struct{})
	go func() {
		defer close(polled)
		l.poll(image, events)
	}()
	return func() {
		events.Close()
		<-polled
	}, nil
}

// poll hands out the results of operations that have ended.
func (l *Lib) poll(image uintptr, events *os.File) {
	var count [8]byte
	ended := make([]uintptr, 64)
	for {
		if _, err := events.Read(count[:]); err != nil {
			return // closed
		}
		// While there is something, who has got it runs first: what ends meanwhile is
		// taken without sleeping.
		for n := 1; n > 0; runtime.Gosched() {
			r, _, _ := purego.SyscallN(l.aioPoll, image, uintptr(unsafe.Pointer(&ended[0])), uintptr(len(ended)))
			n = max(int(int32(r)), 0)
			for _, completion := range ended[:n] {
				slot, _, _ := purego.SyscallN(l.aioArg, completion)
				result, _, _ := purego.SyscallN(l.aioResult, completion)
				purego.SyscallN(l.aioRelease, completion)
				l.slots.done[slot] <- int64(result)
			}
		}
	}
}
