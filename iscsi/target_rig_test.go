package iscsi_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/engines"
	"blockgate/iscsi"
	"blockgate/scsi"
)

// rig is a target's session with connections that end in memory.
type rig struct {
	t      testing.TB
	dev    *scsi.Device
	sess   *iscsi.Session
	nexus  *scsi.Nexus
	conns  []*link
	dir    fakeDirectory
	params iscsi.Params
	budget *iscsi.Budget
	resets []string
}

// rigOptions change what a rig is made of.
type rigOptions struct {
	params    func(*iscsi.Params)
	stores    map[uint64]backing.Store
	queue     int
	memory    int64
	conns     int
	discovery bool
	copies    bool // the transport takes no loans
}

type fakeDirectory []iscsi.TargetRecord

func (d fakeDirectory) Target(string, iscsi.Peer) (*iscsi.Access, iscsi.LoginStatus) {
	return nil, iscsi.LoginNotFound
}
func (d fakeDirectory) DiscoveryAuth(iscsi.Peer) iscsi.AuthPolicy { return iscsi.AuthPolicy{} }
func (d fakeDirectory) Targets(name string, _ iscsi.Peer) []iscsi.TargetRecord {
	var l []iscsi.TargetRecord
	for _, r := range d {
		if name == "" || r.Name == name {
			l = append(l, r)
		}
	}
	return l
}

