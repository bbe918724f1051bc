package gateway_test

import (
	"context"
	"testing"
	"time"

	"blockgate/gateway"
	"blockgate/nbd/client"
)

// Who connects before everything is there waits for it.
func TestHold(t *testing.T) {
	g, _ := newGateway(t, gateway.Config{Hold: true})
	p, err := g.AddNBDPortal(t.Context(), gateway.NBDPortalConfig{Address: "127.0.0.1:0"})
	ok(t, err)
	_, err = g.AddPortal(t.Context(), gateway.PortalConfig{Address: "127.0.0.1:0"})
	ok(t, err)
	opened := make(chan error, 1)
	begun := make(chan struct{})
	dial := client.Dialer("tcp", p.Bound)
	nc, err := dial(t.Context())
	ok(t, err)
	nc.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := nc.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes before anybody is admitted", n)
	}
	nc.Close()
	go func() {
		close(begun)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		c, err := client.Open(ctx, client.Config{Dial: dial, Export: "v", Conns: 1})
		if err == nil {
			c.Close()
		}
		opened <- err
	}()
	<-begun
	ok(t, g.AddVolume(t.Context(), gateway.VolumeConfig{Name: "v", URL: "ram:1M"}))
	ok(t, g.AddExport(gateway.ExportConfig{Name: "v", Volume: "v", ACL: gateway.Everyone()}))
	g.Admit()
	ok(t, <-opened)
	g.Admit()

	// Nobody has to be admitted for it to end.
	h, _ := newGateway(t, gateway.Config{Hold: true})
	_, err = h.AddPortal(t.Context(), gateway.PortalConfig{Address: "127.0.0.1:0"})
	ok(t, err)
	_, err = h.AddNBDPortal(t.Context(), gateway.NBDPortalConfig{Address: "127.0.0.1:0"})
	ok(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	ok(t, h.Shutdown(ctx))
}
