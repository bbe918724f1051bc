package server_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"blockgate/backing"
	"blockgate/backing/ram"
	"blockgate/iscsi"
	"blockgate/iscsi/initiator"
	"blockgate/iscsi/server"
	"blockgate/scsi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	targetName = "iqn.2026-11.test:disk"
	otherName  = "iqn.2026-11.test:other"
	patience   = 20 * time.Second // after which a test has failed
)

// rig is a server on a loopback port, with targetName, that has the stores as
// LUNs from 0, and otherName, that has a small disk.
type rig struct {
	t    testing.TB
	srv  *server.Server
	addr string
	dir  *directory
	logs *logs
}

// directory may be changed before the first login.
type directory struct {
	devices map[string]*scsi.Device
	auth    iscsi.AuthPolicy
	offer   iscsi.Offer
	addr    string
	gone    func() bool // targets that are not there any more
}

func (d *directory) Target(name string, _ iscsi.Peer) (*iscsi.Access, iscsi.LoginStatus) {
	dev := d.devices[name]
	if dev == nil || d.gone != nil && d.gone() {
		return nil, iscsi.LoginNotFound
	}
	return &iscsi.Access{Target: name, Device: dev, RelPort: 1, Auth: d.auth, Offer: d.offer}, iscsi.LoginOK
}

func (d *directory) DiscoveryAuth(iscsi.Peer) iscsi.AuthPolicy { return d.auth }

func (d *directory) Targets(name string, _ iscsi.Peer) (l []iscsi.TargetRecord) {
	for _, n := range []string{targetName, otherName} {
		if name == "" || name == n {
			l = append(l, iscsi.TargetRecord{Name: n, Portals: []string{d.addr + ",1"}})
		}
	}
	return l
}

// logs keeps what the server logged and lets a test wait for a line.
type logs struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{} // closed when something was added, then made anew
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.more)
	l.more = make(chan struct{})
	return l.buf.Write(p)
}

// count counts the lines that have all of the words.
func (l *logs) count(words ...string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
line:
	for s := range strings.Lines(l.buf.String()) {
		for _, w := range words {
			if !strings.Contains(s, w) {
				continue line
			}
		}
		n++
	}
	return n
}

// wait waits until n lines have all of the words.
func (l *logs) wait(t testing.TB, n int, words ...string) {
	t.Helper()
	end := time.After(patience)
	for {
		l.mu.Lock()
		more := l.more
		l.mu.Unlock()
		if l.count(words...) >= n {
			return
		}
		select {
		case <-more:
		case <-end:
			l.mu.Lock()
			defer l.mu.Unlock()
			t.Fatalf("not %d lines with %q in:\n%s", n, words, l.buf.String())
		}
	}
}

