package gateway_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"blockgate/backing/layer/base"
	"blockgate/backing/layer/fault"
	"blockgate/backing/ram"
	"blockgate/gateway"
	"blockgate/iscsi/initiator"
	"blockgate/nbd"
	"blockgate/nbd/client"
	nbdserver "blockgate/nbd/server"
)

// nbdClient connects to an export, which must work at once or not at all.
func nbdClient(t *testing.T, network, address, export string) (*client.Client, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := client.Open(ctx, client.Config{Dial: client.Dialer(network, address), Export: export, Conns: 1, Stall: time.Second})
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// within waits for something that comes by itself.
func within(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.After(10 * time.Second); !is(); {
		select {
		case <-end:
			t.Fatalf("%s: not within 10 s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

func TestExports(t *testing.T) {
	g, _ := newGateway(t, gateway.Config{})
	p, err := g.AddNBDPortal(t.Context(), gateway.NBDPortalConfig{Address: "127.0.0.1:0"})
	ok(t, err)
	for _, v := range []string{"a", "b"} {
		ok(t, g.AddVolume(t.Context(), gateway.VolumeConfig{Name: v, URL: "ram:1M"}))
	}
	if err := g.AddExport(gateway.ExportConfig{Name: "a", Volume: "none"}); !errors.Is(err, gateway.ErrNotFound) {
		t.Errorf("of no volume: %v", err)
	}
	ok(t, g.AddExport(gateway.ExportConfig{Name: "a", Volume: "a", ACL: gateway.Everyone()}))
	if err := g.AddExport(gateway.ExportConfig{Name: "a", Volume: "b"}); !errors.Is(err, gateway.ErrExists) {
		t.Errorf("again: %v", err)
	}
	ok(t, g.AddExport(gateway.ExportConfig{Name: "b", Volume: "b"}))

	// One export that a client sees is its default; of two it is the one that says so.
	c, err := nbdClient(t, "tcp", p.Bound, "")
	ok(t, err)
	if c.Export().Name != "a" && c.Export().Name != "" {
		t.Errorf("%+v", c.Export())
	}
	if _, err := nbdClient(t, "tcp", p.Bound, "b"); err == nil {
		t.Error("an export without rules is open")
	}
	local := gateway.Rule{Network: netip.MustParsePrefix("127.0.0.0/8")}
	ok(t, g.UpdateExport(gateway.ExportConfig{Name: "b", Volume: "b", ACL: []gateway.Rule{local}}))
	if _, err := nbdClient(t, "tcp", p.Bound, ""); err == nil {
		t.Error("one of two exports is the default by itself")
	}
	ok(t, g.UpdateExport(gateway.ExportConfig{Name: "b", Volume: "b", ACL: []gateway.Rule{local}, Default: true}))
	d, err := nbdClient(t, "tcp", p.Bound, "")
	ok(t, err)
	ok(t, d.WriteAt(t.Context(), bytes.Repeat([]byte{5}, 4096), 0, 0))
	b, err := nbdClient(t, "tcp", p.Bound, "b")
	ok(t, err)
	got := make([]byte, 4096)
	ok(t, b.ReadAt(t.Context(), got, 0))
	if got[0] != 5 {
		t.Error("the default export is another one")
	}

	// In use, and taken away.
	if err := g.RemoveVolume(t.Context(), "b"); !errors.Is(err, gateway.ErrInUse) {
		t.Errorf("a volume that is exported: %v", err)
	}
	if l := g.Exports(); len(l) != 2 || l[0].Clients != 1 || l[1].Clients != 2 {
		t.Errorf("%+v", l)
	}
	ok(t, g.UpdateExport(gateway.ExportConfig{Name: "b", Volume: "b", ACL: []gateway.Rule{{Network: netip.MustParsePrefix("192.0.2.0/24")}}}))
	within(t, "those who may not see it are gone", func() bool { return len(g.NBDClients()) == 1 })
	ok(t, g.CloseNBDClient(g.NBDClients()[0].ID))
	if err := g.CloseNBDClient(4711); !errors.Is(err, gateway.ErrNotFound) {
		t.Errorf("%v", err)
	}
	ok(t, g.RemoveExport("b"))
	ok(t, g.RemoveVolume(t.Context(), "b"))
	ok(t, g.RemoveNBDPortal(p.Bound))
	if l := g.NBDPortals(); len(l) != 0 {
		t.Errorf("%+v", l)
	}
	if _, err := net.Dial("tcp", p.Bound); err == nil {
		t.Error("the portal still listens")
	}
}

// Names that TLS has proved let in, on a Unix socket too, where no address does.
func TestExportRules(t *testing.T) {
	g, _ := newGateway(t, gateway.Config{})
	who := &nbdserver.Identity{Method: "psk", Names: []string{"h7.hosts.example", "host 7"}}
	path := filepath.Join(t.TempDir(), "s")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	ok(t, err)
	stale.SetUnlinkOnClose(false)
	stale.Close()
	_, err = g.AddNBDPortal(t.Context(), gateway.NBDPortalConfig{Address: "unix:" + path, Access: nbdserver.Access{
		Upgrade: func(_ context.Context, nc net.Conn) (net.Conn, *nbdserver.Identity, error) { return nc, who, nil },
	}})
	ok(t, err)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if _, err := g.AddNBDPortal(t.Context(), gateway.NBDPortalConfig{Address: "unix:" + path}); err == nil {
		t.Error("a socket that is in use is taken")
	}
	ok(t, g.AddVolume(t.Context(), gateway.VolumeConfig{Name: "v", URL: "ram:1M"}))
	ok(t, g.AddExport(gateway.ExportConfig{Name: "v", Volume: "v"}))
	for _, r := range []struct {
		rule         gateway.Rule
		plain, named bool
	}{
		{gateway.Rule{All: true}, true, true}, {gateway.Rule{Initiator: "*.hosts.example"}, false, true},
		{gateway.Rule{Initiator: "host ?"}, false, true}, {gateway.Rule{Initiator: "other"}, false, false},
		{gateway.Rule{Network: netip.MustParsePrefix("0.0.0.0/0")}, false, false},
	} {
		ok(t, g.UpdateExport(gateway.ExportConfig{Name: "v", Volume: "v", ACL: []gateway.Rule{r.rule}}))
		c, err := nbdClient(t, "unix", path, "v")
		if (err == nil) != r.plain {
			t.Errorf("%+v without TLS: %v", r.rule, err)
		}
		if c != nil {
			c.Close()
		}
		c, err = client.Open(t.Context(), client.Config{Dial: client.Dialer("unix", path), Export: "v", Conns: 1,
			Secure: func(_ context.Context, nc net.Conn) (net.Conn, error) { return nc, nil }})
		if (err == nil) != r.named {
			t.Errorf("%+v with TLS: %v", r.rule, err)
		}
		if c != nil {
			c.Close()
		}
	}
}

// A volume that becomes another one takes its clients with it to nowhere; one that
// is only opened anew keeps them, and one that is not ready has none.
func TestExportsFollowTheirVolume(t *testing.T) {
	g, _ := newGateway(t, gateway.Config{})
	p, err := g.AddNBDPortal(t.Context(), gateway.NBDPortalConfig{Address: "127.0.0.1:0"})
	ok(t, err)
	file := filepath.Join(t.TempDir(), "img")
	v := gateway.VolumeConfig{Name: "v", URL: "file:" + file, Create: true, Size: 1 << 20}
	ok(t, g.AddVolume(t.Context(), v))
	ok(t, g.AddExport(gateway.ExportConfig{Name: "v", Volume: "v", ACL: gateway.Everyone()}))
	c, err := nbdClient(t, "tcp", p.Bound, "v")
	ok(t, err)
	data := bytes.Repeat([]byte{9}, 4096)
	ok(t, c.WriteAt(t.Context(), data, 0, nbd.FlagFUA))
	id := g.NBDClients()[0].ID

	ok(t, g.ResizeVolume(t.Context(), "v", 2<<20))
	again, err := nbdClient(t, "tcp", p.Bound, "v")
	ok(t, err)
	if again.Size() != 2<<20 {
		t.Errorf("a new client sees %d bytes", again.Size())
	}
	ok(t, again.WriteAt(t.Context(), data, 1<<20, 0))

	v.Create, v.Sync = false, true
	ok(t, g.UpdateVolume(t.Context(), v))
	got := make([]byte, 4096)
	ok(t, c.ReadAt(t.Context(), got, 0))
	if !bytes.Equal(got, data) || !slices.ContainsFunc(g.NBDClients(), func(i nbdserver.ConnInfo) bool { return i.ID == id }) {
		t.Error("a client was lost over a volume that was opened anew")
	}
	v.URL, v.Sync = "ram:1M", false
	ok(t, g.UpdateVolume(t.Context(), v))
	within(t, "clients of the old volume are gone", func() bool {
		return !slices.ContainsFunc(g.NBDClients(), func(i nbdserver.ConnInfo) bool { return i.ID == id })
	})

	ok(t, g.AddVolume(t.Context(), gateway.VolumeConfig{Name: "empty"}))
	ok(t, g.AddExport(gateway.ExportConfig{Name: "empty", Volume: "empty", ACL: gateway.Everyone()}))
	if _, err := nbdClient(t, "tcp", p.Bound, "empty"); err == nil {
		t.Error("a volume without a medium is served")
	}
}

// What NBD's clients hold is counted for iSCSI as well, and leaves it room.
func TestOneMemoryForAll(t *testing.T) {
	g, addr := newGateway(t, gateway.Config{Memory: 4 << 20})
	p, err := g.AddNBDPortal(t.Context(), gateway.NBDPortalConfig{Address: "127.0.0.1:0"})
	ok(t, err)
	export(t, g, gateway.VolumeConfig{Name: "well", URL: "ram:4M"}, gateway.TargetConfig{Name: name, ACL: gateway.Everyone()})
	ok(t, g.AddExport(gateway.ExportConfig{Name: "well", Volume: "well", ACL: gateway.Everyone()}))
	s, err := login(t, addr, initiator.Config{})
	ok(t, err)
	u := s.Unit(initiator.LUN(0))
	read := func(n int) error { return u.ReadBlocks(t.Context(), make([]byte, n), 0, uint32(n/512)) }
	for u.TestUnitReady(t.Context()) != nil { // until no attention is left
	}
	ok(t, read(2<<20))
	var hung []*fault.Store
	var wg sync.WaitGroup
	for _, v := range []string{"a", "b"} {
		mem, err := ram.New(4 << 20)
		ok(t, err)
		st := fault.New(mem, 1)
		ok(t, g.AddVolume(t.Context(), gateway.VolumeConfig{Name: v, Store: st}))
		ok(t, g.AddExport(gateway.ExportConfig{Name: v, Volume: v, ACL: gateway.Everyone()}))
		st.Add(fault.Rule{Op: base.Write, Action: fault.Stick})
		c, err := nbdClient(t, "tcp", p.Bound, v)
		ok(t, err)
		wg.Go(func() { c.WriteAt(t.Context(), make([]byte, 1<<20), 0, 0) })
		ok(t, st.WaitHeld(t.Context(), 1))
		hung = append(hung, st)
	}
	if err := read(2 << 20); err == nil || !strings.Contains(err.Error(), "TASK SET FULL") {
		t.Errorf("a read of all that is left: %v", err)
	}
	ok(t, read(64<<10))
	c, err := nbdClient(t, "tcp", p.Bound, "well")
	ok(t, err)
	ok(t, c.ReadAt(t.Context(), make([]byte, 64<<10), 0))
	for _, st := range hung {
		st.Release()
	}
	wg.Wait()
	within(t, "all of the memory is free again", func() bool { return read(2<<20) == nil })
}