func openStore(t testing.TB, url string) backing.Store {
	t.Helper()
	s, err := engines.Default().Open(context.Background(), url, backing.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

const rigTarget = "iqn.2026-11.test:disk"

func newRig(t testing.TB, o rigOptions) *rig {
	t.Helper()
	offer := iscsi.DefaultOffer()
	p := offer.Params
	p.MaxXmitDataSegment = 64 << 10
	if o.params != nil {
		o.params(&p)
	}
	if o.queue > 0 {
		offer.MaxQueue = o.queue
	}
	if o.memory == 0 {
		o.memory = 64 << 20
	}
	r := &rig{t: t, dev: scsi.NewDevice(scsi.DeviceConfig{Name: rigTarget}), params: p,
		dir: fakeDirectory{{Name: rigTarget, Alias: "a", Portals: []string{"127.0.0.1:3260,1"}},
			{Name: "iqn.2026-11.test:other", Portals: []string{"127.0.0.1:3260,1"}}},
		budget: iscsi.NewBudget(o.memory)}
	if o.stores == nil {
		o.stores = map[uint64]backing.Store{0: openStore(t, "ram:4M")}
	}
	for lun, s := range o.stores {
		u, err := scsi.NewUnit(scsi.UnitConfig{Store: s, BlockSize: 512, WriteCache: true,
			Serial: "s", Vendor: "V", Product: "P", Revision: "1", Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.dev.SetUnit(lun, u); err != nil {
			t.Fatal(err)
		}
	}
	res := &iscsi.LoginResult{
		Peer:   iscsi.Peer{Name: "iqn.test:init", ISID: [6]byte{0x80, 1}, Group: 1},
		Params: p, CmdSN: 1, TSIH: 1, Discovery: o.discovery,
	}
	if !o.discovery {
		res.Access = &iscsi.Access{Target: rigTarget, Device: r.dev, RelPort: 1, Offer: offer}
		r.nexus = r.dev.Attach(scsi.NexusConfig{
			Initiator: scsi.InitiatorPort{Name: res.Peer.Name, ISID: res.Peer.ISID},
			Port:      scsi.TargetPort{Name: rigTarget, RelID: 1, Group: 1},
		})
	}
	r.sess = iscsi.NewSession(iscsi.SessionConfig{
		ID: 1, TSIH: 1, Result: res, Nexus: r.nexus, Budget: r.budget, Logger: slog.New(slog.DiscardHandler),
		Directory: r.dir, Reset: func(n string) { r.resets = append(r.resets, n) },
	})
	for i := range max(o.conns, 1) {
		l := &link{rig: r, wake: make(chan struct{}, 1), aborted: make(chan string, 16)}
		lr := *res
		lr.CID = uint16(i)
		c, err := iscsi.NewTargetConn(iscsi.ConnConfig{Session: r.sess, Result: &lr, StatSN: 100, Host: l,
			Logger: slog.New(slog.DiscardHandler), Lend: !o.copies})
		if err != nil {
			t.Fatal(err)
		}
		l.c = c
		r.conns = append(r.conns, l)
	}
	t.Cleanup(func() {
		for _, l := range r.conns {
			l.close()
		}
	})
	if !o.discovery {
		// Take the power-on attention away, so that tests see what they are about.
		for lun := range o.stores {
			l := r.conns[0]
			l.send(cmdPDU(0xfffffff0, 0, lun<<48, []byte{0, 0, 0, 0, 0, 0}, 0, 0x40|0x80), nil)
			l.next()
		}
	}
	return r
}

// link is one connection of a rig: it plays the socket.
type link struct {
	rig     *rig
	c       *iscsi.TargetConn
	wake    chan struct{}
	aborted chan string
	mu      sync.Mutex
	out     []byte // sent by the target, not yet taken
	closed  bool
	// takes is how many bytes the transport takes of each batch before it has to
	// wait, 0 for all; meanwhile then runs.
	takes     int
	meanwhile func()
}

func (l *link) Wake() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *link) Abort(reason string) {
	select {
	case l.aborted <- reason:
	default:
	}
}

func (l *link) close() {
	if !l.closed {
		l.closed = true
		l.c.Closed()
	}
}

func (l *link) flush() {
	if l.c.BeginSend() {
		l.drain()
	}
}

// drain sends all that is queued.
func (l *link) drain() {
	for iov := l.c.Gather(); iov != nil; iov = l.c.Gather() {
		l.mu.Lock()
		for left := l.takes; left > 0 && len(iov) > 0; {
			n := min(left, len(iov[0]))
			l.out = append(l.out, iov[0][:n]...)
			left -= n
			if iov[0] = iov[0][n:]; len(iov[0]) == 0 {
				iov = iov[1:]
			}
		}
		if l.takes > 0 {
			_ = l.c.Settle()
			l.meanwhile()
		}
		for _, v := range iov {
			l.out = append(l.out, v...)
		}
		l.mu.Unlock()
	}
}

// feed gives bytes to the machine in one piece, by Direct where it asks for it.
func (l *link) feed(p []byte) error {
	for len(p) > 0 {
		if d := l.c.Direct(); d != nil {
			n := copy(d, p)
			l.c.Filled(n)
			p = p[n:]
		}
		n, err := l.c.Feed(p)
		p = p[n:]
		if l.c.EndFeed() {
			l.drain()
		} else {
			l.flush()
		}
		if err != nil {
			return err
		}
		if n == 0 && l.c.Direct() == nil {
			return fmt.Errorf("%d bytes left over", len(p))
		}
	}
	return nil
}

// send puts a PDU together, with the digests that the rig negotiated.
func (l *link) send(h iscsi.BHS, data []byte) {
	l.rig.t.Helper()
	if err := l.feed(l.wire(h, data)); err != nil {
		l.rig.t.Fatalf("feed: %v", err)
	}
}

func (l *link) wire(h iscsi.BHS, data []byte) []byte {
	h.SetDataLen(len(data))
	b := append([]byte(nil), h[:]...)
	if l.rig.params.HeaderDigest {
		b = iscsi.AppendDigest(b, iscsi.Digest(h[:]))
	}
	if len(data) == 0 {
		return b
	}
	n := len(b)
	b = append(b, data...)
	b = append(b, make([]byte, iscsi.PadLen(len(data)))...)
	if l.rig.params.DataDigest {
		b = iscsi.AppendDigest(b, iscsi.Digest(b[n:]))
	}
	return b
}

type pdu struct {
	iscsi.BHS
	data []byte
}

// try takes the next PDU that the target has sent, if there is one.
func (l *link) try() (pdu, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.out) == 0 {
		return pdu{}, false
	}
	var p pdu
	n := copy(p.BHS[:], l.out)
	if l.rig.params.HeaderDigest {
		if iscsi.WireDigest(l.out[n:]) != iscsi.Digest(p.BHS[:]) {
			l.rig.t.Fatalf("bad header digest from the target")
		}
		n += 4
	}
	if d := p.DataLen(); d > 0 {
		padded := d + iscsi.PadLen(d)
		p.data = append([]byte(nil), l.out[n:n+d]...)
		if l.rig.params.DataDigest {
			if iscsi.WireDigest(l.out[n+padded:]) != iscsi.Digest(l.out[n:n+padded]) {
				l.rig.t.Fatalf("bad data digest from the target")
			}
			padded += 4
		}
		n += padded
	}
	l.out = l.out[n:]
	return p, true
}

// next waits for a PDU, sending for the target what others finish.
func (l *link) next() pdu {
	l.rig.t.Helper()
	for {
		if p, ok := l.try(); ok {
			return p
		}
		select {
		case <-l.wake:
			l.flush()
		case <-time.After(10 * time.Second):
			l.rig.t.Fatal("the target sends nothing")
		}
	}
}

func (l *link) nothing() {
	l.rig.t.Helper()
	if p, ok := l.try(); ok {
		l.rig.t.Fatalf("unexpected PDU % x", p.BHS[:])
	}
}

// cmdPDU is a SCSI Command; flags has F, R, W; 0x40 in imm makes it immediate.
func cmdPDU(itt, cmdSN uint32, lun uint64, cdb []byte, edtl uint32, flags byte) iscsi.BHS {
	var h iscsi.BHS
	imm := flags&0x40 != 0 && flags&0x20 == 0 && edtl == 0
	h.SetOpcode(iscsi.OpSCSICmd, imm)
	if imm {
		flags &^= 0x40
	}
	h.SetFlags(flags | 1)
	h.SetLUN(lun)
	h.SetITT(itt)
	h.SetEDTL(edtl)
	h.SetCmdSN(cmdSN)
	copy(h.CDB(), cdb)
	return h
}

const (
	fR = 0xc0 // final, read
	fW = 0xa0 // final, write
	w  = 0x20 // write, unsolicited data follows
)

func rw10(op byte, lba uint32, nblocks uint16) []byte {
	c := make([]byte, 10)
	c[0] = op
	binary.BigEndian.PutUint32(c[2:], lba)
	binary.BigEndian.PutUint16(c[7:], nblocks)
	return c
}

func dataOut(itt, ttt, sn, off uint32, final bool) iscsi.BHS {
	var h iscsi.BHS
	h.SetOpcode(iscsi.OpDataOut, false)
	if final {
		h.SetFlags(iscsi.FlagFinal)
	}
	h.SetITT(itt)
	h.SetTTT(ttt)
	h.SetDataSN(sn)
	h.SetBufferOffset(off)
	return h
}

func tmf(itt, cmdSN uint32, fn byte, lun uint64, ref, refSN uint32) iscsi.BHS {
	var h iscsi.BHS
	h.SetOpcode(iscsi.OpTaskReq, true)
	h.SetFlags(iscsi.FlagFinal | fn)
	h.SetLUN(lun)
	h.SetITT(itt)
	h.SetRefTag(ref)
	h.SetCmdSN(cmdSN)
	h.SetRefCmdSN(refSN)
	return h
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7) ^ seed ^ byte(i>>9)
	}
	return b
}
