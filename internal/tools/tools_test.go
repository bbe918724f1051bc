package tools

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"blockgate/backing"
	"blockgate/backing/layer/base"
	"blockgate/backing/layer/fault"
	"blockgate/backing/ram"
	"blockgate/iscsi"
	"blockgate/iscsi/initiator"
	"blockgate/iscsi/server"
	"blockgate/scsi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const targetName = "iqn.2025-01.test:tools"

type directory struct {
	device  *scsi.Device
	auth    iscsi.AuthPolicy
	portals []string
}

func (d *directory) Target(name string, _ iscsi.Peer) (*iscsi.Access, iscsi.LoginStatus) {
	if name != targetName {
		return nil, iscsi.LoginNotFound
	}
	return &iscsi.Access{Target: name, Device: d.device, RelPort: 1, Auth: d.auth, Offer: iscsi.DefaultOffer()}, iscsi.LoginOK
}

func (d *directory) DiscoveryAuth(iscsi.Peer) iscsi.AuthPolicy { return iscsi.AuthPolicy{} }

func (d *directory) Targets(string, iscsi.Peer) []iscsi.TargetRecord {
	return []iscsi.TargetRecord{{Name: targetName, Portals: d.portals}}
}

const diskSize = 4 << 20

// serve starts a target with a disk at LUN 3 over the store; it returns the
// portal's URL.
func serve(t *testing.T, store backing.Store, change func(*scsi.UnitConfig, *directory)) string {
	t.Helper()
	cfg := scsi.UnitConfig{Store: store, Serial: "4711", Vendor: "BLOCKGTE", Product: "tools", NAA: [16]byte{0x60, 1},
		WriteCache: true}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &directory{device: scsi.NewDevice(scsi.DeviceConfig{Name: targetName}), portals: []string{ln.Addr().String() + ",1"}}
	if change != nil {
		change(&cfg, d)
	}
	unit, err := scsi.NewUnit(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.device.SetUnit(3, unit); err != nil {
		t.Fatal(err)
	}
	srv := server.New(server.Config{Directory: d})
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(ln, 1) })
	t.Cleanup(func() {
		srv.Close()
		wg.Wait()
		unit.Close(context.Background())
		store.Close()
	})
	return "iscsi://" + ln.Addr().String()
}

