// Command blockgate-gluster serves one file of a GlusterFS volume to the gateway
// that started it: the plugin of the engine "gluster". It reaches libgfapi by
// dlopen, so that it is built without a C compiler and says in one line when the
// library is missing.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"blockgate/backing"
	"blockgate/backing/plugin/side"
	"blockgate/cmd/blockgate-gluster/internal/gfapi"
	"blockgate/cmd/blockgate-gluster/internal/glfs"
)

func main() {
	// The library writes to connections from threads of its own; one that is gone
	// would end the process.
	signal.Ignore(syscall.SIGPIPE)
	var lib *gfapi.Library
	os.Exit(side.Main(side.Engine{
		Name: "gluster",
		Load: func() (string, error) {
			l, err := gfapi.Load()
			lib = l
			return gfapi.LibraryName, err
		},
		Open: func(ctx context.Context, location string, o side.Options) (backing.Store, error) {
			s, err := glfs.Open(ctx, lib, location, glfs.Options{OpenOptions: o.OpenOptions, Again: o.Again})
			if err != nil {
				return nil, err
			}
			return s, nil
		},
	}))
}
