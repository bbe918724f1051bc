// Package engines is the set of storage engines that are built in.
package engines

import (
	"blockgate/backing"
	"blockgate/backing/curve"
	"blockgate/backing/file"
	"blockgate/backing/nbd"
	"blockgate/backing/null"
	"blockgate/backing/plugin"
	"blockgate/backing/ram"
	"blockgate/backing/sheepdog"
)

// Default makes a registry with every engine of this repository. Each call
// makes a new one, so that a program can add its own.
func Default() *backing.Registry {
	r := new(backing.Registry)
	r.Register("curve", curve.Open)
	r.Register("file", file.Open)
	for _, scheme := range nbd.Schemes() {
		r.Register(scheme, nbd.Opener(scheme))
	}
	r.Register("gluster", plugin.Engine("gluster"))
	r.Register("null", null.Open)
	r.Register("ram", ram.Open)
	r.Register("rbd", plugin.Engine("rbd"))
	r.Register("sheepdog", sheepdog.Open)
	return r
}