func memory(t *testing.T) *ram.Store {
	t.Helper()
	s, err := ram.New(diskSize)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func limited(t *testing.T) context.Context {
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(stop)
	return ctx
}

// content reads the whole store.
func content(t *testing.T, s backing.Store) []byte {
	t.Helper()
	p := make([]byte, s.Size())
	if err := s.ReadAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func fillRandom(t *testing.T, s backing.Store) []byte {
	t.Helper()
	p := make([]byte, s.Size())
	for i := range p {
		p[i] = byte(rand.Uint32())
	}
	if err := s.WriteAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestSelftest(t *testing.T) {
	for _, write := range []bool{false, true} {
		store := memory(t)
		before := fillRandom(t, store)
		url := serve(t, store, nil)
		var out bytes.Buffer
		if err := Selftest(limited(t), &out, url, SelftestOptions{Write: write}); err != nil {
			t.Errorf("%v\n%s", err, &out)
		}
		for _, want := range []string{targetName, "InitialR2T=No", "BLOCKGTE tools", "4 MiB, 8192 blocks of 512", "serial 4711, naa 6001", "passed: "} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("the report does not say %q:\n%s", want, &out)
			}
		}
		if strings.Contains(out.String(), "nothing was written") == write {
			t.Errorf("write %t:\n%s", write, &out)
		}
		if !bytes.Equal(before, content(t, store)) {
			t.Errorf("write %t: the disk was changed", write)
		}
	}
}

// liar is a store that once keeps something else than was written.
type liar struct {
	backing.Store
	mu     sync.Mutex
	writes int
	bad    int // the number of the write that goes wrong
}

func (l *liar) WriteAt(ctx context.Context, p []byte, off int64) error {
	l.mu.Lock()
	l.writes++
	bad := l.writes == l.bad
	l.mu.Unlock()
	if bad && len(p) > 700 {
		p = bytes.Clone(p)
		p[700] ^= 0x10
	}
	return l.Store.WriteAt(ctx, p, off)
}

// TestSelftestFindsWrongData: one flipped bit is found, named, and repaired.
func TestSelftestFindsWrongData(t *testing.T) {
	store := memory(t)
	before := fillRandom(t, store)
	url := serve(t, &liar{Store: store, bad: 1}, nil)
	var out bytes.Buffer
	err := Selftest(limited(t), &out, url, SelftestOptions{Write: true})
	if !errors.Is(err, ErrMismatch) || !errors.Is(err, ErrSelftest) || !strings.Contains(err.Error(), "byte 3146428") {
		t.Errorf("%v\n%s", err, &out)
	}
	if !strings.Contains(out.String(), "FAIL  write") || !strings.Contains(out.String(), "FAILED: 1 of 11") {
		t.Errorf("%s", &out)
	}
	if !bytes.Equal(before, content(t, store)) {
		t.Error("what was there was not put back")
	}
}

// A store that hangs is found in the time of a check, whether it gives calls up or
// not.
func TestSelftestOfAHungStore(t *testing.T) {
	for _, action := range []fault.Action{fault.Hang, fault.Stick} {
		store := fault.New(memory(t), 1, fault.Rule{Op: base.Read, Action: action})
		url := serve(t, store, nil)
		t.Cleanup(store.Clear)
		var out bytes.Buffer
		begin := time.Now()
		err := Selftest(limited(t), &out, url, SelftestOptions{Write: true, Timeout: 300 * time.Millisecond})
		if !errors.Is(err, ErrSelftest) || !strings.Contains(out.String(), "FAIL  read         no answer within 300ms") {
			t.Errorf("%v: %v\n%s", action, err, out.String())
		}
		if strings.Contains(out.String(), "write") {
			t.Errorf("the write test was tried:\n%s", out.String())
		}
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("it took %v", d)
		}
	}
}

func TestSelftestOnReadOnlyUnit(t *testing.T) {
	url := serve(t, memory(t), func(c *scsi.UnitConfig, _ *directory) { c.ReadOnly = true })
	var out bytes.Buffer
	if err := Selftest(limited(t), &out, url, SelftestOptions{}); err != nil {
		t.Errorf("%v\n%s", err, &out)
	}
	err := Selftest(limited(t), &out, url, SelftestOptions{Write: true})
	if !errors.Is(err, ErrSelftest) || !strings.Contains(err.Error(), "write") {
		t.Errorf("%v\n%s", err, &out)
	}
}

func TestSelftestNeedsATarget(t *testing.T) {
	url := serve(t, memory(t), nil)
	var out bytes.Buffer
	if err := Selftest(limited(t), &out, url+"/iqn.2025-01.test:none/3", SelftestOptions{}); !errors.Is(err, errNotThere) {
		t.Errorf("%v", err)
	}
	if err := Selftest(limited(t), &out, url+"/"+targetName+"/9", SelftestOptions{}); err == nil || !strings.Contains(err.Error(), "does not list 9") {
		t.Errorf("%v", err)
	}
}

func TestList(t *testing.T) {
	url := serve(t, memory(t), nil)
	var out bytes.Buffer
	if err := List(limited(t), &out, url, FormatTable); err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(targetName) + `\n  portal 127\.0\.0\.1:\d+,1\n  lun 3 +disk +4 MiB +BLOCKGTE +tools`).Match(out.Bytes()) {
		t.Errorf("%s", &out)
	}
	out.Reset()
	if err := List(limited(t), &out, url, FormatJSON); err != nil {
		t.Fatal(err)
	}
	var got []Target
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || len(got[0].LUNs) != 1 || got[0].LUNs[0] != (LUN{Number: 3, Type: "disk", Vendor: "BLOCKGTE", Product: "tools",
		Revision: got[0].LUNs[0].Revision, Serial: "4711", Size: diskSize, BlockSize: 512, Thin: true}) {
		t.Errorf("%+v", got)
	}
	if err := List(limited(t), &out, url, "xml"); !errors.Is(err, ErrUsage) {
		t.Errorf("format xml: %v", err)
	}
}

