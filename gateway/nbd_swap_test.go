package gateway_test

import (
	"bytes"
	"context"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/ram"
	"blockgate/gateway"
	"blockgate/nbd/client"
	nbdserver "blockgate/nbd/server"
)

// What clients send for one store never reaches the one that takes its place.
func TestSwapUnderWrites(t *testing.T) {
	g, _ := newGateway(t, gateway.Config{})
	p, err := g.AddNBDPortal(t.Context(), gateway.NBDPortalConfig{Address: "127.0.0.1:0"})
	ok(t, err)
	v := gateway.VolumeConfig{Name: "v", URL: "ram:64K"}
	ok(t, g.AddVolume(t.Context(), v))
	ok(t, g.AddExport(gateway.ExportConfig{Name: "v", Volume: "v", ACL: gateway.Everyone()}))
	empty := make([]byte, 64<<10)
	for i := range 30 {
		var clients sync.WaitGroup
		var begun sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		for k := range 4 {
			// Whoever is disconnected stays so: another attempt would be a new client's.
			nc, err := client.Dialer("tcp", p.Bound)(ctx)
			ok(t, err)
			used := false
			c, err := client.Open(ctx, client.Config{Export: "v", Conns: 1, Stall: time.Second, Unflushed: -1, Dial: func(context.Context) (net.Conn, error) {
				if used {
					return nil, context.Canceled
				}
				used = true
				return nc, nil
			}})
			ok(t, err)
			data := bytes.Repeat([]byte{byte(k + 1)}, 4096)
			begun.Add(1)
			clients.Go(func() {
				defer c.Close()
				ok(t, c.WriteAt(ctx, data, int64(k)*4096, 0))
				begun.Done()
				for n := 0; ctx.Err() == nil && c.Conns() > 0; n++ {
					_ = c.WriteAt(ctx, data, int64(n*4+k)%16*4096, 0)
				}
			})
		}
		begun.Wait()
		if v.URL = "ram:64K"; i%2 == 0 {
			v.URL = "ram:65536"
		}
		ok(t, g.UpdateVolume(t.Context(), v))
		within(t, "clients are gone", func() bool { return len(g.NBDClients()) == 0 })
		cancel()
		clients.Wait()
		after, err := nbdClient(t, "tcp", p.Bound, "v")
		ok(t, err)
		got := make([]byte, len(empty))
		ok(t, after.ReadAt(t.Context(), got, 0))
		if !bytes.Equal(got, empty) {
			t.Fatal("the new store has what was written to the old one")
		}
		after.Close()
		within(t, "it is gone", func() bool { return len(g.NBDClients()) == 0 })
	}
}

// A store that a program has opened has no URL that would tell it from another.
func TestSwapOfOpenStores(t *testing.T) {
	g, _ := newGateway(t, gateway.Config{})
	p, err := g.AddNBDPortal(t.Context(), gateway.NBDPortalConfig{Address: "127.0.0.1:0"})
	ok(t, err)
	store := func() backing.Store {
		s, err := ram.Open(t.Context(), "1M", backing.OpenOptions{})
		ok(t, err)
		return s
	}
	v := gateway.VolumeConfig{Name: "v", Store: store()}
	ok(t, g.AddVolume(t.Context(), v))
	ok(t, g.AddExport(gateway.ExportConfig{Name: "v", Volume: "v", ACL: gateway.Everyone()}))
	c, err := nbdClient(t, "tcp", p.Bound, "v")
	ok(t, err)
	ok(t, c.ReadAt(t.Context(), make([]byte, 512), 0))
	id := g.NBDClients()[0].ID
	v.Store = store()
	ok(t, g.UpdateVolume(t.Context(), v))
	within(t, "the client of the other store is gone", func() bool {
		return !slices.ContainsFunc(g.NBDClients(), func(i nbdserver.ConnInfo) bool { return i.ID == id })
	})
}
