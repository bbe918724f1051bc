package initiator_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"blockgate/backing/ram"
	"blockgate/iscsi"
	"blockgate/iscsi/initiator"
	"blockgate/iscsi/server"
	"blockgate/scsi"
)

const (
	targetName = "iqn.2025-01.test:live"
	movedName  = "iqn.2025-01.test:moved"
)

// directory has one target, and one that moved to it.
type directory struct {
	device *scsi.Device
	auth   iscsi.AuthPolicy
	offer  iscsi.Offer
	addr   string
}

func (d *directory) Target(name string, _ iscsi.Peer) (*iscsi.Access, iscsi.LoginStatus) {
	switch name {
	case targetName:
		return &iscsi.Access{Target: name, Device: d.device, RelPort: 1, Auth: d.auth, Offer: d.offer}, iscsi.LoginOK
	case movedName:
		return &iscsi.Access{Target: name, Redirect: d.addr + ",1"}, iscsi.LoginMovedTemporarily
	}
	return nil, iscsi.LoginNotFound
}

func (d *directory) DiscoveryAuth(iscsi.Peer) iscsi.AuthPolicy { return d.auth }

func (d *directory) Targets(string, iscsi.Peer) []iscsi.TargetRecord {
	return []iscsi.TargetRecord{{Name: targetName, Portals: []string{d.addr + ",1"}}}
}

// serve starts a target with a disk of 16 MiB at LUN 1.
func serve(t *testing.T, change func(*directory)) initiator.Config {
	t.Helper()
	store, err := ram.New(16 << 20)
	if err != nil {
		t.Fatal(err)
	}
	unit, err := scsi.NewUnit(scsi.UnitConfig{Store: store, Serial: "live", Vendor: "BLOCKGTE", Product: "test",
		NAA: [16]byte{0x60}, WriteCache: true})
	if err != nil {
		t.Fatal(err)
	}
	d := &directory{device: scsi.NewDevice(scsi.DeviceConfig{Name: targetName}), offer: iscsi.DefaultOffer()}
	if err := d.device.SetUnit(1, unit); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(d)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.addr = ln.Addr().String()
	srv := server.New(server.Config{Directory: d})
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(ln, 1) })
	t.Cleanup(func() {
		srv.Close()
		wg.Wait()
		unit.Close(context.Background())
		store.Close()
	})
	return initiator.Config{Addrs: []string{d.addr}, TargetName: targetName, LoginTimeout: 10 * time.Second}
}

func limited(t *testing.T) context.Context {
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(stop)
	return ctx
}

// checkIO writes and reads back pieces of many sizes.
func checkIO(t *testing.T, s *initiator.Session) {
	t.Helper()
	ctx := limited(t)
	d, err := s.Unit(1).OpenDisk(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range []int{512, 4096, 7 * 512, 64 << 10, 200 << 10, 3 << 20} {
		p, q := make([]byte, n), make([]byte, n)
		for j := range p {
			p[j] = byte(rand.Uint32())
		}
		if err := d.WriteAt(ctx, p, int64(i)*4096); err != nil {
			t.Fatal(err)
		}
		if err := d.ReadAt(ctx, q, int64(i)*4096); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, q) {
			t.Errorf("%d bytes are not read back as written", n)
		}
	}
	if err := d.Flush(ctx); err != nil {
		t.Error(err)
	}
}

// TestParameters: data arrives whole under every combination of what both sides
// may agree on.
func TestParameters(t *testing.T) {
	cfg := serve(t, nil)
	for _, r2t := range []bool{true, false} {
		for _, imm := range []bool{true, false} {
			for _, digest := range []string{"None", "CRC32C"} {
				for _, small := range []bool{true, false} {
					t.Run(fmt.Sprintf("InitialR2T=%t,ImmediateData=%t,%s,small=%t", r2t, imm, digest, small), func(t *testing.T) {
						cfg, p := cfg, initiator.DefaultParams()
						p.InitialR2T, p.ImmediateData = r2t, imm
						if small {
							p.MaxRecvDataSegment, p.FirstBurst, p.MaxBurst, p.MaxOutstandingR2T = 512, 1024, 8192, 2
						}
						cfg.Params, cfg.HeaderDigests, cfg.DataDigests = &p, []string{digest}, []string{digest}
						s, err := initiator.Dial(limited(t), cfg)
						if err != nil {
							t.Fatal(err)
						}
						defer s.Close()
						got := s.Params()
						if got.InitialR2T != r2t || got.ImmediateData != imm || got.HeaderDigest != (digest == "CRC32C") ||
							got.MaxBurst > p.MaxBurst || got.FirstBurst > p.FirstBurst {
							t.Errorf("agreed on %+v", got)
						}
						checkIO(t, s)
						if err := s.Ping(limited(t), []byte("still there")); err != nil {
							t.Error(err)
						}
						if err := s.Logout(limited(t)); err != nil {
							t.Error(err)
						}
					})
				}
			}
		}
	}
}