// TestListOfATargetThatRefuses: the list goes on, and says why.
func TestListOfATargetThatRefuses(t *testing.T) {
	url := serve(t, memory(t), func(_ *scsi.UnitConfig, d *directory) {
		d.auth.Incoming = []iscsi.Account{{User: "joe", Secret: "a long secret"}}
	})
	targets, err := Scan(limited(t), url)
	if err != nil || len(targets) != 1 || !strings.Contains(targets[0].Error, "authentication failure") {
		t.Errorf("%+v, %v", targets, err)
	}
}

// TestMutualCHAPWithOpenDiscovery: discovery without accounts does not stand in
// the way of a login that proves both sides.
func TestMutualCHAPWithOpenDiscovery(t *testing.T) {
	url := serve(t, memory(t), func(_ *scsi.UnitConfig, d *directory) {
		d.auth.Incoming = []iscsi.Account{{User: "joe", Secret: "a long secret"}}
		d.auth.Outgoing = &iscsi.Account{User: "tgt", Secret: "another secret"}
	})
	url = strings.Replace(url, "iscsi://", "iscsi://joe%a long secret@", 1)
	var out bytes.Buffer
	if err := Selftest(limited(t), &out, url+"?target_user=tgt&target_password=another%20secret", SelftestOptions{}); err != nil {
		t.Errorf("%v\n%s", err, &out)
	}
	err := Selftest(limited(t), &out, url+"?target_user=tgt&target_password=wrong", SelftestOptions{})
	if err == nil || !strings.Contains(err.Error(), "login") {
		t.Errorf("a target with another secret: %v", err)
	}
	if strings.Contains(out.String(), "long secret") || strings.Contains(out.String(), "another secret") {
		t.Errorf("the report tells a secret:\n%s", &out)
	}
}

func TestPortalFor(t *testing.T) {
	for _, tt := range []struct {
		portals []string
		want    string
	}{
		{nil, "h:3260"},
		{[]string{"a:1,1", "h:3260,2"}, "h:3260"},
		{[]string{"a:1,1", "b:2,1"}, "a:1"},
	} {
		if got := portalFor("h:3260", iscsi.TargetRecord{Portals: tt.portals}); got != tt.want {
			t.Errorf("%v: %s", tt.portals, got)
		}
	}
}

func TestBench(t *testing.T) {
	store := memory(t)
	before := fillRandom(t, store)
	url := serve(t, store, nil)
	var out bytes.Buffer
	err := Bench(limited(t), &out, url, BenchOptions{Duration: 100 * time.Millisecond, Sessions: 2, Connections: 2, Depth: 5, JSON: true})
	if err != nil {
		t.Fatal(err)
	}
	var r BenchResult
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if r.All.Count < 10 || r.All != r.Reads || r.Writes.Count != 0 || r.Connections != 2 || r.Seconds < 0.1 ||
		r.All.P50 <= 0 || r.All.P50 > r.All.P99 || r.All.P999 > r.All.Max ||
		r.LeastSession <= 0 || r.LeastSession > r.MostSession || !near(r.LeastSession+r.MostSession, r.All.IOPS) ||
		!near(r.All.MBps, r.All.IOPS*4096/1e6) || !near(r.All.IOPS, float64(r.All.Count)/r.Seconds) {
		t.Errorf("%s", &out)
	}
	if !bytes.Equal(before, content(t, store)) {
		t.Error("a benchmark of reads changed the disk")
	}

	beside, err := Measure(limited(t), url, BenchOptions{Duration: 100 * time.Millisecond, BesideDepth: 2, BesideLUN: 3})
	if err != nil {
		t.Fatal(err)
	}
	if b := beside.Beside; b == nil || b.Count < 2 || beside.All != beside.Reads || beside.All.Count < 10 || r.Beside != nil ||
		!near(beside.LeastSession, beside.All.IOPS) {
		t.Errorf("with a second unit: %+v, beside it %+v", beside, b)
	}
	if _, err := Measure(limited(t), url, BenchOptions{Duration: time.Hour, BesideDepth: 1, BesideLUN: 5}); err == nil {
		t.Error("a second unit that is not there was measured")
	}

	out.Reset()
	err = Bench(limited(t), &out, url, BenchOptions{Duration: 100 * time.Millisecond, Pattern: PatternSequential, BlockSize: 8192,
		WritePercent: 50, AllowWrite: true, Offset: 1 << 20, Length: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?s)^iscsi://\S+\nseq, 50 % writes, 8 KiB blocks.*\nread .*\nwrite .*\nall `).Match(out.Bytes()) {
		t.Errorf("%s", &out)
	}
	after := content(t, store)
	if !bytes.Equal(before[:1<<20], after[:1<<20]) || !bytes.Equal(before[2<<20:], after[2<<20:]) {
		t.Error("the benchmark wrote outside its region")
	}
	if bytes.Equal(before, after) {
		t.Error("nothing was written")
	}
}

