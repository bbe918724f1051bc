package sheepfake_test

import (
	"io"
	"net"
	"testing"

	"blockgate/backing/sheepdog/internal/wire"
	"blockgate/backing/sheepdog/sheepfake"
)

// client sends one request at a time.
type client struct {
	t  *testing.T
	nc net.Conn
}

func dial(t *testing.T, c *sheepfake.Cluster) *client {
	t.Helper()
	s, err := c.Start("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return &client{t, nc}
}

// do checks the result, and returns the answer with n bytes of room for its payload.
func (c *client) do(want wire.Result, r wire.Request, out []byte, n int) (wire.Response, []byte) {
	c.t.Helper()
	r.ID, r.Length = 42, uint32(max(len(out), n))
	if out != nil {
		r.Flags |= wire.FlagWrite
	}
	var h [wire.HeaderSize]byte
	r.Put(&h)
	if _, err := c.nc.Write(append(h[:], out...)); err != nil {
		c.t.Fatal(err)
	}
	if _, err := io.ReadFull(c.nc, h[:]); err != nil {
		c.t.Fatal(err)
	}
	resp := wire.ParseResponse(&h)
	in := make([]byte, resp.Length)
	if _, err := io.ReadFull(c.nc, in); err != nil {
		c.t.Fatal(err)
	}
	if resp.Result != want || resp.ID != 42 || resp.Op != r.Op {
		c.t.Fatalf("operation %#x: answer %+v (%v), want %v", r.Op, resp, resp.Result, want)
	}
	return resp, in
}

func (c *client) lookup(want wire.Result, op wire.Op, name, tag string, snapid, lock uint32) uint32 {
	c.t.Helper()
	resp, _ := c.do(want, wire.Request{Op: op, SnapID: snapid, LockType: lock}, wire.PutNames(name, tag), 0)
	return resp.VID
}

// TestBehaviour: what a client meets, result for result as the daemon gives it.
func TestBehaviour(t *testing.T) {
	f := sheepfake.New(sheepfake.Options{Locks: true})
	defer f.Close()
	a, b := dial(t, f), dial(t, f)
	name := wire.PutNames("disk", "")[:wire.MaxNameLen]

	a.do(wire.VersionMismatch, wire.Request{Op: wire.OpGetVDIInfo, Proto: 3}, wire.PutNames("disk", ""), 0)
	a.do(wire.VersionMismatch, wire.Request{Op: wire.OpNodeList, Proto: 2}, nil, 800)
	a.do(wire.InvalidParams, wire.Request{Op: wire.OpFlushVDI}, nil, 0)
	a.lookup(wire.NoVDI, wire.OpGetVDIInfo, "disk", "", 0, 0)
	resp, _ := a.do(wire.Success, wire.Request{Op: wire.OpNewVDI, VDISize: 16 << 20}, name, 0)
	vid := resp.VID
	if vid != wire.HashVDI("disk") {
		t.Errorf("VDI id %#x, want %#x", vid, wire.HashVDI("disk"))
	}
	a.do(wire.VDIExists, wire.Request{Op: wire.OpNewVDI, VDISize: 16 << 20}, name, 0)
	a.lookup(wire.NoTag, wire.OpGetVDIInfo, "disk", "", 1, 0)
	a.do(wire.NoObject, wire.Request{Op: wire.OpWrite, OID: wire.DataOID(vid, 0)}, []byte("x"), 0)

	// Creating again empties the object.
	a.do(wire.Success, wire.Request{Op: wire.OpCreateAndWrite, OID: wire.DataOID(vid, 0)}, []byte("one"), 0)
	a.do(wire.Success, wire.Request{Op: wire.OpCreateAndWrite, OID: wire.DataOID(vid, 0), Offset: 3}, []byte("two"), 0)
	if _, p := a.do(wire.Success, wire.Request{Op: wire.OpRead, OID: wire.DataOID(vid, 0)}, nil, 8); string(p) != "\x00\x00\x00two\x00\x00" {
		t.Errorf("object %q", p)
	}
	slot := make([]byte, 4)
	wire.PutSlot(slot, 0, vid)
	index := wire.Request{Op: wire.OpWrite, OID: wire.InodeOID(vid), Offset: wire.IndexOffset(0)}
	a.do(wire.Success, index, slot, 0)

	// A shared lock, and whose view of the inode is right.
	a.lookup(wire.Success, wire.OpLockVDI, "disk", "", 0, wire.LockShared)
	a.lookup(wire.VDILocked, wire.OpLockVDI, "disk", "", 0, wire.LockShared)
	b.lookup(wire.VDILocked, wire.OpLockVDI, "disk", "", 0, wire.LockNormal)
	b.lookup(wire.Success, wire.OpLockVDI, "disk", "", 0, wire.LockShared)
	data := wire.Request{Op: wire.OpRead, OID: wire.DataOID(vid, 0), Flags: wire.FlagTGT}
	refresh := wire.Request{Op: wire.OpRead, OID: wire.InodeOID(vid)}
	a.do(wire.Success, data, nil, 8)
	b.do(wire.InodeInvalidated, data, nil, 8)
	b.do(wire.Success, refresh, nil, wire.RefreshSize-1)
	b.do(wire.InodeInvalidated, data, nil, 8)
	b.do(wire.Success, refresh, nil, wire.RefreshSize)
	b.do(wire.Success, data, nil, 8)
	b.do(wire.Success, index, slot, 0)
	a.do(wire.InodeInvalidated, data, nil, 8)
	for _, c := range []*client{a, b} {
		c.do(wire.Success, wire.Request{Op: wire.OpReleaseVDI, BaseVID: vid, LockType: wire.LockShared}, nil, 0)
	}

	// A normal lock is released by whoever asks.
	a.lookup(wire.Success, wire.OpLockVDI, "disk", "", 0, wire.LockNormal)
	a.lookup(wire.VDILocked, wire.OpLockVDI, "disk", "", 0, wire.LockNormal)
	b.do(wire.Success, wire.Request{Op: wire.OpReleaseVDI, BaseVID: vid}, nil, 0)
	b.lookup(wire.Success, wire.OpLockVDI, "disk", "", 0, wire.LockNormal)

	// A snapshot: data is read-only, the inode is not; copy-on-write merges.
	a.do(wire.Success, wire.Request{Op: wire.OpWrite, OID: wire.InodeOID(vid), Offset: wire.OffTag}, []byte("now"), 0)
	resp, _ = a.do(wire.Success, wire.Request{Op: wire.OpNewVDI, VDISize: 16 << 20, BaseVID: vid, SnapID: 1}, name, 0)
	next := resp.VID
	if got := a.lookup(wire.Success, wire.OpGetVDIInfo, "disk", "now", 0, 0); got != vid {
		t.Errorf("snapshot is %#x, want %#x", got, vid)
	}
	if got := a.lookup(wire.Success, wire.OpGetVDIInfo, "disk", "", 0, 0); got != next {
		t.Errorf("working VDI is %#x, want %#x", got, next)
	}
	a.do(wire.ReadOnly, wire.Request{Op: wire.OpWrite, OID: wire.DataOID(vid, 0)}, []byte("x"), 0)
	a.do(wire.ReadOnly, wire.Request{Op: wire.OpCreateAndWrite, OID: wire.DataOID(vid, 1)}, []byte("x"), 0)
	a.do(wire.Success, index, slot, 0)
	a.do(wire.Success, wire.Request{Op: wire.OpCreateAndWrite, Flags: wire.FlagCOW, OID: wire.DataOID(next, 0), COWOID: wire.DataOID(vid, 0)}, []byte("new"), 0)
	if _, p := a.do(wire.Success, wire.Request{Op: wire.OpRead, OID: wire.DataOID(next, 0)}, nil, 6); string(p) != "newtwo" {
		t.Errorf("object %q", p)
	}
	a.do(wire.Success, wire.Request{Op: wire.OpDiscard, OID: wire.DataOID(next, 0)}, nil, 0)
	if _, p := a.do(wire.Success, wire.Request{Op: wire.OpRead, OID: wire.InodeOID(next), Offset: wire.IndexOffset(0)}, nil, 4); wire.Slot(p, 0) != 0 {
		t.Errorf("slot %#x after a discard", wire.Slot(p, 0))
	}
}