func TestDiscoverAndRedirection(t *testing.T) {
	cfg := serve(t, nil)
	cfg.TargetName = ""
	recs, err := initiator.Discover(limited(t), cfg)
	if err != nil || len(recs) != 1 || recs[0].Name != targetName || recs[0].Portals[0] != cfg.Addrs[0]+",1" {
		t.Fatalf("%+v, %v", recs, err)
	}
	cfg.TargetName = "iqn.2025-01.test:none"
	var refused *iscsi.LoginError
	if _, err := initiator.Dial(limited(t), cfg); !errors.As(err, &refused) || refused.Status != iscsi.LoginNotFound {
		t.Errorf("an unknown target: %v", err)
	}
	// This one sends us round in a circle.
	cfg.TargetName = movedName
	if s, err := initiator.Dial(limited(t), cfg); err == nil {
		s.Close()
		t.Error("an endless redirection came to an end")
	}
}

func TestCHAP(t *testing.T) {
	in, out := iscsi.Account{User: "joe", Secret: "joe's own secret"}, iscsi.Account{User: "target", Secret: "the target's secret"}
	cfg := serve(t, func(d *directory) {
		d.auth = iscsi.AuthPolicy{Incoming: []iscsi.Account{in}, Outgoing: &out}
	})
	wrong := iscsi.Account{User: "joe", Secret: "somebody's secret"}
	for _, tt := range []struct {
		name         string
		auth, mutual *iscsi.Account
		ok           bool
	}{
		{"none", nil, nil, false},
		{"one way", &in, nil, true},
		{"wrong", &wrong, nil, false},
		{"mutual", &in, &out, true},
		{"wrong target", &in, &iscsi.Account{User: "target", Secret: "another target's"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := cfg
			cfg.Auth, cfg.Mutual = tt.auth, tt.mutual
			s, err := initiator.Dial(limited(t), cfg)
			if (err == nil) != tt.ok {
				t.Fatal(err)
			}
			if err == nil {
				checkIO(t, s)
				s.Logout(limited(t))
				return
			}
			var refused *iscsi.LoginError
			if !errors.As(err, &refused) || refused.Status != iscsi.LoginAuthFailed {
				t.Error(err)
			}
		})
	}
}

func TestSeveralConnections(t *testing.T) {
	cfg := serve(t, nil)
	cfg.Connections = 4
	s, err := initiator.Dial(limited(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Connections() != 4 {
		t.Errorf("%d connections", s.Connections())
	}
	checkIO(t, s)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			p := make([]byte, 4096)
			for j := range 100 {
				lba := uint64(i*100+j) * 8
				for k := range p {
					p[k] = byte(i + j)
				}
				if err := s.Unit(1).WriteBlocks(limited(t), p, lba, 8); err != nil {
					t.Error(err)
					return
				}
				q := make([]byte, 4096)
				if err := s.Unit(1).ReadBlocks(limited(t), q, lba, 8); err != nil || !bytes.Equal(p, q) {
					t.Errorf("block %d: %v", lba, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := s.Logout(limited(t)); err != nil {
		t.Error(err)
	}
}

func TestTypedCommands(t *testing.T) {
	cfg := serve(t, nil)
	s, err := initiator.Dial(limited(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, u := limited(t), s.Unit(1)
	if luns, err := s.ReportLUNs(ctx); err != nil || len(luns) != 1 || luns[0] != 1 {
		t.Errorf("LUNs %v, %v", luns, err)
	}
	if q, err := u.Inquiry(ctx); err != nil || q.Vendor != "BLOCKGTE" || q.Product != "test" || q.Type != 0 {
		t.Errorf("INQUIRY %+v, %v", q, err)
	}
	if c, err := u.ReadCapacity(ctx); err != nil || c.Bytes() != 16<<20 || c.BlockSize != 512 {
		t.Errorf("capacity %+v, %v", c, err)
	}
	if serial, err := u.Serial(ctx); err != nil || serial != "live" {
		t.Errorf("serial %q, %v", serial, err)
	}
	if err := u.WriteSame(ctx, bytes.Repeat([]byte{7}, 512), 8, 100, false); err != nil {
		t.Error(err)
	}
	if err := u.Unmap(ctx, 8, 8); err != nil {
		t.Error(err)
	}
	p := make([]byte, 16*512)
	if err := u.ReadBlocks(ctx, p, 8, 16); err != nil {
		t.Error(err)
	}
	if want := append(make([]byte, 8*512), bytes.Repeat([]byte{7}, 8*512)...); !bytes.Equal(p, want) {
		t.Error("WRITE SAME and UNMAP left something else")
	}
	if err := s.Unit(5).TestUnitReady(ctx); err == nil {
		t.Error("a unit that is not there is ready")
	}
	if r, err := s.Manage(ctx, initiator.LogicalUnitReset, initiator.LUN(1), nil); err != nil || r != initiator.FunctionComplete {
		t.Errorf("reset: %d, %v", r, err)
	}
	if err := u.TestUnitReady(ctx); err != nil {
		t.Error(err)
	}
}
