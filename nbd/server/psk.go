package server

import (
	"context"
	"fmt"
	"net"

	"blockgate/internal/tlspsk"
)

// PSK is an Upgrade by keys that the server shares with each of its clients. keys
// gives the key of an identity; see tlspsk.ReadKeys for GnuTLS's files of them.
// TLS is 1.3.
func PSK(keys func(identity string) (key []byte, ok bool)) Upgrade {
	return func(ctx context.Context, nc net.Conn) (net.Conn, *Identity, error) {
		c := tlspsk.Server(nc, keys)
		if err := c.Handshake(ctx); err != nil {
			return nil, nil, fmt.Errorf("TLS: %w", err)
		}
		return c, &Identity{Method: "psk", Names: []string{c.User()}}, nil
	}
}
