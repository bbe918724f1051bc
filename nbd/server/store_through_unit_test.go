package server

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/nbd"
	"blockgate/backing/storetest"
	"blockgate/nbd/client"
	"blockgate/scsi"
)

// A unit behind our server and our client is a store like any other.
func TestUnitAsStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) backing.Store {
		d := newDisk(t, openRAM(t, storetest.Size), scsi.UnitConfig{MaxTransfer: 64 << 10})
		srv := New(Config{Directory: Single(d.exp)})
		socket := filepath.Join(t.TempDir(), "s")
		ln, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- srv.Serve(ln, Access{}) }()
		t.Cleanup(func() {
			srv.Close()
			<-served
		})
		s, err := nbd.OpenAt(t.Context(), client.Config{Dial: client.Dialer("unix", socket), Backoff: time.Millisecond, Settle: time.Millisecond}, "test",
			backing.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}
