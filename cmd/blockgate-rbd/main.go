// Command blockgate-rbd serves one Ceph RBD image to the gateway that started
// it: the plugin of the engine "rbd". It reaches librbd by dlopen, so that it is
// built without a C compiler and says in one line when the library is missing.
package main

import (
	"log"
	"os"

	"blockgate/backing/plugin/side"
	"blockgate/cmd/blockgate-rbd/internal/rbd"
)

func main() {
	log.SetFlags(0) // the gateway's log has the time
	var engine rbd.Engine
	os.Exit(side.Main(side.Engine{Name: "rbd", Load: engine.Load, Open: engine.Open}))
}
