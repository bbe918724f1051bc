package nbdload_test

import (
	"net"
	"testing"
	"time"

	"blockgate/backing/ram"
	"blockgate/nbd/server"
	"blockgate/test/bench/limit"
	"blockgate/test/bench/nbdload"
)

func TestLoad(t *testing.T) {
	store, err := ram.New(4 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	s := server.New(server.Config{Directory: server.Single(server.ForStore(store, server.StoreOptions{Name: "d"}))})
	defer s.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(ln, server.Access{})
	for _, o := range []limit.Options{
		{BlockSize: 4096, Depth: 32, Connections: 2}, {BlockSize: 1 << 20, Depth: 3, Connections: 1, Sequential: true},
		{BlockSize: 4096, Depth: 1, Connections: 1, Write: true}, {BlockSize: 1 << 20, Depth: 8, Connections: 1, Write: true},
	} {
		o.Duration = 20 * time.Millisecond
		r, err := nbdload.Load(t.Context(), ln.Addr().String(), "d", o)
		if err != nil || r.All.Count < int64(o.Depth*o.Connections) || r.All.P50 <= 0 {
			t.Errorf("%+v: %+v, %v", o, r, err)
		}
	}
	if _, err := nbdload.Load(t.Context(), ln.Addr().String(), "none", limit.Options{BlockSize: 512, Depth: 1, Connections: 1, Duration: time.Second}); err == nil {
		t.Error("an export that is not there is measured")
	}
}