func near(a, b float64) bool { return a > b*0.99 && a < b*1.01 }

func TestBenchOptions(t *testing.T) {
	url := serve(t, memory(t), nil)
	for _, o := range []BenchOptions{{WritePercent: 1}, {WritePercent: 101, AllowWrite: true}, {Pattern: "zigzag"}, {Depth: -1},
		{Depth: 5000}, {BlockSize: 1000}, {BlockSize: 8 << 20}, {Offset: diskSize}, {Duration: -1}, {Offset: 100}} {
		if err := Bench(limited(t), &bytes.Buffer{}, url, o); !errors.Is(err, ErrUsage) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// TestBenchInterrupted: what was measured is reported along with the reason.
func TestBenchInterrupted(t *testing.T) {
	url := serve(t, memory(t), nil)
	ctx, stop := context.WithTimeout(limited(t), 200*time.Millisecond)
	defer stop()
	r, err := Measure(ctx, url, BenchOptions{Duration: time.Hour})
	if !errors.Is(err, context.DeadlineExceeded) || r == nil || r.All.Count == 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestBenchLosesTarget: the first failure ends the run.
func TestBenchLosesTarget(t *testing.T) {
	url := serve(t, memory(t), nil)
	o := BenchOptions{Duration: time.Hour, Configure: func(c *initiator.Config) {
		c.Dialer = func(ctx context.Context, addr string) (net.Conn, error) {
			nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			if err == nil {
				nc = &brittle{Conn: nc, left: 1 << 20}
			}
			return nc, err
		}
	}}
	if r, err := Measure(limited(t), url, o); !errors.Is(err, initiator.ErrConnectionLost) || r == nil || r.All.Count == 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// brittle breaks after some bytes were read.
type brittle struct {
	net.Conn
	left int
}

func (b *brittle) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errors.New("the cable was pulled")
	}
	n, err := b.Conn.Read(p)
	b.left -= n
	return n, err
}

func TestHistogram(t *testing.T) {
	var a, b histogram
	for i := 1; i <= 100000; i++ {
		h := &a
		if i%3 == 0 {
			h = &b
		}
		h.add(time.Duration(i) * time.Microsecond)
	}
	a.merge(&b)
	if a.n != 100000 || a.most != 100*time.Millisecond || a.lowest != time.Microsecond {
		t.Errorf("%d, %v to %v", a.n, a.lowest, a.most)
	}
	for _, q := range []float64{0.001, 0.5, 0.99, 0.999, 1} {
		want := q * 100e6
		if got := float64(a.quantile(q)); got < want || got > want*1.02 {
			t.Errorf("quantile %v: %v, want %v", q, time.Duration(got), time.Duration(want))
		}
	}
	if m := a.mean(); m != 50000500*time.Nanosecond {
		t.Errorf("mean %v", m)
	}
	for d := time.Duration(1); d > 0 && d < 1<<41; d *= 3 {
		i := bucket(d)
		if upper(i) < d || float64(upper(i)) > float64(d)*1.016+1 || i > 0 && upper(i-1) >= d {
			t.Errorf("%v is in bucket %d up to %v", d, i, upper(i))
		}
	}
	if (&histogram{}).quantile(0.5) != 0 {
		t.Error("a quantile of nothing")
	}
	a.add(1 << 62) // beyond the last bucket: counted, not lost
	a.add(-5)
}
