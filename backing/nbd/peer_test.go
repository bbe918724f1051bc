package nbd_test

import (
	"bytes"
	"net"
	"path/filepath"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/nbd"
	"blockgate/backing/ram"
	"blockgate/backing/storetest"
	"blockgate/internal/tlspsk"
	"blockgate/nbd/client"
	"blockgate/nbd/server"
)

// serve serves a store of RAM with our own server.
func serve(t testing.TB, a server.Access, o server.StoreOptions) client.Config {
	t.Helper()
	below, err := ram.Open(t.Context(), "", backing.OpenOptions{Create: true, CreateSize: storetest.Size})
	ok(t, err)
	srv := server.New(server.Config{Directory: server.Single(server.ForStore(below, o))})
	socket := filepath.Join(t.TempDir(), "nbd")
	ln, err := net.Listen("unix", socket)
	ok(t, err)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln, a) }()
	t.Cleanup(func() {
		srv.Close()
		<-served
		below.Close()
	})
	return client.Config{Dial: client.Dialer("unix", socket), Backoff: time.Millisecond, Settle: time.Millisecond}
}

// Our client on our server is a store like any other.
func TestOurServer(t *testing.T) {
	storetest.Run(t, func(t *testing.T) backing.Store {
		return open(t, serve(t, server.Access{}, server.StoreOptions{}), backing.OpenOptions{})
	})
}

func TestOurServerWithKey(t *testing.T) {
	key := bytes.Repeat([]byte{1, 2}, 16)
	cfg := serve(t, server.Access{RequireTLS: true, Upgrade: server.PSK(func(user string) ([]byte, bool) { return key, user == "alice" })}, server.StoreOptions{})
	_, err := nbd.OpenAt(t.Context(), cfg, "test", backing.OpenOptions{})
	if !isErr(err, client.ErrTLSRequired) {
		t.Errorf("without TLS: %v", err)
	}
	cfg.Secure = tlspsk.Secure("alice", key[1:])
	if s, err := nbd.OpenAt(t.Context(), cfg, "test", backing.OpenOptions{}); err == nil {
		s.Close()
		t.Error("opened with another key")
	}
	cfg.Secure = tlspsk.Secure("alice", key)
	s := open(t, cfg, backing.OpenOptions{})
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	ok(t, s.WriteAt(t.Context(), want, 512))
	ok(t, s.Flush(t.Context()))
	got := make([]byte, len(want))
	ok(t, s.ReadAt(t.Context(), got, 512))
	if !bytes.Equal(got, want) {
		t.Error("content differs")
	}
}
