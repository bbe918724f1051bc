package client

import (
	"context"
	"net"
	"time"
)

// deadAfter is how long a peer is silent that is taken for dead: its host has
// lost power, or the network in between is cut. A server that only takes its time
// answers the probes.
const deadAfter = 20 * time.Second

// Dialer makes a Config.Dial for an address as net.Dial takes it: "tcp" and
// "host:port", or "unix" and a path.
func Dialer(network, address string) func(context.Context) (net.Conn, error) {
	d := &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: deadAfter / 4, Interval: deadAfter / 4, Count: 3},
		Control:         control,
	}
	return func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, network, address) }
}
