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

// DefaultMapped is Options.Mapped unless something else is asked for.
const DefaultMapped = 256 << 20

// Options are what engines share among all stores of a registry.
type Options struct {
	// Mapped is how much of all files together may be mapped, to send long reads
	// from there, in bytes. It is page cache, and counts in the resident size of
	// the process. 0: nothing is.
	Mapped int64
}

// Default makes a registry with every engine of this repository and the default
// options. Each call makes a new one, so that a program can add its own.
func Default() *backing.Registry { return New(Options{Mapped: DefaultMapped}) }

// New makes a registry with every engine of this repository.
func New(o Options) *backing.Registry {
	r := new(backing.Registry)
	r.Register("curve", curve.Open)
	if o.Mapped > 0 {
		r.Register("file", file.Lending(file.NewWindows(o.Mapped)))
	} else {
		r.Register("file", file.Open)
	}
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
