package gateway_test

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"blockgate/backing"
	"blockgate/backing/layer/base"
	"blockgate/backing/layer/fault"
	"blockgate/backing/ram"
	"blockgate/gateway"
	"blockgate/iscsi"
	"blockgate/iscsi/initiator"
	"blockgate/scsi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const name = "iqn.2025-01.io.example:t"

func newGateway(t *testing.T, cfg gateway.Config) (*gateway.Gateway, string) {
	t.Helper()
	g, err := gateway.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	p, err := g.AddPortal(t.Context(), gateway.PortalConfig{Address: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	return g, p.Bound.String()
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// export adds a volume and a target that has it at LUN 0.
func export(t *testing.T, g *gateway.Gateway, v gateway.VolumeConfig, tc gateway.TargetConfig) {
	t.Helper()
	ok(t, g.AddVolume(t.Context(), v))
	ok(t, g.AddTarget(tc))
	ok(t, g.MapLUN(tc.Name, 0, v.Name))
}

func login(t *testing.T, addr string, cfg initiator.Config) (*initiator.Session, error) {
	t.Helper()
	cfg.Addrs = []string{addr}
	if cfg.TargetName == "" {
		cfg.TargetName = name
	}
	s, err := initiator.Dial(t.Context(), cfg)
	if err == nil {
		t.Cleanup(func() { s.Close() })
	}
	return s, err
}

func wantStatus(t *testing.T, err error, want iscsi.LoginStatus) {
	t.Helper()
	var l *iscsi.LoginError
	if !errors.As(err, &l) || l.Status != want {
		t.Errorf("login: %v, want status %#04x", err, want)
	}
}

func TestAccess(t *testing.T) {
	g, addr := newGateway(t, gateway.Config{})
	export(t, g, gateway.VolumeConfig{Name: "v", URL: "ram:1M"}, gateway.TargetConfig{Name: name})
	const me = "iqn.2025-01.io.example:me"
	here := netip.MustParsePrefix("127.0.0.0/8")
	for _, c := range []struct {
		what   string
		cfg    gateway.TargetConfig
		status iscsi.LoginStatus
	}{
		{"no rule", gateway.TargetConfig{}, iscsi.LoginNotFound},
		{"everyone", gateway.TargetConfig{ACL: gateway.Everyone()}, iscsi.LoginOK},
		{"its network", gateway.TargetConfig{ACL: []gateway.Rule{{Network: here}}}, iscsi.LoginOK},
		{"another network", gateway.TargetConfig{ACL: []gateway.Rule{{Network: netip.MustParsePrefix("10.0.0.0/8")}}}, iscsi.LoginNotFound},
		{"its name", gateway.TargetConfig{ACL: []gateway.Rule{{Initiator: me}}}, iscsi.LoginOK},
		{"a name in another case", gateway.TargetConfig{ACL: []gateway.Rule{{Initiator: "iqn.2025-01.io.example:ME"}}}, iscsi.LoginNotFound},
		{"one of two rules", gateway.TargetConfig{ACL: []gateway.Rule{{Initiator: "x"}, {Network: here}}}, iscsi.LoginOK},
		{"offline", gateway.TargetConfig{ACL: gateway.Everyone(), Offline: true}, iscsi.LoginTargetError},
		{"another portal group", gateway.TargetConfig{ACL: gateway.Everyone(), Groups: []uint16{2}}, iscsi.LoginNotFound},
		{"CHAP", gateway.TargetConfig{ACL: gateway.Everyone(), Auth: iscsi.AuthPolicy{Incoming: []iscsi.Account{{User: "joe", Secret: "secret"}}}}, iscsi.LoginAuthFailed},
	} {
		t.Run(c.what, func(t *testing.T) {
			c.cfg.Name = name
			ok(t, g.UpdateTarget(c.cfg))
			s, err := login(t, addr, initiator.Config{InitiatorName: me})
			if c.status != iscsi.LoginOK {
				wantStatus(t, err, c.status)
			} else {
				ok(t, err)
				ok(t, s.Logout(t.Context()))
			}
			recs, err := initiator.Discover(t.Context(), initiator.Config{Addrs: []string{addr}, InitiatorName: me})
			ok(t, err)
			if visible := len(recs) == 1; visible != (c.status != iscsi.LoginNotFound) {
				t.Errorf("discovery shows %v", recs)
			} else if visible && !slices.Equal(recs[0].Portals, []string{addr + ",1"}) {
				t.Errorf("portals %v, want %s,1", recs[0].Portals, addr)
			}
		})
	}
	_, err := login(t, addr, initiator.Config{TargetName: name + "x"})
	wantStatus(t, err, iscsi.LoginNotFound)
}

func TestLUNMask(t *testing.T) {
	g, addr := newGateway(t, gateway.Config{})
	ok(t, g.AddTarget(gateway.TargetConfig{Name: name, ACL: []gateway.Rule{
		{Initiator: "iqn.2025-01.io.example:some", LUNs: []uint64{1, 3}},
		{Initiator: "iqn.2025-01.io.example:all"},
	}}))
	for i, v := range []string{"a", "b", "c", "d"} {
		ok(t, g.AddVolume(t.Context(), gateway.VolumeConfig{Name: v, URL: "ram:1M"}))
		ok(t, g.MapLUN(name, uint64(i), v))
	}
	for who, want := range map[string][]uint64{"some": {1, 3}, "all": {0, 1, 2, 3}} {
		s, err := login(t, addr, initiator.Config{InitiatorName: "iqn.2025-01.io.example:" + who})
		ok(t, err)
		var got []uint64
		luns, err := s.ReportLUNs(t.Context())
		ok(t, err)
		for _, l := range luns {
			got = append(got, initiator.LUNNumber(l))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s sees %v, want %v", who, got, want)
		}
	}
}

// One volume in two targets is one unit: the same data, the same identity.
func TestSharedVolume(t *testing.T) {
	g, addr := newGateway(t, gateway.Config{})
	export(t, g, gateway.VolumeConfig{Name: "v", URL: "ram:1M"}, gateway.TargetConfig{Name: name + "1", ACL: gateway.Everyone()})
	ok(t, g.AddTarget(gateway.TargetConfig{Name: name + "2", ACL: gateway.Everyone()}))
	ok(t, g.MapLUN(name+"2", 7, "v"))
	disk := func(target string, lun uint64) *initiator.Disk {
		s, err := login(t, addr, initiator.Config{TargetName: target})
		ok(t, err)
		d, err := s.Unit(initiator.LUN(lun)).OpenDisk(t.Context())
		ok(t, err)
		return d
	}
	one, two := disk(name+"1", 0), disk(name+"2", 7)
	w, r := slices.Repeat([]byte("blockgate"), 512), make([]byte, 9*512)
	ok(t, one.WriteAt(t.Context(), w, 4096))
	ok(t, two.ReadAt(t.Context(), r, 4096))
	if !slices.Equal(w, r) {
		t.Error("the targets show different data")
	}
	if err := g.RemoveVolume(t.Context(), "v"); !errors.Is(err, gateway.ErrInUse) {
		t.Errorf("removing a mapped volume: %v", err)
	}
	ok(t, g.RemoveTarget(t.Context(), name+"1"))
	ok(t, g.UnmapLUN(name+"2", 7))
	ok(t, g.RemoveVolume(t.Context(), "v"))
	if len(g.Volumes()) != 0 {
		t.Error("a volume is left")
	}
}

func TestResize(t *testing.T) {
	g, addr := newGateway(t, gateway.Config{})
	img := filepath.Join(t.TempDir(), "a")
	export(t, g, gateway.VolumeConfig{Name: "v", URL: "file:" + img, Create: true, Size: 1 << 20},
		gateway.TargetConfig{Name: name, ACL: gateway.Everyone()})
	s, err := login(t, addr, initiator.Config{})
	ok(t, err)
	u := s.Unit(initiator.LUN(0))
	if c, err := u.ReadCapacity(t.Context()); err != nil || c.Bytes() != 1<<20 {
		t.Fatalf("capacity %v, %v", c, err)
	}
	ok(t, g.ResizeVolume(t.Context(), "v", 2<<20))
	c, err := u.ReadCapacity(t.Context())
	if initiator.IsUnitAttention(err) { // CAPACITY DATA HAS CHANGED
		c, err = u.ReadCapacity(t.Context())
	}
	if err != nil || c.Bytes() != 2<<20 {
		t.Errorf("capacity after growing %v, %v", c, err)
	}
	var partial *gateway.PartialBlockError
	if err := g.ResizeVolume(t.Context(), "v", 2<<20+1); !errors.As(err, &partial) {
		t.Errorf("half a block: %v", err)
	}
}

// hung is a volume whose store holds every write until it is released, with a
// write inside it. The channel is closed with the store.
func hung(t *testing.T, g *gateway.Gateway, addr string) (*fault.Store, chan struct{}) {
	t.Helper()
	mem, err := ram.New(1 << 20)
	ok(t, err)
	closed := make(chan struct{})
	st := fault.New(closeWatch{mem, closed}, 1)
	export(t, g, gateway.VolumeConfig{Name: "v", Store: st}, gateway.TargetConfig{Name: name, ACL: gateway.Everyone()})
	s, err := login(t, addr, initiator.Config{AbortTimeout: time.Millisecond})
	ok(t, err)
	d, err := s.Unit(initiator.LUN(0)).OpenDisk(t.Context())
	ok(t, err)
	st.Add(fault.Rule{Op: base.Write, Action: fault.Stick})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.WriteAt(ctx, make([]byte, 4096), 0)
	}()
	t.Cleanup(func() { cancel(); <-done })
	ok(t, st.WaitHeld(t.Context(), 1))
	return st, closed
}

type closeWatch struct {
	backing.Store
	closed chan struct{}
}

func (c closeWatch) Close() error {
	defer close(c.closed)
	return c.Store.Close()
}

// Deleting a LUN, its target and its volume returns although the store hangs,
// says so, and closes the store when it lets go.
func TestHungStore(t *testing.T) {
	g, addr := newGateway(t, gateway.Config{CloseTimeout: 20 * time.Millisecond})
	st, closed := hung(t, g, addr)
	begin := time.Now()
	ok(t, g.UnmapLUN(name, 0))
	ok(t, g.RemoveTarget(t.Context(), name))
	err := g.RemoveVolume(t.Context(), "v")
	var l *gateway.LingerError
	if !errors.As(err, &l) || l.Tasks != 1 {
		t.Errorf("removing a volume whose store hangs: %v", err)
	}
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("it took %v", d)
	}
	if got := g.Lingering(); !slices.Equal(got, []string{"v"}) {
		t.Errorf("lingering: %v", got)
	}
	// The name is free at once.
	ok(t, g.AddVolume(t.Context(), gateway.VolumeConfig{Name: "v", URL: "ram:1M"}))
	st.Release()
	<-closed // the store, and not before it let go
}

func TestCloseWithHungStore(t *testing.T) {
	g, addr := newGateway(t, gateway.Config{CloseTimeout: 20 * time.Millisecond})
	st, closed := hung(t, g, addr)
	t.Cleanup(func() { st.Release(); <-closed })
	done := make(chan error, 1)
	go func() { done <- g.Close() }()
	var l *gateway.LingerError
	if err := <-done; !errors.As(err, &l) {
		t.Errorf("close: %v", err)
	}
}

// An engine that does not answer does not hold up the rest.
func TestHungOpen(t *testing.T) {
	release, closed := make(chan struct{}), make(chan struct{})
	var reg backing.Registry
	reg.Register("stuck", func(context.Context, string, backing.OpenOptions) (backing.Store, error) {
		<-release
		mem, err := ram.New(4096)
		return closeWatch{mem, closed}, err
	})
	g, _ := newGateway(t, gateway.Config{Engines: &reg, OpenTimeout: 10 * time.Millisecond})
	if err := g.AddVolume(t.Context(), gateway.VolumeConfig{Name: "v", URL: "stuck:x"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("open: %v", err)
	}
	if len(g.Volumes()) != 0 {
		t.Error("the volume is there")
	}
	close(release)
	<-closed // what opened too late is closed again
}

// A change that needs the store opened anew keeps the LUN and its identity; one
// that fails leaves the volume as it was.
func TestUpdateVolume(t *testing.T) {
	g, addr := newGateway(t, gateway.Config{})
	dir := t.TempDir()
	v := gateway.VolumeConfig{Name: "v", URL: "file:" + filepath.Join(dir, "a"), Create: true, Size: 1 << 20}
	export(t, g, v, gateway.TargetConfig{Name: name, ACL: gateway.Everyone()})
	s, err := login(t, addr, initiator.Config{})
	ok(t, err)
	u := s.Unit(initiator.LUN(0))
	d, err := u.OpenDisk(t.Context())
	ok(t, err)
	block := slices.Repeat([]byte{0x5a}, 512)
	ok(t, d.WriteAt(t.Context(), block, 512))
	ok(t, d.Flush(t.Context()))
	before, err := u.Inquiry(t.Context())
	ok(t, err)

	v.Create, v.Sync = false, true // the same file, opened anew
	v.Unit.Vendor, v.Unit.Product = "ACME", "DISK"
	ok(t, g.UpdateVolume(t.Context(), v))
	bad := v
	bad.URL = "file:" + filepath.Join(dir, "missing")
	if err := g.UpdateVolume(t.Context(), bad); !errors.Is(err, backing.ErrNotExist) {
		t.Errorf("a missing store: %v", err)
	}
	bad = v
	bad.Unit.BlockSize = 1000
	if err := g.UpdateVolume(t.Context(), bad); err == nil {
		t.Error("a block size of 1000 was taken")
	}
	got := make([]byte, 512)
	for {
		if err = d.ReadAt(t.Context(), got, 512); !initiator.IsUnitAttention(err) {
			break
		}
	}
	ok(t, err)
	if !slices.Equal(got, block) {
		t.Error("the data are gone")
	}
	after, err := u.Inquiry(t.Context())
	ok(t, err)
	if after.Vendor != "ACME" || after.Vendor == before.Vendor {
		t.Errorf("inquiry says %+v", after)
	}
}

func TestNoMedium(t *testing.T) {
	g, addr := newGateway(t, gateway.Config{})
	export(t, g, gateway.VolumeConfig{Name: "v", Unit: scsi.UnitConfig{Removable: true}},
		gateway.TargetConfig{Name: name, ACL: gateway.Everyone()})
	i, err := g.Volume("v")
	ok(t, err)
	if i.Size != 0 || !i.Offline {
		t.Errorf("info %+v", i)
	}
	s, err := login(t, addr, initiator.Config{})
	ok(t, err)
	if err := s.Unit(initiator.LUN(0)).ReadBlocks(t.Context(), make([]byte, 512), 0, 1); err == nil {
		t.Error("read without a medium")
	}
	ok(t, g.UpdateVolume(t.Context(), gateway.VolumeConfig{Name: "v", URL: "ram:1M", Unit: scsi.UnitConfig{Removable: true}}))
	if i, _ := g.Volume("v"); i.Size != 1<<20 || i.Offline {
		t.Errorf("info with a medium %+v", i)
	}
}

func TestPortals(t *testing.T) {
	g, addr := newGateway(t, gateway.Config{})
	if _, err := g.AddPortal(t.Context(), gateway.PortalConfig{Address: addr}); err == nil {
		t.Error("the same address twice")
	}
	two, err := gateway.New(gateway.Config{})
	ok(t, err)
	defer two.Close()
	if _, err := two.AddPortal(t.Context(), gateway.PortalConfig{Address: addr}); err == nil {
		t.Error("two gateways on one address")
	}
	p, err := g.AddPortal(t.Context(), gateway.PortalConfig{Address: "127.0.0.1:0", Group: 2})
	ok(t, err)
	ok(t, g.RemovePortal(p.Bound.String()))
	if err := g.RemovePortal(p.Bound.String()); !errors.Is(err, gateway.ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	g.SetOffline(true)
	if _, err := login(t, addr, initiator.Config{}); err == nil {
		t.Error("login while offline")
	}
}

func TestTwoGateways(t *testing.T) {
	a, addrA := newGateway(t, gateway.Config{})
	b, addrB := newGateway(t, gateway.Config{})
	export(t, a, gateway.VolumeConfig{Name: "v", URL: "ram:1M"}, gateway.TargetConfig{Name: name, ACL: gateway.Everyone()})
	export(t, b, gateway.VolumeConfig{Name: "v", URL: "ram:2M"}, gateway.TargetConfig{Name: name, ACL: gateway.Everyone()})
	for addr, want := range map[string]int64{addrA: 1 << 20, addrB: 2 << 20} {
		s, err := login(t, addr, initiator.Config{})
		ok(t, err)
		if c, err := s.Unit(initiator.LUN(0)).ReadCapacity(t.Context()); err != nil || c.Bytes() != want {
			t.Errorf("%s: capacity %v, %v", addr, c, err)
		}
	}
	ok(t, a.Close())
	if _, err := login(t, addrB, initiator.Config{}); err != nil {
		t.Errorf("closing one gateway hurt the other: %v", err)
	}
}

// A shutdown asks initiators to log out and ends when they have.
func TestShutdown(t *testing.T) {
	g, addr := newGateway(t, gateway.Config{})
	export(t, g, gateway.VolumeConfig{Name: "v", URL: "ram:1M"}, gateway.TargetConfig{Name: name, ACL: gateway.Everyone()})
	_, err := login(t, addr, initiator.Config{})
	ok(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	ok(t, g.Shutdown(ctx))
	if err := g.AddTarget(gateway.TargetConfig{Name: name}); !errors.Is(err, gateway.ErrClosed) {
		t.Errorf("after the shutdown: %v", err)
	}
}
