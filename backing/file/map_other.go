//go:build !linux

package file

import (
	"syscall"
	"unsafe"
)

func reserve(int) (unsafe.Pointer, error)      { return nil, syscall.ENOSYS }
func show(unsafe.Pointer, handle, int64) error { return syscall.ENOSYS }
func hide(unsafe.Pointer)                      {}
func populate([]byte)                          {}
func resident([]byte) bool                     { return false }
func whole(handle) bool                        { return false }
func mappable(handle, geometry, bool) bool     { return false }
