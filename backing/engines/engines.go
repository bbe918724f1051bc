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

// mapped is how much of the files of one registry is shown in memory, in bytes,
// to be lent.
const mapped = 256 << 20

// Default makes a registry with every engine of this repository. Each call
// makes a new one, so that a program can add its own.
func Default() *backing.Registry {
	r := new(backing.Registry)
	r.Register("curve", curve.Open)
	r.Register("file", file.Lending(file.NewWindows(mapped)))
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
