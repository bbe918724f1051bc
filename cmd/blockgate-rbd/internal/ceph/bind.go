package ceph

import (
	"fmt"
	"reflect"

	"github.com/ebitengine/purego"
)

// bind finds every function that Lib names.
func (l *Lib) bind(rados, rbd uintptr) error {
	find := func(name string) (uintptr, error) {
		for _, h := range []uintptr{rbd, rados} {
			if p, err := purego.Dlsym(h, name); err == nil && p != 0 {
				return p, nil
			}
		}
		return 0, fmt.Errorf("%s has no %s: this librbd is too old, version 14 (Nautilus) or newer is needed: update the package librbd1", soRBD, name)
	}
	v := reflect.ValueOf(l).Elem()
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("c")
		if name == "" {
			continue
		}
		p, err := find(name)
		if err != nil {
			return err
		}
		purego.RegisterFunc(v.Field(i).Addr().Interface(), p)
	}
	for name, at := range map[string]*uintptr{
		"rbd_aio_create_completion": &l.aioCreate, "rbd_aio_read": &l.aioRead, "rbd_aio_write": &l.aioWrite,
		"rbd_aio_write_zeroes": &l.aioZeroes, "rbd_aio_compare_and_write": &l.aioCompare,
		"rbd_aio_flush": &l.aioFlush, "rbd_aio_get_return_value": &l.aioResult, "rbd_aio_release": &l.aioRelease,
		"rbd_aio_wait_for_complete": &l.aioWait,
	} {
		p, err := find(name)
		if err != nil {
			return err
		}
		*at = p
	}
	return nil
}