func memory(t testing.TB, size int64) backing.Store {
	t.Helper()
	s, err := ram.New(size)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// options change what serve makes.
type options struct {
	stores []backing.Store // 16 MiB of memory if none
	cfg    func(*server.Config)
	dir    func(*directory)
	tick   time.Duration
}

func serve(t testing.TB, o options) *rig {
	t.Helper()
	d := &directory{devices: make(map[string]*scsi.Device), offer: iscsi.DefaultOffer()}
	if o.stores == nil {
		o.stores = []backing.Store{memory(t, 16<<20)}
	}
	var srv *server.Server
	// After the units are closed, and so nothing is inside a store any more. The
	// last tasks may be on the way from there to their connection.
	t.Cleanup(func() {
		for end := time.Now().Add(patience); srv.MemoryUsed() != 0; runtime.Gosched() {
			if time.Now().After(end) {
				t.Errorf("%d bytes of the memory budget are not given back", srv.MemoryUsed())
				return
			}
		}
	})
	device := func(name string, stores ...backing.Store) {
		dev := scsi.NewDevice(scsi.DeviceConfig{Name: name})
		for lun, s := range stores {
			u, err := scsi.NewUnit(scsi.UnitConfig{Store: s, Serial: fmt.Sprint(name, lun), Vendor: "V", Product: "P", Revision: "1",
				WriteCache: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := dev.SetUnit(uint64(lun), u); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				ctx, stop := context.WithTimeout(context.Background(), patience)
				defer stop()
				if err := u.Close(ctx); err != nil {
					t.Error(err)
				}
				s.Close()
			})
		}
		d.devices[name] = dev
	}
	device(targetName, o.stores...)
	device(otherName, memory(t, 1<<20))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.addr = ln.Addr().String()
	if o.dir != nil {
		o.dir(d)
	}
	l := &logs{more: make(chan struct{})}
	cfg := server.Config{Directory: d, Logger: slog.New(slog.NewTextHandler(l, nil))}
	if o.cfg != nil {
		o.cfg(&cfg)
	}
	srv = server.New(cfg)
	if o.tick > 0 {
		srv.SetTick(o.tick)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Serve(ln, 1); !errors.Is(err, server.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(func() {
		srv.Close()
		wg.Wait()
		if a, b := srv.Entries(); a+b != 0 {
			t.Errorf("the session table holds %d handles and %d nexuses after Close", a, b)
		}
	})
	return &rig{t, srv, d.addr, d, l}
}

func (r *rig) config(name string) initiator.Config {
	return initiator.Config{Addrs: []string{r.addr}, TargetName: targetName, InitiatorName: "iqn.test:" + name, LoginTimeout: patience}
}

// dial logs in; change may be nil.
func (r *rig) dial(name string, change func(*initiator.Config)) *initiator.Session {
	r.t.Helper()
	cfg := r.config(name)
	if change != nil {
		change(&cfg)
	}
	s, err := initiator.Dial(limited(r.t), cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { s.Close() })
	return s
}

// raw is a connection that is not logged in.
func (r *rig) raw() *initiator.Raw {
	r.t.Helper()
	c, err := initiator.DialRaw(limited(r.t), r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// rawLogin is a connection in full feature phase whose PDUs the test writes.
func (r *rig) rawLogin(name string) *initiator.Raw {
	r.t.Helper()
	c := r.raw()
	if err := c.Login(r.config(name)); err != nil {
		r.t.Fatal(err)
	}
	return c
}

// asksForAll is a rawLogin that has asked for the first size bytes of LUN 0, by n
// commands, and has read nothing of the answers.
func (r *rig) asksForAll(name string, size, n int) *initiator.Raw {
	r.t.Helper()
	c := r.rawLogin(name)
	c.MaxRecv(1 << 20)
	blocks := size / n / 512
	var asks []byte
	for i := range n {
		asks = c.Encode(asks, command(uint32(i), uint32(1+i), 0, rw10(0x28, uint32(i*blocks), uint16(blocks)), size/n, 0xc0), nil, nil)
	}
	if err := c.SendBytes(asks); err != nil {
		r.t.Fatal(err)
	}
	return c
}

func limited(t testing.TB) context.Context {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	t.Cleanup(stop)
	return ctx
}

// pattern makes n bytes that depend on the seed everywhere.
func pattern(n int, seed uint64) []byte {
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], seed*0x9e3779b97f4a7c15+uint64(i))
	}
	return b
}

// checkIO writes and reads back, and so tells that the session works.
func checkIO(t testing.TB, s *initiator.Session, lun, lba uint64) {
	t.Helper()
	ctx, u := limited(t), s.Unit(lun)
	p, q := pattern(4096, lba), make([]byte, 4096)
	err := u.WriteBlocks(ctx, p, lba, 8)
	if initiator.IsUnitAttention(err) {
		err = u.WriteBlocks(ctx, p, lba, 8)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := u.ReadBlocks(ctx, q, lba, 8); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, q) {
		t.Fatal("not read back as written")
	}
}

// wantClosed reads until the server closes the connection.
func wantClosed(t testing.TB, nc net.Conn) {
	t.Helper()
	nc.SetDeadline(time.Now().Add(patience))
	_, err := io.Copy(io.Discard, nc)
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		t.Fatal("the server does not close the connection")
	}
}

// command is a SCSI Command header.
func command(itt, cmdSN uint32, lun uint64, cdb []byte, edtl int, flags byte) *iscsi.BHS {
	h := new(iscsi.BHS)
	h.SetOpcode(iscsi.OpSCSICmd, false)
	h.SetFlags(flags | 1)
	h.SetLUN(lun << 48)
	h.SetITT(itt)
	h.SetEDTL(uint32(edtl))
	h.SetCmdSN(cmdSN)
	copy(h.CDB(), cdb)
	return h
}

const (
	final = iscsi.FlagFinal
	read  = iscsi.FlagFinal | iscsi.FlagRead
	write = iscsi.FlagFinal | iscsi.FlagWrite
)

func rw10(op byte, lba uint32, nblocks uint16) []byte {
	c := make([]byte, 10)
	c[0] = op
	binary.BigEndian.PutUint32(c[2:], lba)
	binary.BigEndian.PutUint16(c[7:], nblocks)
	return c
}

func nop(itt, cmdSN uint32) *iscsi.BHS {
	h := new(iscsi.BHS)
	h.SetOpcode(iscsi.OpNopOut, true)
	h.SetFlags(final)
	h.SetITT(itt)
	h.SetTTT(iscsi.ReservedTag)
	h.SetCmdSN(cmdSN)
	return h
}

// ping finds out that a raw connection lives.
func ping(t testing.TB, c *initiator.Raw) {
	t.Helper()
	if err := c.Send(nop(0x777, c.CmdSN), nil, []byte("ping")); err != nil {
		t.Fatal(err)
	}
	for {
		p, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if p.Opcode() == iscsi.OpNopIn && p.ITT() == 0x777 {
			return
		}
	}
}
